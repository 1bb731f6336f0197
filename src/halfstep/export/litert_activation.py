"""Bounds on codes as the activation functions that the format fuses."""

import numpy as np

from halfstep.program.ir import IntProgram, Op


def bounds(program: IntProgram, op: Op) -> tuple[int, int]:
    """The lowest and the highest code that ``op`` makes."""
    qtype = program.grid(op.output).qtype
    return op.clamp or (qtype.qmin, qtype.qmax)


def fused_activation(program: IntProgram, op: Op) -> str | None:
    """The activation with exactly the bounds of ``op``; ``None`` if no activation has them.

    Runtimes make the code of 6 in different ways, so ReLU6 it is only where all of them agree.
    """
    grid = program.tensor(op.output).grid
    if grid is None:
        return "NONE"
    info, zero = np.iinfo(grid.qtype.storage), int(grid.zero_point)
    low, high = bounds(program, op)
    if (low, high) == (info.min, info.max):
        return "NONE"
    if (low, high) == (zero, info.max):
        return "RELU"
    one, six = np.float32(1), np.float32(6)
    steps = [six / grid.scale, six * (one / grid.scale)]
    ends = {int(np.rint(step)) for step in steps} | {int(np.floor(step + 0.5)) for step in steps}
    codes = {min(zero + end, info.max) for end in ends}
    return "RELU6" if low == zero and codes == {high} else None
