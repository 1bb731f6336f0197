"""Pooling over windows of (N, C, *spatial), and over all of space."""

import itertools
from collections.abc import Iterator

import numpy as np
from array_api_compat import array_namespace

from halfstep.core.pooling import MEAN
from halfstep.program.kernels.call import Array, Call
from halfstep.program.kernels.weighted import pad_spatial


def _windows(call: Call, x: Array) -> Iterator[Array]:
    """For each kernel tap, the values that it sees: (N, C, *out) each; ``x`` is padded."""
    attrs = call.op.attrs
    dilation = attrs.get("dilation", (1,) * len(attrs["kernel"]))
    sizes = call.out.shape[2:]
    for tap in itertools.product(*map(range, attrs["kernel"])):
        window = tuple(
            slice(t * d, t * d + s * (size - 1) + 1, s)
            for t, d, s, size in zip(tap, dilation, attrs["stride"], sizes, strict=True)
        )
        yield x[(slice(None), slice(None), *window)]


def max_pool(call: Call) -> Array:
    """The largest code of each window; padding never wins. Works on real values as well."""
    x = call.inputs[0]
    xp = array_namespace(x)
    lowest = -np.inf if call.grids[0] is None else call.grid(0).qtype.qmin
    out: Array = None
    for values in _windows(call, pad_spatial(x, call.op.attrs["padding"], lowest)):
        out = values if out is None else xp.maximum(out, values)
    return out


def avg_pool(call: Call) -> Array:
    """ONNX Runtime: the float32 mean of the real values, summed in order of the window."""
    total = window_sums(call, call.dequantize(0))
    return call.quantize(total / window_counts(call, total))


def window_sums(call: Call, x: Array) -> Array:
    """Sums over the windows, one tap after the other."""
    total: Array = None
    for values in _windows(call, pad_spatial(x, call.op.attrs["padding"], 0)):
        total = values if total is None else total + values
    return total


def window_counts(call: Call, like: Array) -> Array:
    """How many values each window averages, (1, 1, *out)."""
    attrs = call.op.attrs
    xp = array_namespace(like)
    if attrs["count_include_pad"]:
        return xp.ones((1,) * like.ndim, dtype=like.dtype) * float(np.prod(attrs["kernel"]))
    sizes = call.inputs[0].shape[2:]
    return window_sums(call, xp.ones((1, 1, *sizes), dtype=like.dtype))


def global_avg_pool(call: Call) -> Array:
    """The mean over all of space, axes kept: (N, C, 1, ...)."""
    steps = call.steps(0)
    xp = array_namespace(steps)
    axes = tuple(range(2, steps.ndim))
    total = xp.sum(xp.astype(steps, xp.float64), axis=axes, keepdims=True)
    count = int(np.prod(steps.shape[2:]))
    grid, out = call.grid(0), call.out_grid
    codes = MEAN[call.op.formula or ""](
        total, count, grid.scale, out.scale, int(grid.zero_point), int(out.zero_point)
    )
    return call.saturate(codes)
