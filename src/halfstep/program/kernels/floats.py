"""Float islands: what a runtime computes in float32 between integer operations.

These follow the definitions, not any runtime's order of summation, so their last bit is not
promised: a verdict never counts codes that were made from them as proven.
"""

import math
from collections.abc import Callable

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from halfstep.program.kernels import copies, pool
from halfstep.program.kernels.call import Array, Call
from halfstep.program.kernels.softmax import float_softmax
from halfstep.program.kernels.weighted import pad_spatial, transposed_sums

Kernel = Callable[[Call], Array]


def erf(x: Array) -> Array:
    """The error function, which the array API does not have."""
    if is_torch_array(x):
        return x.erf()
    return np.frompyfunc(math.erf, 1, 1)(x).astype(x.dtype)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + array_namespace(x).exp(-x))


def _hardsigmoid(x: Array) -> Array:
    return array_namespace(x).clip(x / 6 + 0.5, 0, 1)


def _gelu(x: Array, approximate: str) -> Array:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + array_namespace(x).tanh(inner))
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def _clamp(x: Array, low: float | None, high: float | None) -> Array:
    return array_namespace(x).clip(x, low, high)


def _leaky_relu(x: Array, slope: float) -> Array:
    return array_namespace(x).where(x >= 0, x, x * slope)


def _unary(function: Callable[..., Array]) -> Kernel:
    return lambda call: function(call.inputs[0], **call.op.attrs)


def _binary(name: str) -> Kernel:
    return lambda call: getattr(array_namespace(*call.inputs), name)(*call.inputs)


def _layer_norm(call: Call) -> Array:
    x, *affine = call.inputs
    xp = array_namespace(x)
    axes = tuple(range(x.ndim - call.op.attrs["n_axes"], x.ndim))
    centred = x - xp.mean(x, axis=axes, keepdims=True)
    variance = xp.mean(centred * centred, axis=axes, keepdims=True)
    y = centred / xp.sqrt(variance + call.op.attrs["eps"])
    if affine:
        y = y * affine[0]
    return y + affine[1] if len(affine) > 1 else y


def _mean(call: Call) -> Array:
    x, attrs = call.inputs[0], call.op.attrs
    return array_namespace(x).mean(x, axis=attrs["axes"], keepdims=attrs["keepdim"])


def _sum(call: Call) -> Array:
    x, attrs = call.inputs[0], call.op.attrs
    return array_namespace(x).sum(x, axis=attrs["axes"], keepdims=attrs["keepdim"], dtype=x.dtype)


def _cast(call: Call) -> Array:
    xp = array_namespace(call.inputs[0])
    return xp.astype(call.inputs[0], getattr(xp, call.out.dtype))


def _linear(call: Call) -> Array:
    x, weight, *bias = call.inputs
    y = x @ weight.T
    return y + bias[0] if bias else y


def _conv(call: Call) -> Array:
    x, weight, *bias = call.inputs
    attrs = call.op.attrs
    x = pad_spatial(x, attrs["padding"], 0)
    y = call.backend.convolve(x, weight, attrs["stride"], attrs["dilation"], attrs["groups"])
    return y + bias[0].reshape((-1,) + (1,) * (y.ndim - 2)) if bias else y


def _conv_transpose(call: Call) -> Array:
    x, weight, *bias = call.inputs
    y = transposed_sums(call, x, weight)
    return y + bias[0].reshape((-1,) + (1,) * (y.ndim - 2)) if bias else y


def _avg_pool(call: Call) -> Array:
    total = pool.window_sums(call, call.inputs[0])
    return total / pool.window_counts(call, total)


def _global_avg_pool(call: Call) -> Array:
    x = call.inputs[0]
    return array_namespace(x).mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)


def _upsample_linear(call: Call) -> Array:
    x = call.inputs[0]
    for axis, factor in enumerate(call.op.attrs["factors"], start=2):
        x = _interpolate(x, axis, factor, call.op.attrs["align_corners"])
    return x


def _interpolate(x: Array, axis: int, factor: int, align_corners: bool) -> Array:
    xp = array_namespace(x)
    size = x.shape[axis]
    out = np.arange(size * factor)
    if align_corners:
        position = out * ((size - 1) / max(size * factor - 1, 1))
    else:
        position = np.clip((out + 0.5) / factor - 0.5, 0, size - 1)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    share = xp.reshape(xp.asarray((position - low).astype(np.float32)), shape)
    first = xp.take(x, xp.asarray(low), axis=axis)
    return first + share * (xp.take(x, xp.asarray(high), axis=axis) - first)


KERNELS: dict[str, Kernel] = {
    "add": _binary("add"),
    "sub": _binary("subtract"),
    "mul": _binary("multiply"),
    "div": _binary("divide"),
    "matmul": lambda call: (call.inputs[0] @ call.inputs[1]) * call.op.attrs["alpha"],
    "equal": _binary("equal"),
    "logical_and": _binary("logical_and"),
    "logical_not": _unary(lambda x: array_namespace(x).logical_not(x)),
    "where": lambda call: array_namespace(*call.inputs[1:]).where(*call.inputs),
    "cast": _cast,
    "neg": _unary(lambda x: -x),
    "exp": _unary(lambda x: array_namespace(x).exp(x)),
    "sqrt": _unary(lambda x: array_namespace(x).sqrt(x)),
    "erf": _unary(erf),
    "relu": _unary(lambda x: _clamp(x, 0.0, None)),
    "clamp": _unary(_clamp),
    "leaky_relu": _unary(_leaky_relu),
    "sigmoid": _unary(_sigmoid),
    "tanh": _unary(lambda x: array_namespace(x).tanh(x)),
    "silu": _unary(lambda x: x * _sigmoid(x)),
    "hardsigmoid": _unary(_hardsigmoid),
    "hardswish": _unary(lambda x: x * _hardsigmoid(x)),
    "gelu": _unary(_gelu),
    "softmax": lambda call: float_softmax(call.inputs[0], call.op.attrs["axis"]),
    "layer_norm": _layer_norm,
    "mean": _mean,
    "sum": _sum,
    "linear": _linear,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": pool.max_pool,
    "avg_pool": _avg_pool,
    "global_avg_pool": _global_avg_pool,
    "upsample_linear": _upsample_linear,
    "reshape": copies.reshape,
    "transpose": copies.transpose,
    "slice": copies.slice_,
    "pad": copies.pad,
    "concat": copies.concat,
    "expand": copies.expand,
    "upsample_nearest": copies.upsample_nearest,
    "embedding": copies.embedding,
}
