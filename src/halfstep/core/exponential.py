"""Exponentials and reciprocals in 32-bit fixed point, as gemmlowp computes them.

A number is an int32 with some integer bits: ``real = raw * 2^(integer_bits - 31)``. A product of
two is ``srdhm`` of their raw values, and has the integer bits of both.

Source: gemmlowp, ``fixedpoint/fixedpoint.h``; the polynomial is a Taylor series around -1/8.

Worked example: exp(-1) = 0.36788 with 5 integer bits in and none out.

>>> import numpy as np
>>> round(int(exp_of_negative(np.asarray([-(2**26)]))[0]) / 2**31, 5)
0.36788
>>> raw, bits = reciprocal(np.asarray([3 * 2**19]), 12)
>>> round(int(raw[0]) / 2.0 ** (31 + int(bits[0])), 5)
0.33333
"""

import math

from array_api_compat import array_namespace

from halfstep.core.requant import Array, like, rounding_divide_by_pot, srdhm

LARGEST = 2**31 - 1
# Of the input of ``exp_of_negative``: it takes numbers above -32.
INTEGER_BITS = 5
_FRACTION_BITS = 31 - INTEGER_BITS


def fixed_point_constant(real: float, integer_bits: int = 0) -> int:
    """``real`` as a raw value.

    >>> fixed_point_constant(1 / 3), fixed_point_constant(48 / 17, 2)
    (715827883, 1515870810)
    """
    return round(math.ldexp(real, 31 - integer_bits))


_THIRD = fixed_point_constant(1 / 3)
_EXP_EIGHTH = fixed_point_constant(math.exp(-1 / 8))
# Factors for the bits of the whole quarters: exp(-1/4), exp(-1/2), exp(-1), ... exp(-16).
_QUARTERS = [(power, fixed_point_constant(math.exp(-(2.0**power)))) for power in range(-2, 5)]
_NEWTON_STEPS = 3


def exp_of_negative(raw: Array) -> Array:
    """``exp(raw * 2^-26)`` of numbers from -32 to 0, as a raw value without integer bits."""
    xp = array_namespace(raw)
    quarter = 1 << (_FRACTION_BITS - 2)
    fraction = (raw & (quarter - 1)) - quarter
    result = _exp_of_a_quarter(fraction << INTEGER_BITS)
    quarters = fraction - raw
    for power, factor in _QUARTERS:
        has_bit = (quarters & (1 << (_FRACTION_BITS + power))) != 0
        result = xp.where(has_bit, _times(result, factor), result)
    return xp.where(raw == 0, LARGEST, result)


def _exp_of_a_quarter(raw: Array) -> Array:
    """The exponential of numbers from -1/4 to 0."""
    x = raw + (1 << 28)
    x2 = srdhm(x, x)
    x3, x4 = srdhm(x2, x), srdhm(x2, x2)
    higher = _halved(_times(_halved(x4, 2) + x3, _THIRD) + x2, 1)
    return _EXP_EIGHTH + _times(x + higher, _EXP_EIGHTH)


def reciprocal(raw: Array, integer_bits: int) -> tuple[Array, Array]:
    """``1 / x`` of a number of at least 1, as ``result * 2^-(31 + bits)``.

    Returns:
        The raw result, without integer bits, and the bits.
    """
    xp = array_namespace(raw)
    # Exact: a float64 holds every int32.
    length = _bit_length(raw)
    bits = length + (integer_bits - 32)
    above_one = xp.bitwise_left_shift(raw, 32 - length) - (1 << 31)
    half = (above_one + LARGEST + 1) // 2
    x = fixed_point_constant(48 / 17, 2) + _times(half, fixed_point_constant(-32 / 17, 2))
    for _ in range(_NEWTON_STEPS):
        error = (1 << 29) - srdhm(half, x)
        x = x + _saturated(srdhm(x, error) * 4)
    return _saturated(x * 2), bits


def _bit_length(raw: Array) -> Array:
    """How many bits a positive integer has: one for every power of two that it reaches."""
    xp = array_namespace(raw)
    reached = [xp.astype(raw >= (1 << power), xp.int64) for power in range(31)]
    return sum(reached[1:], start=reached[0])


def _times(raw: Array, constant: int) -> Array:
    return srdhm(raw, like(constant, raw, "int64"))


def _halved(raw: Array, times: int) -> Array:
    xp = array_namespace(raw)
    return rounding_divide_by_pot(raw, xp.full_like(raw, times))


def _saturated(raw: Array) -> Array:
    return array_namespace(raw).clip(raw, -LARGEST - 1, LARGEST)
