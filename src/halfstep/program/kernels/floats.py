"""Float islands: what a runtime computes in float32 between integer operations.

These follow the definitions, not any runtime's order of summation, so their last bit is not
promised: a verdict never counts codes that were made from them as proven.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from halfstep.program.kernels import copies, pool
from halfstep.program.kernels.copies import padded
from halfstep.program.kernels.setup import Array, Kernel, Setup, Step
from halfstep.program.kernels.softmax import float_softmax
from halfstep.program.kernels.weighted import as_convolution, transposed


def _sigmoid(xp: Any, x: Array) -> Array:
    return 1 / (1 + xp.exp(-x))


def _hardsigmoid(xp: Any, x: Array) -> Array:
    return xp.clip(x / 6 + 0.5, 0, 1)


def _softplus(xp: Any, x: Array, beta: float = 1.0) -> Array:
    return (xp.clip(beta * x, 0.0, None) + xp.log1p(xp.exp(-xp.abs(beta * x)))) / beta


def _elu(xp: Any, x: Array, alpha: float, scale: float, input_scale: float) -> Array:
    below = alpha * (xp.exp(input_scale * xp.clip(x, None, 0.0)) - 1)
    return scale * xp.where(x > 0, x, below)


def _erf(setup: Setup) -> Step:
    return setup.backend.erf


def _gelu(setup: Setup) -> Step:
    xp = setup.xp
    if setup.attrs["approximate"] == "tanh":
        return lambda x: 0.5 * x * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return lambda x: 0.5 * x * (1 + setup.backend.erf(x * math.sqrt(0.5)))


def _unary(function: Callable[..., Array]) -> Kernel:
    """``function(xp, x, **attributes)``."""
    return lambda setup: lambda x: function(setup.xp, x, **setup.attrs)


def _named(name: str) -> Kernel:
    """A function of the array API of all inputs."""
    return lambda setup: getattr(setup.xp, name)


def _layer_norm(setup: Setup) -> Step:
    xp, eps = setup.xp, setup.attrs["eps"]
    axes = tuple(range(-setup.attrs["n_axes"], 0))

    def run(x: Array, *affine: Array) -> Array:
        centred = x - xp.mean(x, axis=axes, keepdims=True)
        variance = xp.mean(centred * centred, axis=axes, keepdims=True)
        y = centred / xp.sqrt(variance + eps)
        y = y * affine[0] if affine else y
        return y + affine[1] if len(affine) > 1 else y

    return run


def _mean(setup: Setup) -> Step:
    axes, keep = setup.attrs["axes"], setup.attrs["keepdim"]
    return lambda x: setup.xp.mean(x, axis=axes, keepdims=keep)


def _sum(setup: Setup) -> Step:
    axes, keep = setup.attrs["axes"], setup.attrs["keepdim"]
    return lambda x: setup.xp.sum(x, axis=axes, keepdims=keep, dtype=x.dtype)


def _cast(setup: Setup) -> Step:
    dtype = setup.backend.dtype(setup.out.dtype)
    return lambda x: setup.xp.astype(x, dtype)


def _linear(setup: Setup) -> Step:
    return lambda x, weight, bias=None: setup.backend.linear(x, weight, bias)


def _matmul(setup: Setup) -> Step:
    return lambda a, b: setup.backend.matmul(a, b) * setup.attrs["alpha"]


def _conv(setup: Setup) -> Step:
    attrs = setup.attrs
    shape = attrs["stride"], attrs["dilation"], attrs["groups"]

    def run(x: Array, weight: Array, bias: Array | None = None) -> Array:
        x = padded(setup.xp, x, attrs["padding"], 0)
        return setup.backend.convolve(x, weight, bias, *shape)

    return run


def _conv_transpose(setup: Setup) -> Step:
    def run(x: Array, weight: Array, bias: Array | None = None) -> Array:
        weight = as_convolution(setup.xp, weight, setup.attrs["groups"])
        return transposed(setup, x, weight, bias)

    return run


def _avg_pool(setup: Setup) -> Step:
    counts = pool.window_counts(setup)
    return lambda x: sum(pool.windows(setup, x, 0.0, 0.0)) / counts


def _global_avg_pool(setup: Setup) -> Step:
    return lambda x: setup.xp.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)


def _prelu(setup: Setup) -> Step:
    """One slope for all channels, or one for each along axis 1."""
    shape = (-1, *[1] * (len(setup.out.shape) - 2))
    return lambda x, slope: setup.xp.where(x >= 0, x, x * setup.xp.reshape(slope, shape))


def _upsample_linear(setup: Setup) -> Step:
    def run(x: Array) -> Array:
        for axis, factor in enumerate(setup.attrs["factors"], start=2):
            x = _interpolated(setup, x, axis, factor)
        return x

    return run


def _interpolated(setup: Setup, x: Array, axis: int, factor: int) -> Array:
    xp, size = setup.xp, x.shape[axis]
    out = np.arange(size * factor)
    if setup.attrs["align_corners"]:
        position = out * ((size - 1) / max(size * factor - 1, 1))
    else:
        position = np.clip((out + 0.5) / factor - 0.5, 0, size - 1)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    share = (position - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    first = xp.take(x, setup.constant(low, "int64"), axis=axis)
    second = xp.take(x, setup.constant(high, "int64"), axis=axis)
    return first + setup.constant(share, "float32") * (second - first)


KERNELS: dict[str, Kernel] = {
    "add": _named("add"),
    "sub": _named("subtract"),
    "mul": _named("multiply"),
    "div": _named("divide"),
    "matmul": _matmul,
    "equal": _named("equal"),
    "logical_and": _named("logical_and"),
    "logical_not": _named("logical_not"),
    "where": _named("where"),
    "cast": _cast,
    "neg": _named("negative"),
    "exp": _named("exp"),
    "sqrt": _named("sqrt"),
    "erf": _erf,
    "relu": _unary(lambda xp, x: xp.clip(x, 0.0, None)),
    "clamp": _unary(lambda xp, x, low, high: xp.clip(x, low, high)),
    "leaky_relu": _unary(lambda xp, x, slope: xp.where(x >= 0, x, x * slope)),
    "prelu": _prelu,
    "minimum": _named("minimum"),
    "sigmoid": _unary(_sigmoid),
    "tanh": _named("tanh"),
    "silu": _unary(lambda xp, x: x * _sigmoid(xp, x)),
    "hardsigmoid": _unary(_hardsigmoid),
    "abs": _named("abs"),
    "elu": _unary(_elu),
    "softplus": _unary(_softplus),
    "mish": _unary(lambda xp, x: x * xp.tanh(_softplus(xp, x))),
    "log_sigmoid": _unary(lambda xp, x: -_softplus(xp, -x)),
    "hardswish": _unary(lambda xp, x: x * _hardsigmoid(xp, x)),
    "gelu": _gelu,
    "softmax": lambda setup: lambda x: float_softmax(setup.xp, x, setup.attrs["axis"]),
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
