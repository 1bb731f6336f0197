"""Functions of one value, from float32 to float32: what a table of codes is filled with.

These are the float32 kernels of ONNX Runtime on x86-64 with FMA, to the last bit: rational
approximations by Horner's scheme, each step one fused multiply-add. Their values differ from the
textbook's by a few units in the last place, which is enough to make another code now and then.

Those of ``IN_TABLES`` are no runtime's: they are computed in float64 and rounded once, and every
artifact holds their codes as a table.

Source of the coefficients: ONNX Runtime's MLAS, which has those of tanh and sigmoid from Eigen.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np

from halfstep.core.elementwise import fma
from halfstep.core.grid import FloatArray

F = np.float32

# Of polynomials in x^2, the highest power first: x p(x^2) / q(x^2).
_TANH = (
    (
        -2.76076847742355e-16,
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    ),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)
_SIGMOID = (
    (
        4.37031012579801e-11,
        1.15627324459942e-07,
        6.08574864600143e-05,
        8.51377133304701e-03,
        2.48287947061529e-01,
    ),
    (
        6.10247389755681e-13,
        5.76102136993427e-09,
        6.29106785017040e-06,
        1.70198817374094e-03,
        1.16817656904453e-01,
        9.93151921023180e-01,
    ),
)
# erf(x) = x + x p(x^2) up to the boundary, above it 1 - exp(-x - x p(x)).
_ERF_BOUNDARY, _ERF_LARGEST = F(0.921875), F(3.925)
_ERF_SMALL = (
    -5.99104969e-4,
    4.99339588e-3,
    -2.67667342e-2,
    1.12818025e-1,
    -3.76124859e-1,
    1.28379151e-1,
)
_ERF_LARGE = (
    1.72948930e-5,
    -3.83208680e-4,
    3.88393435e-3,
    -2.42545605e-2,
    1.06777847e-1,
    6.34846687e-1,
    1.28717512e-1,
)
_EXP = (1.38319808e-3, 8.37550033e-3, 4.16689515e-2, 1.66664466e-1, 4.99999851e-1, 1.0, 1.0)
# Added to and subtracted from a float32 of moderate size, it leaves the nearest integer.
_ROUNDING = F(1.5 * 2**23)


def tanh(x: FloatArray) -> FloatArray:
    """The hyperbolic tangent; ``x`` is clamped to 9."""
    return _rational(_TANH, np.clip(x, F(-9), F(9)))


def sigmoid(x: FloatArray) -> FloatArray:
    """The logistic function; ``x`` is clamped to 18."""
    return relu(_rational(_SIGMOID, np.clip(x, F(-18), F(18))) + F(0.5))


def erf(x: FloatArray) -> FloatArray:
    """The error function."""
    size = np.minimum(np.abs(x), _ERF_LARGEST)
    small = fma(_polynomial(_ERF_SMALL, size * size), size, size)
    large = F(1) - _exp(-fma(_polynomial(_ERF_LARGE, size), size, size))
    return np.asarray(np.copysign(np.where(size > _ERF_BOUNDARY, large, small), x))


def gelu(x: FloatArray, approximate: str) -> FloatArray:
    """``x`` times the normal distribution function, or its approximation by "tanh"."""
    if approximate == "none":
        return F(0.5) * x * (F(1) + erf(x * F(math.sqrt(0.5))))
    linear, cubic = F(math.sqrt(2 / math.pi)), F(0.044715 * math.sqrt(2 / math.pi))
    with np.errstate(over="ignore"):  # infinite, where tanh is 1
        return F(0.5) * x * (F(1) + tanh((cubic * x * x + linear) * x))


def hardsigmoid(x: FloatArray) -> FloatArray:
    """``x / 6 + 1/2``, clamped to 0 and 1."""
    return np.asarray(np.clip(x * F(1 / 6) + F(0.5), F(0), F(1)))


def hardswish(x: FloatArray) -> FloatArray:
    """``x`` times its hard sigmoid."""
    return x * hardsigmoid(x)


def leaky_relu(x: FloatArray, slope: float) -> FloatArray:
    """``x``, or ``slope * x`` where that is negative."""
    return np.where(x >= 0, x, x * F(slope))


def relu(x: FloatArray) -> FloatArray:
    """``x``, or 0 where that is negative."""
    return np.asarray(np.maximum(x, F(0)))


def clamp(x: FloatArray, low: float | None, high: float | None) -> FloatArray:
    """``x`` within bounds."""
    return np.clip(x, F(-np.inf if low is None else low), F(np.inf if high is None else high))


def _polynomial(coefficients: Iterable[float], x: FloatArray) -> FloatArray:
    """Horner's scheme, each step a fused multiply-add."""
    first, *others = (np.full_like(x, c) for c in coefficients)
    for coefficient in others:
        first = fma(first, x, coefficient)
    return first


def _rational(polynomials: tuple[Iterable[float], Iterable[float]], x: FloatArray) -> FloatArray:
    """``x p(x^2) / q(x^2)``."""
    above, below = (_polynomial(coefficients, x * x) for coefficients in polynomials)
    return above * x / below


def _exp(x: FloatArray) -> FloatArray:
    """``2^n exp(rest)`` with ``x = n log(2) + rest``; log(2) is a sum of two float32 numbers."""
    n = fma(x, np.full_like(x, math.log2(math.e)), np.full_like(x, _ROUNDING)) - _ROUNDING
    rest = fma(n, np.full_like(x, -6.93145752e-1), x)
    rest = fma(n, np.full_like(x, -1.42860677e-6), rest)
    return np.asarray(np.ldexp(_polynomial(_EXP, rest), n.astype(np.int32)))


def elu(x: FloatArray, alpha: float, scale: float, input_scale: float) -> FloatArray:
    """``scale * x``, or ``scale * alpha * (exp(input_scale * x) - 1)`` where that is negative."""
    wide = x.astype(np.float64)
    below = alpha * np.expm1(input_scale * np.minimum(wide, 0))
    return (scale * np.where(wide > 0, wide, below)).astype(F)


def softplus(x: FloatArray, beta: float) -> FloatArray:
    """``log(1 + exp(beta * x)) / beta``."""
    return (np.logaddexp(0, beta * x.astype(np.float64)) / beta).astype(F)


def mish(x: FloatArray) -> FloatArray:
    """``x`` times the hyperbolic tangent of its softplus."""
    wide = x.astype(np.float64)
    return (wide * np.tanh(np.logaddexp(0, wide))).astype(F)


def log_sigmoid(x: FloatArray) -> FloatArray:
    """The logarithm of the logistic function."""
    return (-np.logaddexp(0, -x.astype(np.float64))).astype(F)


IN_TABLES: dict[str, Callable[..., FloatArray]] = {
    "abs": np.abs,
    "elu": elu,
    "softplus": softplus,
    "mish": mish,
    "log_sigmoid": log_sigmoid,
}
TABLES: dict[str, Callable[..., FloatArray]] = {
    **IN_TABLES,
    "relu": relu,
    "clamp": clamp,
    "leaky_relu": leaky_relu,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "gelu": gelu,
    "hardswish": hardswish,
    "hardsigmoid": hardsigmoid,
}
