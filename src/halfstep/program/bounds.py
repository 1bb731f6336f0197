"""How large the accumulators of a program can get: computed from codes, never assumed."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core.execution import BATCH
from halfstep.core.grid import Affine
from halfstep.program.ir import IntProgram, Op

# Operations whose second input is a constant weight.
WEIGHTED = ("conv", "conv_transpose", "linear")

# Operations that add up the steps of codes.
REDUCED = ("global_avg_pool", "mean", "sum")

# Integers below this are exact in float32, and so are their sums, in whatever order.
FLOAT32_EXACT = 2**24

# A sum is cut into at most so many parts; what would need more is added in float64.
MOST_PARTS = 8


def weight_axis(op: Op) -> int:
    """The axis of the weight that the output channels run along."""
    return 1 if op.kind == "conv_transpose" else 0


def weight_scales(op: Op, weight: Affine) -> NDArray[np.float32]:
    """The scale of the weights, or the largest one for each output channel: that of its bias.

    All groups of a transposed convolution share the scales along the axis of their outputs.
    """
    repeated = op.kind == "conv_transpose" and weight.axis is not None
    scale = weight.channel_scale
    return np.tile(scale, op.attrs["groups"]) if repeated else scale


def weight_rows(op: Op, weight: NDArray[Any]) -> NDArray[Any]:
    """The weights that each output channel adds products of: (channels, terms)."""
    if op.kind != "conv_transpose":
        return weight.reshape(len(weight), -1)
    groups = op.attrs["groups"]
    grouped = weight.reshape(groups, -1, *weight.shape[1:])  # inputs, then outputs, of a group
    return np.moveaxis(grouped, 2, 1).reshape(groups * weight.shape[1], -1)


def largest_step(grid: Affine) -> int:
    """The largest ``|code - zero_point|`` on a per-tensor grid."""
    zero_point = int(grid.zero_point)
    return max(zero_point - grid.qtype.qmin, grid.qtype.qmax - zero_point)


def accumulator_bounds(program: IntProgram, op: Op) -> NDArray[np.int64]:
    """The largest ``|sum of products + bias|`` of each output channel, over all inputs.

    For a matmul of two activations, whose codes are not known, and for means and sums, the one
    bound for all channels; no int32 holds a sum over the batch, which has no largest size. The
    sums of groups of weights are within that of all of them.
    """
    steps = largest_step(program.grid(op.inputs[0]))
    if op.kind == "matmul":
        terms = _terms(program, op, [-1])
        return np.array([terms * steps * largest_step(program.grid(op.inputs[1]))], np.int64)
    if op.kind in REDUCED:
        return np.array([reduced_terms(program, op) * steps], np.int64)
    rows = weight_rows(op, program.constant(op.inputs[1])).astype(np.int64)
    bounds: NDArray[np.int64] = np.abs(rows).sum(axis=1) * steps
    if len(op.inputs) > 2:
        bounds = bounds + np.abs(program.constant(op.inputs[2]).astype(np.int64))
    return bounds


def reduced_terms(program: IntProgram, op: Op) -> int:
    """How many values a mean or a sum adds."""
    space = range(2, len(program.tensor(op.inputs[0]).shape))
    return _terms(program, op, op.attrs.get("axes", space))


def _terms(program: IntProgram, op: Op, axes: Iterable[int]) -> int:
    """How many values are added up along these axes of the first input."""
    shape = program.tensor(op.inputs[0]).shape
    sizes = [shape[axis] for axis in axes]
    return int(np.iinfo(np.int32).max) if BATCH in sizes else math.prod(sizes)


def float32_parts(weight: NDArray[Any], steps: int, groups: int) -> list[slice]:
    """Input channels in the fewest parts whose sums of products are exact in float32.

    Args:
        weight: codes, (outputs, inputs of a group, *kernel).
        steps: the largest ``|code - zero_point|`` of the input.
        groups: with more than one, only all channels at once will do.

    Returns:
        Slices of the second axis of ``weight``; none if float64 is needed.
    """
    magnitude = np.abs(weight.astype(np.int64)).reshape(*weight.shape[:2], -1).sum(axis=2) * steps
    channels = weight.shape[1]
    for n_parts in range(1, min(channels, MOST_PARTS if groups == 1 else 1) + 1):
        edges = [channels * i // n_parts for i in range(n_parts + 1)]
        parts = [slice(*pair) for pair in itertools.pairwise(edges)]
        if n_parts == 1:
            parts = [slice(None)]
        if all(magnitude[:, part].sum(axis=1).max() < FLOAT32_EXACT for part in parts):
            return parts
    return []
