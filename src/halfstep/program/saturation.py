"""Proofs that sums of products fit: in int32, in 24 bits, or two by two in int16.

From the codes of the weights and the range of the input codes, over all inputs there can be:

- ``int32`` and ``int24``: the accumulators. The bound is that of every partial sum, in whatever
  order products and bias are added: all that is positive, and all that is negative.
- ``int16_pairs``: sums of two neighbouring products (``program.pairs``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfstep.core.execution import Execution
from halfstep.core.qtype import PAIR_SUM_BITS
from halfstep.errors import counted, unknown_name
from halfstep.program.bounds import WEIGHTED, accumulator_bounds, weight_rows
from halfstep.program.code_ranges import Range, code_ranges, read_range
from halfstep.program.ir import IntProgram, Op
from halfstep.program.pairs import adds_pairs, pair_sums

Bounds = tuple[NDArray[np.int64], NDArray[np.int64]]

# How many channels a line of text names.
_NAMED = 8

PROPERTY = "halfstep.pair_sums"
"""A property of files whose sums of two products are proven; its value is ``PROVEN``."""

PROVEN = "int16"


@dataclass(frozen=True)
class OpSums:
    """The sums of one operation.

    Attributes:
        site: its output.
        kind: of the operation.
        lowest: the smallest sum that any input gives.
        highest: the largest one.
        channels: how many output channels have bounds of their own.
        unsafe: those whose sums may leave the accumulator.
    """

    site: str
    kind: str
    lowest: int
    highest: int
    channels: int
    unsafe: tuple[int, ...]

    @property
    def safe(self) -> bool:
        """Whether no input overflows."""
        return not self.unsafe

    @property
    def found(self) -> str:
        """The bounds and the first of the unsafe channels, for people."""
        bounds = f"sums from {self.lowest} to {self.highest}"
        if self.safe:
            return bounds
        named = ", ".join(map(str, self.unsafe[:_NAMED]))
        more = f" and {len(self.unsafe) - _NAMED} more" if len(self.unsafe) > _NAMED else ""
        count = f"{len(self.unsafe)} of {self.channels} channels may overflow"
        return f"{bounds}; {count}: {named}{more}"

    def __str__(self) -> str:
        return f"{self.site}: {self.kind}: {self.found}"


@dataclass(frozen=True, repr=False)
class SumsProof:
    """What ``prove_sums`` found.

    Attributes:
        accumulator: the name of what the sums have to fit.
        bits: its bits.
        ops: every operation that adds in it, in order of execution.
    """

    accumulator: str
    bits: int
    ops: tuple[OpSums, ...]

    @property
    def unsafe(self) -> tuple[OpSums, ...]:
        """The operations that may overflow."""
        return tuple(op for op in self.ops if not op.safe)

    @property
    def safe(self) -> bool:
        """Whether no input overflows any sum."""
        return not self.unsafe

    def __repr__(self) -> str:
        return str(self)  # what a notebook shows

    def __str__(self) -> str:
        if not self.ops:
            return (
                f"{self.accumulator}: nothing to prove: no operation adds products of codes in it"
            )
        limit = 1 << (self.bits - 1)
        fit = f"fit {-limit} to {limit - 1}"
        every = counted(len(self.ops), "operation")
        of_all = f"all {every}" if len(self.ops) > 1 else every
        head = f"proven: the sums of {of_all} {fit}, whatever the input"
        if not self.safe:
            head = f"not proven: the sums of {len(self.unsafe)} of {every} may not {fit}"
        return "\n".join([f"{self.accumulator}: {head}", *(f"  {op}" for op in self.ops)])


def prove_sums(program: IntProgram, accumulator: str = "int16_pairs") -> SumsProof:
    """Bound every sum of products of ``program``, over all inputs.

    Args:
        program: from ``lower``.
        accumulator: "int16_pairs", in which x86 CPUs without VNNI add two products of uint8 and
            int8; "int24", as some NPUs and DSPs have it; or "int32".

    Raises:
        UnknownNameError: no such accumulator.

    Example:
        print(halfstep.prove_sums(program, "int16_pairs"))
    """
    if accumulator not in ACCUMULATORS:
        raise unknown_name("accumulator", accumulator, ACCUMULATORS)
    bits, adds, bounds = ACCUMULATORS[accumulator]
    ranges, limit = code_ranges(program), 1 << (bits - 1)
    found = []
    for op in program.ops:
        if not adds(program, op):
            continue
        lowest, highest = bounds(program, op, ranges)
        unsafe = np.flatnonzero((lowest < -limit) | (highest >= limit))
        ends = int(lowest.min()), int(highest.max())
        found.append(OpSums(op.output, op.kind, *ends, len(lowest), tuple(map(int, unsafe))))
    return SumsProof(accumulator, bits, tuple(found))


def _accumulates(program: IntProgram, op: Op) -> bool:
    del program
    sums = op.kind in (*WEIGHTED, "matmul")
    return sums and op.execution in (Execution.INTEGER, Execution.SCALED)


def _partial_sums(program: IntProgram, op: Op, ranges: Mapping[str, Range]) -> Bounds:
    """All negative products and a negative bias together, and all positive ones."""
    if op.kind == "matmul":
        bound = accumulator_bounds(program, op)
        return -bound, bound
    zero = int(program.grid(op.inputs[0]).zero_point)
    steps = [code - zero for code in read_range(program, op, ranges)]
    rows = weight_rows(op, program.constant(op.inputs[1])).astype(np.int64)
    products = np.stack([np.zeros_like(rows), *(rows * step for step in steps)])
    lowest, highest = products.min(axis=0).sum(axis=1), products.max(axis=0).sum(axis=1)
    if len(op.inputs) > 2:
        bias = program.constant(op.inputs[2]).astype(np.int64)
        return lowest + np.minimum(bias, 0), highest + np.maximum(bias, 0)
    return lowest, highest


# By name: bits, which operations add in it, and the bounds of their sums.
ACCUMULATORS: Mapping[
    str,
    tuple[
        int,
        Callable[[IntProgram, Op], bool],
        Callable[[IntProgram, Op, Mapping[str, Range]], Bounds],
    ],
] = {
    "int32": (32, _accumulates, _partial_sums),
    "int24": (24, _accumulates, _partial_sums),
    "int16_pairs": (PAIR_SUM_BITS, adds_pairs, pair_sums),
}
