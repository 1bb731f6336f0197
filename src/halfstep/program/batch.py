"""Where the samples of a batch lie in each value of a program.

One axis grows with the batch, and most often it is the batch. A reshape may join it with others,
as attention with the tokens in front does: (tokens, N, channels) becomes (tokens * N, channels),
where the values of one sample are not neighbours.
"""

import math

from halfstep.core.execution import BATCH
from halfstep.errors import ProgramError
from halfstep.program.ir import IntProgram, Op


def outer_sizes(program: IntProgram) -> dict[str, int]:
    """For each value, how often the samples follow one another along the axis that grows.

    That axis is (outer, samples, inner) in one: 1 where it begins with the samples.

    Raises:
        ProgramError: a reshape that leaves no such axis.
    """
    found = dict.fromkeys(program.tensors, 1)
    for op in program.ops:
        grown = [name for name in op.inputs if BATCH in program.tensor(name).shape]
        if grown and op.kind == "reshape":
            found[op.output] = _reshaped(program, op, found[grown[0]])
        elif grown:
            found[op.output] = max(found[name] for name in grown)
    return found


def batch_multiples(program: IntProgram) -> dict[str, int]:
    """For each value, how many times the number of samples the axis is long that grows with it."""
    found = dict.fromkeys(program.tensors, 1)
    for op in program.ops:
        grown = [name for name in op.inputs if BATCH in program.tensor(name).shape]
        if grown:
            found[op.output] = max(found[name] for name in grown)
        if grown and op.kind == "reshape":
            before, after = (_sample_size(program, name) for name in (grown[0], op.output))
            found[op.output] = found[op.output] * before // after
    return found


def _sample_size(program: IntProgram, name: str) -> int:
    return math.prod(size for size in program.tensor(name).shape if size != BATCH)


def _reshaped(program: IntProgram, op: Op, outer: int) -> int:
    """What lies in front of the samples, in memory, lies in front of them in any shape."""
    before, after = (program.tensor(name).shape for name in (op.inputs[0], op.output))
    in_front = math.prod(before[: before.index(BATCH)]) * outer
    known = math.prod(after[: after.index(BATCH)])
    if in_front % known:
        raise ProgramError(
            f"{op.output}: reshape from {list(before)} to {list(after)} tears samples apart; "
            "keep the batch an axis of its own"
        )
    return in_front // known
