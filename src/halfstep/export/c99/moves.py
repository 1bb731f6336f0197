"""Operations that move codes: each is one walk, or a walk for each of its parts."""

import itertools
from collections.abc import Sequence

from halfstep.errors import ExportError
from halfstep.export.c99.draft import Draft
from halfstep.export.c99.walks import Walk, broadcast_steps, steps_of
from halfstep.program.ir import Op


def _copy(draft: Draft, op: Op, sizes: Sequence[int], a: Sequence[int], out: Sequence[int]) -> None:
    """The output is the input, visited in another order."""
    source = draft.read(op.inputs[0])
    walk = Walk.over(tuple(sizes), a, a, out)
    if walk.is_contiguous and walk.size == draft.size(op.inputs[0]):
        draft.alias(op, source)
        return
    variable = draft.names[op.output]
    call = f"hs_copy({draft.walk(op.output, walk)}, {source}, {variable});"
    draft.add(op, [call], [source], "copy", walk.size)


def reshape(draft: Draft, op: Op) -> None:
    """Row by row in both shapes, whatever lies how in memory."""
    before, after = draft.shape(op.inputs[0]), draft.shape(op.output)
    if op.output in draft.last:
        source = draft.read(op.inputs[0], channels_last=False)
        walk = Walk.over(
            after, steps_of(after, False), steps_of(after, False), draft.steps_of(op.output)
        )
        if walk.is_contiguous:
            draft.alias(op, source)
            return
        call = f"hs_copy({draft.walk(op.output, walk)}, {source}, {draft.names[op.output]});"
        draft.add(op, [call], [source], "copy", walk.size)
        return
    _copy(draft, op, before, draft.steps_of(op.inputs[0]), steps_of(before, False))


def transpose(draft: Draft, op: Op) -> None:
    """Axis i of the output is axis ``perm[i]`` of the input."""
    steps = draft.steps_of(op.inputs[0])
    moved = [steps[axis] for axis in op.attrs["perm"]]
    _copy(draft, op, draft.shape(op.output), moved, draft.steps_of(op.output))


def expand(draft: Draft, op: Op) -> None:
    """Axes of size 1, and new ones in front, are repeated."""
    out = draft.shape(op.output)
    steps = broadcast_steps(draft.shape(op.inputs[0]), draft.steps_of(op.inputs[0]), out)
    _copy(draft, op, out, steps, draft.steps_of(op.output))


def upsample_nearest(draft: Draft, op: Op) -> None:
    """Every spatial axis is two: the input's, and one of repetitions."""
    factors = (1, 1, *op.attrs["factors"])
    own, out = draft.steps_of(op.inputs[0]), draft.steps_of(op.output)
    sizes, a, b = [], [], []
    for size, factor, step, out_step in zip(
        draft.shape(op.inputs[0]), factors, own, out, strict=True
    ):
        sizes += [size, factor]
        a += [step, 0]
        b += [out_step * factor, out_step]
    _copy(draft, op, sizes, a, b)


def slice_(draft: Draft, op: Op) -> None:
    """Begins somewhere, and takes every so many-th value of one axis."""
    axis, start = op.attrs["axis"], op.attrs["start"]
    steps = list(draft.steps_of(op.inputs[0]))
    origin = start * steps[axis]
    steps[axis] *= op.attrs["step"]
    source = draft.read(op.inputs[0])
    walk = Walk.over(draft.shape(op.output), steps, steps, draft.steps_of(op.output))
    variable = draft.names[op.output]
    call = f"hs_copy({draft.walk(op.output, walk)}, {source} + {origin}, {variable});"
    draft.add(op, [call], [source], "copy", walk.size)


def concat(draft: Draft, op: Op) -> None:
    """Each part has its place in the output."""
    axis, out = op.attrs["axis"], draft.steps_of(op.output)
    variable = draft.names[op.output]
    calls, reads, begin = [], [], 0
    for index, name in enumerate(op.inputs):
        source, shape = draft.read(name), draft.shape(name)
        walk = draft.walk(
            f"{op.output}/{index}",
            Walk.over(shape, draft.steps_of(name), draft.steps_of(name), out),
        )
        calls.append(f"hs_copy({walk}, {source}, {variable} + {begin * out[axis]});")
        reads.append(source)
        begin += shape[axis]
    draft.add(op, calls, reads, "copy", draft.size(op.output))


def pad(draft: Draft, op: Op) -> None:
    """A box of the input in the middle, and boxes of repeated values or of zeros around it."""
    source, variable = draft.read(op.inputs[0]), draft.names[op.output]
    own, out = draft.steps_of(op.inputs[0]), draft.steps_of(op.output)
    parts = [
        _parts(op, size, before, after)
        for size, (before, after) in zip(
            draft.shape(op.inputs[0]), op.attrs["padding"], strict=True
        )
    ]
    calls = []
    if op.attrs["mode"] == "constant":
        zero = draft.zero(op.inputs[0])
        calls.append(f"memset({variable}, {zero}, {draft.size(op.output)});")
    for index, box in enumerate(itertools.product(*parts)):
        sizes = tuple(part[0] for part in box)
        steps = [step * part[2] for step, part in zip(own, box, strict=True)]
        begin = sum(step * part[1] for step, part in zip(own, box, strict=True))
        end = sum(step * part[3] for step, part in zip(out, box, strict=True))
        walk = draft.walk(f"{op.output}/{index}", Walk.over(sizes, steps, steps, out))
        calls.append(f"hs_copy({walk}, {source} + {begin}, {variable} + {end});")
    draft.add(op, calls, [source], "copy", draft.size(op.output))


def _parts(op: Op, size: int, before: int, after: int) -> list[tuple[int, int, int, int]]:
    """Parts of one axis: how many, from where in the input, in which steps, to where."""
    cropped = max(-before, 0), max(-after, 0)
    middle = (size - sum(cropped), cropped[0], 1, max(before, 0))
    mode = op.attrs["mode"]
    if mode == "constant" or (before <= 0 and after <= 0):
        return [middle]
    # Where the values in front and behind come from, and in which direction.
    sources = {
        "replicate": (0, 0, size - 1, 0),
        "reflect": (before, -1, size - 2, -1),
        "circular": (size - before, 1, 0, 1),
    }
    if mode not in sources or min(before, after) < 0 or max(before, after) > size:
        raise ExportError(
            f"{op.output}: padding ({before}, {after}) of {size} values in mode {mode!r} has no "
            "form in C; pad by at most the size, on both ends, in mode 'reflect', 'replicate', "
            "'circular' or with zeros"
        )
    first, first_step, second, second_step = sources[mode]
    parts = [(before, first, first_step, 0), middle, (after, second, second_step, before + size)]
    return [part for part in parts if part[0] > 0]


def embedding(draft: Draft, op: Op) -> None:
    """Rows of a constant table."""
    table, index = (draft.read(name) for name in op.inputs)
    width, n_rows = draft.shape(op.inputs[0])[-1], draft.size(op.inputs[1])
    call = f"hs_gather({table}, {width}, {index}, {n_rows}, {draft.names[op.output]});"
    draft.add(op, [call], [table, index], "copy", n_rows * width)
