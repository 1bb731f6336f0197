"""How large the accumulators of a program can get: computed from codes, never assumed."""

import numpy as np
from numpy.typing import NDArray

from halfstep.core.grid import Affine
from halfstep.program.ir import IntProgram, Op

# Operations whose second input is a constant weight.
WEIGHTED = ("conv", "conv_transpose", "linear")


def weight_axis(op: Op) -> int:
    """The axis of the weight that the output channels run along."""
    return 1 if op.kind == "conv_transpose" else 0


def largest_step(grid: Affine) -> int:
    """The largest ``|code - zero_point|`` on a per-tensor grid."""
    zero_point = int(grid.zero_point)
    return max(zero_point - grid.qtype.qmin, grid.qtype.qmax - zero_point)


def accumulator_bounds(program: IntProgram, op: Op) -> NDArray[np.int64]:
    """The largest ``|sum of products + bias|`` of each output channel, over all inputs.

    For a matmul of two activations, whose codes are not known, the one bound for all channels.
    """
    steps = largest_step(program.grid(op.inputs[0]))
    if op.kind == "matmul":
        inner = program.tensor(op.inputs[0]).shape[-1]
        return np.array([inner * steps * largest_step(program.grid(op.inputs[1]))], np.int64)
    weight = program.tensor(op.inputs[1]).data
    assert weight is not None, "check() has seen that weights are constants"
    axis = weight_axis(op)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    magnitude = np.abs(weight.astype(np.int64)).sum(axis=others)
    if op.kind == "conv_transpose":
        magnitude = np.tile(magnitude, op.attrs["groups"])
    bias = program.tensors[op.inputs[2]].data if len(op.inputs) > 2 else np.int64(0)
    assert bias is not None, "check() has seen that biases are constants"
    return magnitude * steps + np.abs(bias.astype(np.int64))
