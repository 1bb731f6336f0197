"""Conv, transposed conv, linear and matmul: exact integer sums, then one rescaling.

The sums are computed on integer-valued floats: in float32 as long as a bound on the sums, computed
from the weights, proves that to be exact, at once or over a few parts of the input channels; else
in float64.
"""

from collections.abc import Callable, Mapping
from typing import Any

import array_api_compat.numpy
import numpy as np
from numpy.typing import NDArray

from halfstep.core import fake_quantize
from halfstep.core.execution import Execution
from halfstep.core.requant import SCALED
from halfstep.program.bounds import (
    FLOAT32_EXACT,
    accumulator_bounds,
    float32_parts,
    largest_step,
    weight_scales,
)
from halfstep.program.formulas import SUMS
from halfstep.program.kernels.copies import padded
from halfstep.program.kernels.groups import Contraction, codes_of_groups
from halfstep.program.kernels.setup import Array, Setup, Step


def conv(setup: Setup) -> Step:
    """1-d or 2-d convolution of (N, C, *spatial)."""
    attrs, zero = setup.attrs, setup.zero(0)
    shape = attrs["stride"], attrs["dilation"], attrs["groups"]

    def convolve(x: Array, weight: Array, bias: Array | None) -> Array:
        return setup.backend.convolve(x, weight, bias, *shape)

    weight = setup.program.constant(setup.op.inputs[1])
    codes = _codes(setup, weight, convolve, channel_axis=1)
    # Padding codes before they become floats moves a quarter of the bytes.
    return lambda x, *_: codes(padded(setup.xp, x, attrs["padding"], zero))


def conv_transpose(setup: Setup) -> Step:
    """Transposed 1-d or 2-d convolution of (N, C, *spatial)."""
    groups = setup.attrs["groups"]
    weight = as_convolution(
        array_api_compat.numpy, setup.program.constant(setup.op.inputs[1]), groups
    )

    def convolve(x: Array, weight: Array, bias: Array | None) -> Array:
        return transposed(setup, x, weight, bias)

    codes = _codes(setup, weight, convolve, channel_axis=1)
    return lambda x, *_: codes(x)


def linear(setup: Setup) -> Step:
    """(..., in) times the transpose of (out, in)."""
    weight = setup.program.constant(setup.op.inputs[1])
    codes = _codes(setup, weight, setup.backend.linear, channel_axis=-1)
    return lambda x, *_: codes(x)


def matmul(setup: Setup) -> Step:
    """A product of two activations, times ``attrs["alpha"]``."""
    exact = accumulator_bounds(setup.program, setup.op).max() < FLOAT32_EXACT
    dtype = "float32" if exact else "float64"
    finish = _finish(setup, setup.grid(1).scale, setup.attrs["alpha"])

    def run(a: Array, b: Array) -> Array:
        return finish(setup.backend.matmul(setup.steps(0, a, dtype), setup.steps(1, b, dtype)))

    return run


def _codes(
    setup: Setup, weight: NDArray[Any], contract: Contraction, channel_axis: int
) -> Callable[[Array], Array]:
    """Codes to codes, or to real values; ``weight`` is (outputs, inputs, *kernel)."""
    if setup.grid(1).group_size is not None:
        return codes_of_groups(setup, contract, channel_axis)
    has_bias = len(setup.op.inputs) > 2
    bias = setup.program.constant(setup.op.inputs[2]) if has_bias else None
    scales = setup.along_channels(weight_scales(setup.op, setup.grid(1)), channel_axis)
    # A bias of zeros is none to a runtime that adds it as real values: it drops the addition.
    formula, no_bias = setup.op.formula, bias is None or not bias.any()
    if bias is not None and not no_bias and formula in fake_quantize.WITH_BIAS:
        sums = _sums(setup, weight, contract, channel_axis, None)
        real = bias.astype(np.float32) * (
            setup.grid(0).scale * weight_scales(setup.op, setup.grid(1))
        )
        finish = _with(
            setup, fake_quantize.WITH_BIAS, scales, setup.along_channels(real, channel_axis)
        )
    elif formula in fake_quantize.WITH_ZEROS:
        sums = _sums(setup, weight, contract, channel_axis, None)
        total = weight.astype(np.int64).reshape(len(weight), -1).sum(axis=1) * setup.zero(0)
        finish = _with(
            setup, fake_quantize.WITH_ZEROS, scales, setup.along_channels(total, channel_axis)
        )
    else:
        sums = _sums(setup, weight, contract, channel_axis, bias)
        finish = _finish(setup, scales)
    return lambda x: finish(sums(x))


