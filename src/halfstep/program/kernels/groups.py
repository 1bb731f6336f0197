"""Weights with a scale for each group of inputs: one exact integer sum a group.

The sums of an output cannot be added as integers, because each has another scale. They are
requantized in float32, one after the other in the order of the groups, and added in that order;
the bias comes last (``halfstep.core.requant.float_sum``). The order is part of the definition: it
gives the same bits in every backend.
"""

from collections.abc import Callable, Iterator

import numpy as np

from halfstep.core.requant import GROUPS, Scale
from halfstep.program.bounds import FLOAT32_EXACT, largest_step
from halfstep.program.kernels.setup import Array, Setup

# (input, weight, bias or None) -> sums
Contraction = Callable[[Array, Array, Array | None], Array]


def codes_of_groups(
    setup: Setup, contract: Contraction, channel_axis: int
) -> Callable[[Array], Array]:
    """Codes to codes of a conv or linear layer with group scales.

    Args:
        setup: of the operation; its weight is (outputs, inputs, *kernel).
        contract: adds products of steps and weights.
        channel_axis: the axis of the channels, in the input as in the output.
    """
    formula, grid = GROUPS[setup.op.formula or ""], setup.out_grid
    dtype = "float32" if _fits_float32(setup) else "float64"
    bias = _bias(setup, channel_axis)
    pieces = [
        (at, setup.constant(w, dtype), scale) for at, w, scale in _pieces(setup, channel_axis)
    ]

    def terms(steps: Array) -> Iterator[tuple[Array, Scale]]:
        for at, weight, scale in pieces:
            yield contract(steps[at], weight, None), scale
        yield from bias

    def run(x: Array) -> Array:
        steps = setup.steps(0, x, dtype)
        zero_point = int(grid.zero_point)
        return setup.saturate(formula(terms(steps), setup.grid(0).scale, grid.scale, zero_point))

    return run


def _pieces(
    setup: Setup, channel_axis: int
) -> Iterator[tuple[tuple[slice, ...], np.ndarray, Scale]]:
    """For each group: its part of the input, its weights there (0 beside them), its scales."""
    grid, weight = setup.grid(1), setup.program.constant(setup.op.inputs[1])
    assert grid.group_size is not None
    outputs, inputs, *kernel = weight.shape
    taps = int(np.prod(kernel))
    flat = weight.reshape(outputs, -1)
    before = (slice(None),) * (channel_axis % len(setup.out.shape))
    whole = setup.attrs.get("groups", 1) > 1
    for index, scale in enumerate(grid.scale.T):
        start = index * grid.group_size
        stop = min(start + grid.group_size, flat.shape[1])
        first, last = (0, inputs) if whole else (start // taps, -(-stop // taps))
        part = np.zeros((outputs, (last - first) * taps), weight.dtype)
        part[:, start - first * taps : stop - first * taps] = flat[:, start:stop]
        at = () if whole else (*before, slice(first, last))
        yield at, part.reshape(outputs, -1, *kernel), setup.along_channels(scale, channel_axis)


def _bias(setup: Setup, channel_axis: int) -> list[tuple[Array, Scale]]:
    """The bias as the last sum, on the scale that the program gives it; none if there is none."""
    if len(setup.op.inputs) < 3:
        return []
    scale = setup.along_channels(setup.grid(1).channel_scale, channel_axis)
    codes = setup.along_channels(setup.program.constant(setup.op.inputs[2]), channel_axis)
    return [(setup.constant(codes, "float64"), scale)]


def _fits_float32(setup: Setup) -> bool:
    """Whether the sum of every group is exact in float32."""
    grid, weight = setup.grid(1), setup.program.constant(setup.op.inputs[1])
    assert grid.group_size is not None
    flat = np.abs(weight.astype(np.int64)).reshape(len(weight), -1)
    starts = np.arange(0, flat.shape[1], grid.group_size)
    largest = int(np.add.reduceat(flat, starts, axis=1).max())
    return largest * largest_step(setup.grid(0)) < FLOAT32_EXACT
