"""Functions of one code as LiteRT computes them: the output code of each input code.

A function takes the codes (int64), the grids of input and output, and its attributes; the caller
clamps. What a runtime computes in float32 and rounds has the suffix ``_rounded``; the others are
integer arithmetic.

Worked example, a leaky ReLU of slope 1/4 with equal scales: -6 steps become -1.5, and -2 away
from zero or -1 rounded up.

>>> import numpy as np
>>> from halfstep.core.qtype import INT8
>>> on, six = Affine(INT8, np.float32(0.5), np.int32(0)), np.asarray([-6, 6])
>>> leaky_relu_double_rounding(six, on, on, 0.25).tolist()
[-2, 6]
>>> leaky_relu_eight_bits(six, on, on, 0.25).tolist()
[-1, 6]
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from halfstep.core.grid import Affine
from halfstep.core.requant import (
    fixed_point_multiplier,
    multiply_double_rounding,
    rounding_divide_by_pot,
    truncating_divide,
)

Codes = NDArray[np.int64]
Reals = NDArray[np.float32]
F = np.float32
_INT16 = (-(2**15), 2**15 - 1)
_LARGEST_SHIFT = 15


def relu_double_rounding(codes: Codes, source: Affine, out: Affine) -> Codes:
    """LiteRT's ReLU: the 31-bit multiplier of ``f32(s_in / s_out)``, two roundings."""
    steps = _rescaled(codes - int(source.zero_point), F(source.scale) / F(out.scale))
    return np.maximum(steps, 0) + int(out.zero_point)


def leaky_relu_double_rounding(codes: Codes, source: Affine, out: Affine, slope: float) -> Codes:
    """LiteRT's reference kernel: two 31-bit multipliers, of float32 ratios, two roundings."""
    steps = codes - int(source.zero_point)
    above, below = _leaky_ratios(source, out, slope)
    return np.where(steps >= 0, _rescaled(steps, above), _rescaled(steps, below)) + int(
        out.zero_point
    )


def leaky_relu_eight_bits(codes: Codes, source: Affine, out: Affine, slope: float) -> Codes:
    """XNNPACK: multipliers with 8 bits behind the point, half up. Off by a step on many codes.

    Where a multiplier is nearer to 0 than 2^-8 or does not fit, LiteRT's own kernel runs.
    """
    ratios = _leaky_ratios(source, out, slope)
    fits = all(2.0**-8 - 2.0**7 <= ratio <= 2.0**7 for ratio in ratios)
    if not fits or min(map(abs, ratios)) < 2.0**-8:
        return leaky_relu_double_rounding(codes, source, out, slope)
    steps = codes - int(source.zero_point)
    above, below = (int(np.rint(F(256) * ratio)) for ratio in ratios)
    return ((steps * np.where(steps >= 0, above, below) + 128) >> 8) + int(out.zero_point)


def hardswish_has_operator(source: Affine, out: Affine) -> bool:
    """Whether LiteRT's operator computes hard-swish on these grids.

    It refuses to shift its product left, and shifts of 16 bits and more do not exist in an int16.
    """
    (_, output_shift), (_, relu_shift) = _hardswish_multipliers(source, out)
    return -_LARGEST_SHIFT <= output_shift <= 0 and abs(relu_shift) <= _LARGEST_SHIFT


def hardswish_sixteen_bits(codes: Codes, source: Affine, out: Affine) -> Codes:
    """LiteRT: ``x * min(max(x + 3, 0), 6) / 6`` in 16-bit fixed point, steps times 2^7.

    Where its operator does not take the grids the codes are looked up, and are those of float32.
    """
    if not hardswish_has_operator(source, out):
        return _rounded(codes, source, out, lambda x: x * np.clip(x + F(3), F(0), F(6)) / F(6))
    (to_output, output_shift), (to_relu, relu_shift) = _hardswish_multipliers(source, out)
    steps = (codes - int(source.zero_point)) * 128
    on_output = _high_multiply(steps, to_output)
    # A number from -1 to 1 for inputs from -3 to 3; the last bit is shifted after the product.
    unit = np.clip(steps << max(relu_shift - 1, 0), *_INT16)
    unit = _high_multiply(unit, to_relu)
    unit = np.clip(unit << int(relu_shift > 0), *_INT16)
    unit = _divided(unit, max(-relu_shift, 0))
    share = (unit + (1 << 15)) >> 1
    product = truncating_divide(share * on_output, 1 << 15)
    found: Codes = _divided(product, -output_shift) + int(out.zero_point)
    return found


