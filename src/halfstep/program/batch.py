"""Where the samples of a batch lie in each value of a program, and whether they stay apart.

One axis grows with the batch, and most often it is the batch. A reshape may join it with others,
as attention with the tokens in front does: (tokens, N, channels) becomes (tokens * N, channels),
where the values of one sample are not neighbours.

A runtime that is given one sample at a time computes something else where a program adds samples
up, joins them or picks some, and no comparison of integers need show it: such sums may be float.
"""

import math
from collections.abc import Iterable

from halfstep.core.execution import BATCH
from halfstep.errors import ProgramError
from halfstep.program.ir import IntProgram, Op

Shape = tuple[int, ...]

# Operations over windows of space, or all of it.
_OVER_SPACE = frozenset(
    {
        *("conv", "conv_transpose", "max_pool", "avg_pool", "global_avg_pool"),
        *("upsample_nearest", "upsample_linear"),
    }
)


def outer_sizes(program: IntProgram) -> dict[str, int]:
    """For each value, how often the samples follow one another along the axis that grows.

    That axis is (outer, samples, inner) in one: 1 where it begins with the samples.

    Raises:
        ProgramError: a reshape that leaves no such axis, or an operation on several samples.
    """
    found, sizes = dict.fromkeys(program.tensors, 1), one_sample(program)
    for op in program.ops:
        grown = [name for name in op.inputs if BATCH in program.tensor(name).shape]
        _check_samples_stay_apart(program, op, {found[name] for name in grown})
        if grown and op.kind == "reshape":
            shape = program.tensor(op.output).shape
            size = sizes[op.output][shape.index(BATCH)]
            found[op.output] = _reshaped(program, op, found[grown[0]], size)
        elif grown:
            found[op.output] = found[grown[0]]
    return found


def _check_samples_stay_apart(program: IntProgram, op: Op, outer: set[int]) -> None:
    after = program.tensor(op.output).shape
    shapes = [program.tensor(name).shape for name in op.inputs]
    joined = after if op.kind == "concat" else shapes[0]
    mixed = any(joined[axis] == BATCH for axis in _mixed_axes(op, len(joined)))
    if op.kind == "matmul":
        mixed |= BATCH in (shapes[0][-1], shapes[1][-2:][0])
    if mixed or len(outer) > 1 or after.count(BATCH) > 1:
        raise ProgramError(
            f"{op.output}: {op.kind} of {', '.join(str(list(shape)) for shape in shapes)} reads "
            f"several samples of a batch at once, and target '{program.target}' runs one at a "
            "time; change it in the model, or take a target that runs batches, such as "
            "'onnxruntime'"
        )


def _mixed_axes(op: Op, rank: int) -> Iterable[int]:
    """The axes along which a result depends on more than the value in its own place."""
    if op.kind in ("mean", "sum"):
        axes: Iterable[int] = op.attrs["axes"]
        return axes
    if op.kind in ("softmax", "concat", "slice"):
        return (op.attrs["axis"] % rank,)
    if op.kind == "pad":
        return (axis for axis, margins in enumerate(op.attrs["padding"]) if margins != (0, 0))
    return range(2, rank) if op.kind in _OVER_SPACE else ()


def _reshaped(program: IntProgram, op: Op, outer: int, size: int) -> int:
    """What lies in front of the samples, in memory, lies in front of them in any shape.

    And what lies behind them, behind them; ``size`` is that of the axis that grows, for one sample.
    """
    before, after = (program.tensor(name).shape for name in (op.inputs[0], op.output))
    in_front = math.prod(before[: before.index(BATCH)]) * outer
    known = math.prod(after[: after.index(BATCH)])
    if in_front % known or size % (in_front // known):
        raise ProgramError(
            f"{op.output}: reshape from {list(before)} to {list(after)} tears samples apart; "
            "keep the batch an axis of its own"
        )
    return in_front // known


def one_sample(program: IntProgram) -> dict[str, Shape]:
    """The sizes of every tensor for one sample; an axis of ``BATCH`` may be a multiple of it."""
    found: dict[str, Shape] = {
        name: tensor.shape for name, tensor in program.tensors.items() if tensor.data is not None
    }
    for name in program.inputs:
        found[name] = _filled(program.tensor(name).shape, 1)
    for op in program.ops:
        shape = program.tensor(op.output).shape
        if op.kind == "reshape":
            known = math.prod(size for size in shape if size != BATCH)
            multiple = math.prod(found[op.inputs[0]]) // max(known, 1)
        else:
            grown = [
                found[name][axis]
                for name in op.inputs
                for axis, size in enumerate(program.tensor(name).shape)
                if size == BATCH
            ]
            multiple = max(grown, default=1)
        found[op.output] = _filled(shape, multiple)
    return found


def repeats(program: IntProgram, op: Op) -> Shape:
    """The shape of an expansion, 1 where an axis grows with the batch already, and stays as it is.

    It may be a multiple of the batch, and ``BATCH`` here is the number of samples itself.
    """
    shape: Shape = op.attrs["shape"]
    before = program.tensor(op.inputs[0]).shape
    before = (1,) * (len(shape) - len(before)) + before
    return tuple(1 if mine == BATCH else size for size, mine in zip(shape, before, strict=True))


def _filled(shape: Shape, multiple: int) -> Shape:
    return tuple(multiple if size == BATCH else size for size in shape)