def _sums(
    setup: Setup,
    weight: NDArray[Any],
    contract: Contraction,
    channel_axis: int,
    bias: NDArray[Any] | None,
) -> Callable[[Array], Array]:
    """Codes to exact accumulators with ``bias``; ``weight`` is (outputs, inputs, *kernel)."""
    constant = setup.constant
    parts = float32_parts(weight, largest_step(setup.grid(0)), setup.attrs.get("groups", 1))
    dtype = "float32" if parts else "float64"
    fits = dtype == "float64" or accumulator_bounds(setup.program, setup.op).max() < FLOAT32_EXACT
    if len(parts) <= 1 and fits:
        whole = constant(weight, dtype), None if bias is None else constant(bias, dtype)
        return lambda x: contract(setup.steps(0, x, dtype), *whole)

    axis = channel_axis % len(setup.out.shape)
    pieces = [((slice(None),) * axis + (part,), constant(weight[:, part], dtype)) for part in parts]
    column = None if bias is None else constant(setup.along_channels(bias, channel_axis), "float64")

    def run(x: Array) -> Array:
        steps = setup.steps(0, x, dtype)
        wide = setup.xp.float64
        acc = sum(setup.xp.astype(contract(steps[at], w, None), wide) for at, w in pieces)
        return acc if column is None else acc + column

    return run


def _finish(
    setup: Setup, scale: NDArray[np.float32], alpha: float = 1.0
) -> Callable[[Array], Array]:
    """Accumulators, with the scales of the second operand, to codes or to real values."""
    name, factor, first = setup.op.formula or "", np.float32(alpha), setup.grid(0).scale
    if setup.op.execution is Execution.SCALED:
        real = SCALED[name]
        if factor == 1:
            return lambda acc: real(acc, first, scale)
        return lambda acc: real(acc, first, scale) * float(factor)
    formula, grid = SUMS[name], setup.out_grid
    scales = first, scale, grid.scale / factor
    return lambda acc: setup.saturate(formula(acc, *scales, int(grid.zero_point)))


def _with(
    setup: Setup,
    table: Mapping[str, Callable[..., Array]],
    scale: NDArray[np.float32],
    addend: NDArray[Any],
) -> Callable[[Array], Array]:
    """Accumulators to codes, by a formula that is given ``addend``, one number a channel."""
    formula, grid, first = table[setup.op.formula or ""], setup.out_grid, setup.grid(0).scale
    numbers = addend.astype(np.float32), first, scale, grid.scale, int(grid.zero_point)
    return lambda acc: setup.saturate(formula(acc, *numbers))


def as_convolution(xp: Any, weight: Array, groups: int) -> Array:
    """(inputs, outputs of a group, *kernel), transposed, as (outputs, inputs of a group, *kernel).

    With zeros between the inputs, a transposed convolution is a convolution with the kernel turned
    around.
    """
    n_inputs, n_outputs, *kernel = weight.shape
    grouped = xp.reshape(weight, (groups, n_inputs // groups, n_outputs, *kernel))
    swapped = xp.moveaxis(grouped, 2, 1)
    turned = xp.flip(swapped, axis=tuple(range(3, swapped.ndim)))
    return xp.reshape(turned, (groups * n_outputs, n_inputs // groups, *kernel))


def transposed(setup: Setup, x: Array, weight: Array, bias: Array | None) -> Array:
    """Transposed convolution of ``x`` with a weight from ``as_convolution``."""
    attrs, xp = setup.attrs, setup.xp
    sizes = [s * (size - 1) + 1 for s, size in zip(attrs["stride"], x.shape[2:], strict=True)]
    wide = xp.zeros((*x.shape[:2], *sizes), dtype=x.dtype, device=x.device)
    wide[(..., *(slice(None, None, s) for s in attrs["stride"]))] = x
    margins = [
        (d * (k - 1) - begin, d * (k - 1) - end + extra)
        for d, k, (begin, end), extra in zip(
            attrs["dilation"],
            weight.shape[2:],
            attrs["padding"],
            attrs["output_padding"],
            strict=True,
        )
    ]
    ones = (1,) * len(sizes)
    x = padded(xp, wide, margins, 0)
    return setup.backend.convolve(x, weight, bias, ones, attrs["dilation"], attrs["groups"])
