"""Which codes a tensor can really hold: those of its type, less what clamps and tables cut."""

from collections.abc import Mapping

import numpy as np

from halfstep.core.execution import Execution
from halfstep.program.ir import IntProgram, Op

Range = tuple[int, int]


def code_ranges(program: IntProgram) -> Mapping[str, Range]:
    """The smallest and the largest code of each tensor of codes, over all inputs of the program."""
    ranges: dict[str, Range] = {}
    for name, tensor in program.tensors.items():
        if tensor.grid is not None:
            ranges[name] = tensor.grid.qtype.qmin, tensor.grid.qtype.qmax
            if tensor.data is not None and tensor.data.size:
                ranges[name] = int(tensor.data.min()), int(tensor.data.max())
    for op in program.ops:
        if program.tensors[op.output].grid is not None:
            ranges[op.output] = _made(program, op, ranges)
    return ranges


def read_range(program: IntProgram, op: Op, ranges: Mapping[str, Range]) -> Range:
    """The codes that a sum of products reads: those of its first input, and of its padding."""
    low, high = ranges[op.inputs[0]]
    if any(margin != (0, 0) for margin in op.attrs.get("padding", ())):
        zero = int(program.grid(op.inputs[0]).zero_point)
        return min(low, zero), max(high, zero)
    return low, high


def _made(program: IntProgram, op: Op, ranges: Mapping[str, Range]) -> Range:
    qtype = program.grid(op.output).qtype
    low, high = op.clamp or (qtype.qmin, qtype.qmax)
    if op.kind == "lookup":
        table = program.constant(op.inputs[1])
        first, last = (
            code - program.grid(op.inputs[0]).qtype.qmin for code in ranges[op.inputs[0]]
        )
        found = table[first : last + 1]
        return max(low, int(found.min())), min(high, int(found.max()))
    if op.execution is not Execution.COPY:
        return low, high
    ends = [end for name in op.inputs if name in ranges for end in ranges[name]]
    if op.kind == "pad":
        ends.append(int(program.grid(op.output).zero_point))
    return int(np.clip(min(ends), low, high)), int(np.clip(max(ends), low, high))