def sigmoid_rounded(codes: Codes, source: Affine, out: Affine) -> Codes:
    """The logistic function in float32, rounded."""
    return _rounded(codes, source, out, lambda x: F(1) / (F(1) + _exact(np.exp, -x)))


def tanh_rounded(codes: Codes, source: Affine, out: Affine) -> Codes:
    """The hyperbolic tangent in float32, rounded."""
    return _rounded(codes, source, out, lambda x: _exact(np.tanh, x))


def gelu_rounded(codes: Codes, source: Affine, out: Affine, approximate: str) -> Codes:
    """GELU in float32, by the error function or by tanh, rounded."""

    def by_erf(x: Reals) -> Reals:
        erf = np.vectorize(math.erf)
        return F(0.5) * x * (F(1) + _exact(erf, x * F(math.sqrt(0.5))))

    def by_tanh(x: Reals) -> Reals:
        inner = F(math.sqrt(2 / math.pi)) * (x + F(0.044715) * x * x * x)
        return F(0.5) * x * (F(1) + _exact(np.tanh, inner))

    return _rounded(codes, source, out, by_erf if approximate == "none" else by_tanh)


def _rounded(
    codes: Codes, source: Affine, out: Affine, function: Callable[[Reals], Reals]
) -> Codes:
    """``f(x) * f32(1 / s)`` rounded half away from zero."""
    steps = function(source.dequantize(codes)) * (F(1) / F(out.scale))
    nearest = np.trunc(steps + np.copysign(F(0.5), steps))
    found: Codes = nearest.astype(np.int64) + int(out.zero_point)
    return found


def _exact(function: Callable[..., NDArray[np.float64]], x: Reals) -> Reals:
    """A function in float64, rounded: float32 as a good library computes it."""
    with np.errstate(over="ignore"):  # infinite, where the logistic function is 0
        return function(x.astype(np.float64)).astype(F)


def _leaky_ratios(source: Affine, out: Affine, slope: float) -> tuple[np.float32, np.float32]:
    return F(source.scale) / F(out.scale), F(source.scale) * F(slope) / F(out.scale)


def _rescaled(steps: Codes, ratio: np.float32) -> Codes:
    q, shift = fixed_point_multiplier(np.float64(ratio))
    found: Codes = multiply_double_rounding(steps, np.asarray(q), np.asarray(shift))
    return found


def _hardswish_multipliers(source: Affine, out: Affine) -> tuple[tuple[int, int], tuple[int, int]]:
    """From steps times 2^7 to the output's grid, and to a number from -3 to 3."""
    fine = F(1 / 128) * F(source.scale)
    return _sixteen_bits(F(fine / F(out.scale))), _sixteen_bits(F(fine / F(3 / 32768)))


def _sixteen_bits(ratio: np.float32) -> tuple[int, int]:
    """The multiplier rounded to 16 bits, and its shift."""
    q, shift = (int(part) for part in fixed_point_multiplier(np.float64(ratio)))
    return min((q + (1 << 15)) >> 16, _INT16[1]), shift


def _high_multiply(x: Codes, q: int) -> Codes:
    """The nearest of ``x * q / 2^15``, ties up."""
    product = x * q
    nudge = np.where(product >= 0, 1 << 14, 1 - (1 << 14))
    found: Codes = truncating_divide(product + nudge, 1 << 15)
    return found


def _divided(x: Codes, exponent: int) -> Codes:
    found: Codes = rounding_divide_by_pot(x, np.full_like(x, exponent))
    return found
