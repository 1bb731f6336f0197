"""Conv, transposed conv, linear and matmul: exact integer sums, then one requantization.

The sums are computed on integer-valued floats. That is exact: ``Call.float32_is_exact`` was
derived from a bound on the sums, and float64 is used where the bound is too large.
"""

import numpy as np
from array_api_compat import array_namespace

from halfstep.core.requant import ACCUMULATOR, like
from halfstep.program.kernels.call import Array, Call


def conv(call: Call) -> Array:
    """1-d or 2-d convolution of (N, C, *spatial)."""
    attrs = call.op.attrs
    x = pad_spatial(call.steps(0), attrs["padding"], 0)
    weight = call.steps(1)
    acc = call.backend.convolve(x, weight, attrs["stride"], attrs["dilation"], attrs["groups"])
    return _finish(call, acc, channel_axis=1)


def conv_transpose(call: Call) -> Array:
    """Transposed 1-d or 2-d convolution of (N, C, *spatial)."""
    return _finish(call, transposed_sums(call, call.steps(0), call.steps(1)), channel_axis=1)


def transposed_sums(call: Call, x: Array, weight: Array) -> Array:
    """Zeros between the inputs, then a convolution with (in, out / groups, *kernel) flipped."""
    attrs = call.op.attrs
    xp = array_namespace(x)
    groups, spatial = attrs["groups"], tuple(range(2, x.ndim))
    for axis, stride in zip(spatial, attrs["stride"], strict=True):
        x = _spread(x, axis, stride)
    grouped = xp.reshape(weight, (groups, weight.shape[0] // groups, *weight.shape[1:]))
    swapped = xp.flip(xp.moveaxis(grouped, 2, 1), axis=tuple(axis + 1 for axis in spatial))
    flipped = xp.reshape(swapped, (-1, weight.shape[0] // groups, *weight.shape[2:]))
    margins = [
        (d * (k - 1) - begin, d * (k - 1) - end + extra)
        for d, k, (begin, end), extra in zip(
            attrs["dilation"], weight.shape[2:], attrs["padding"], attrs["output_padding"], strict=True
        )
    ]
    ones = (1,) * len(spatial)
    return call.backend.convolve(pad_spatial(x, margins, 0), flipped, ones, attrs["dilation"], groups)


def _spread(x: Array, axis: int, stride: int) -> Array:
    """Put ``stride - 1`` zeros between neighbours along ``axis``."""
    if stride == 1:
        return x
    xp = array_namespace(x)
    shape = list(x.shape)
    shape.insert(axis + 1, stride - 1)
    wide = xp.concat([xp.expand_dims(x, axis=axis + 1), xp.zeros(shape, dtype=x.dtype)], axis=axis + 1)
    flat = xp.reshape(wide, (*x.shape[:axis], x.shape[axis] * stride, *x.shape[axis + 1 :]))
    return flat[(slice(None),) * axis + (slice(0, flat.shape[axis] - stride + 1),)]


def pad_spatial(x: Array, margins: list[tuple[int, int]], value: float) -> Array:
    """Pad the trailing axes by (before, after); negative margins crop."""
    xp = array_namespace(x)
    for offset, (before, after) in enumerate(margins):
        axis = x.ndim - len(margins) + offset
        head = (slice(None),) * axis
        x = x[(*head, slice(max(-before, 0), x.shape[axis] - max(-after, 0)))]
        parts = [(before, True), (after, False)]
        for size, at_front in parts:
            if size > 0:
                shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
                margin = xp.full(shape, value, dtype=x.dtype, device=x.device)
                x = xp.concat([margin, x] if at_front else [x, margin], axis=axis)
    return x


def linear(call: Call) -> Array:
    """(..., in) times the transpose of (out, in)."""
    x, weight = call.steps(0), call.steps(1)
    return _finish(call, x @ weight.T, channel_axis=-1)


def matmul(call: Call) -> Array:
    """A product of two activations, times ``attrs["alpha"]``."""
    acc = call.steps(0) @ call.steps(1)
    grid, alpha = call.out_grid, np.float32(call.op.attrs["alpha"])
    scales = call.grid(0).scale, call.grid(1).scale, grid.scale / alpha
    codes = ACCUMULATOR[call.op.formula or ""](acc, *scales, int(grid.zero_point))
    return call.saturate(codes)


def _finish(call: Call, acc: Array, channel_axis: int) -> Array:
    """Add the bias, which may not fit float32's mantissa, and requantize each channel."""
    xp = array_namespace(acc)

    def channels(values: np.ndarray) -> np.ndarray:
        shape = [1] * acc.ndim
        shape[channel_axis] = -1
        return values.reshape(shape) if values.ndim else values

    if len(call.inputs) > 2:
        bias = xp.reshape(call.inputs[2], channels(np.empty(call.inputs[2].shape[0])).shape)
        acc = xp.astype(acc, xp.float64) + bias
    grid = call.out_grid
    scale_weight = channels(call.grid(1).scale)
    formula = ACCUMULATOR[call.op.formula or ""]
    return call.saturate(
        formula(acc, call.grid(0).scale, scale_weight, grid.scale, int(grid.zero_point))
    )
