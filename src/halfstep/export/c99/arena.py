"""One array for all intermediate codes: who lies where, and who may lie in whose place.

A buffer lives from the step that writes it to the last one that reads it. An operation that visits
its input and its output in the same order may write over an input that nobody reads afterwards;
then both are one buffer. The others are placed first-fit, the largest first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Use:
    """What one step does to the arena.

    Attributes:
        reads: names of buffers.
        writes: the name of the buffer that it makes.
        size: of that buffer, in bytes.
        over: the buffers that it may write over, if this is their last use.
    """

    reads: tuple[str, ...]
    writes: str
    size: int
    over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placement:
    """Where every buffer lies.

    Attributes:
        offsets: by name.
        size: of the arena: the peak.
        live: the largest sum of the buffers that live at once, below which no arena can be.
    """

    offsets: Mapping[str, int]
    size: int
    live: int


@dataclass
class _Block:
    size: int
    first: int
    last: int


def place(uses: Sequence[Use], kept: Sequence[str] = ()) -> Placement:
    """Place what ``uses`` write; ``kept`` is read after the last of them."""
    last_read = {name: index for index, use in enumerate(uses) for name in use.reads}
    last_read |= dict.fromkeys(kept, len(uses))
    block_of: dict[str, _Block] = {}
    for index, use in enumerate(uses):
        last = max(last_read.get(use.writes, index), index)
        over = next(
            (
                block_of[name]
                for name in use.over
                if name in block_of and _ends_here(block_of[name], index, use.size)
            ),
            None,
        )
        if over is None:
            block_of[use.writes] = _Block(use.size, index, last)
        else:
            over.last = last
            block_of[use.writes] = over
    blocks = list({id(block): block for block in block_of.values()}.values())
    starts = _first_fit(blocks)
    ends = [starts[id(block)] + block.size for block in blocks]
    return Placement(
        {name: starts[id(block)] for name, block in block_of.items()},
        max(ends, default=0),
        max((_live(blocks, index) for index in range(len(uses))), default=0),
    )


def _ends_here(block: _Block, index: int, size: int) -> bool:
    return block.last == index and block.size == size


def _live(blocks: Sequence[_Block], index: int) -> int:
    return sum(block.size for block in blocks if block.first <= index <= block.last)


def _first_fit(blocks: Sequence[_Block]) -> dict[int, int]:
    """The lowest place for each block that no block living at the same time has."""
    starts: dict[int, int] = {}
    placed: list[_Block] = []
    for block in sorted(blocks, key=lambda b: (-b.size, b.first)):
        taken = sorted(
            (starts[id(other)], starts[id(other)] + other.size)
            for other in placed
            if other.first <= block.last and block.first <= other.last
        )
        start = 0
        for begin, end in taken:
            if start + block.size <= begin:
                break
            start = max(start, end)
        starts[id(block)] = start
        placed.append(block)
    return starts
