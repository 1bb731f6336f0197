"""Exact arithmetic for oracles: rationals rounded by rules written out, sharing no code with core.

Scalars are ``Fraction``. The two vectorised roundings at the end are for the exhaustive tests:
``f32`` rounds a float64 (exact, or correctly rounded by an operation for which rounding twice is
innocuous: + - * / of float32 operands), ``round_to_bits`` rounds integers of up to 62 bits.
"""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

LARGEST_FLOAT32 = Fraction(2**24 - 1) * 2**104


def rational(value: float) -> Fraction:
    """The exact value of a float, or of an integer, of any library."""
    return Fraction(float(value))


def half_even(x: Fraction) -> int:
    floor = math.floor(x)
    rest = x - floor
    return floor + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2 == 1))


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def half_away(x: Fraction) -> int:
    return half_up(x) if x >= 0 else -half_up(-x)


def exponent(x: Fraction) -> int:
    """The ``e`` for which ``2^e <= |x| < 2^(e + 1)``."""
    e = abs(x.numerator).bit_length() - x.denominator.bit_length()
    return e if abs(x) >= Fraction(2) ** e else e - 1


def nearest(x: Fraction, bits: int, smallest_exponent: int) -> Fraction:
    """``x`` rounded half to even to ``bits`` significant bits, fewer for subnormal numbers."""
    if x == 0:
        return x
    unit = Fraction(2) ** (max(exponent(x), smallest_exponent) - bits + 1)
    return half_even(x / unit) * unit


def nearest_float32(x: Fraction) -> Fraction:
    """The float32 nearest to ``x``; one that is too large is a mistake of the test."""
    rounded = nearest(x, 24, -126)
    assert abs(rounded) <= LARGEST_FLOAT32, f"{float(x)} overflows"
    return rounded


def f32(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value rounded to the nearest float32, kept as float64."""
    return np.asarray(values, np.float64).astype(np.float32).astype(np.float64)


def round_to_bits(n: NDArray[np.int64], bits: int = 24) -> NDArray[np.int64]:
    """Integers rounded half to even to ``bits`` significant bits."""
    assert np.abs(n).max() < 2**62
    length = np.frexp(np.abs(n).astype(np.longdouble))[1].astype(np.int64)
    drop = np.maximum(length - bits, 1)
    kept, rest, half = n >> drop, n & ((1 << drop) - 1), 1 << (drop - 1)
    up = (rest > half) | ((rest == half) & (kept % 2 == 1))
    return np.where(length > bits, (kept + up) << drop, n)


def fixed_point(real: float) -> tuple[int, int]:
    """The 31-bit multiplier and the shift of a positive float64; too small a one is 0."""
    x = rational(real)
    shift = exponent(x) + 1
    q = half_up(x / Fraction(2) ** shift * 2**31)
    if q == 2**31:
        q, shift = 2**30, shift + 1
    return (q, shift) if shift >= -31 else (0, 0)


def high_multiply(x: int, q: int) -> int:
    """The nearest of ``x * q / 2^31``, ties up, saturated to int32."""
    return min(half_up(Fraction(x * q, 2**31)), 2**31 - 1)


def round_twice(x: int, q: int, shift: int) -> int:
    left, right = max(shift, 0), max(-shift, 0)
    return half_away(Fraction(high_multiply(x * 2**left, q), 2**right))


def round_twice_all(x: NDArray[np.int64], q: int, shift: int) -> NDArray[np.int64]:
    """``round_twice`` of many; the products must fit 62 bits."""
    x = x * 2 ** max(shift, 0)
    assert int(np.abs(x).max()) * q < 2**62
    high = (x * q + 2**30) // 2**31
    divisor = 2 ** max(-shift, 0)
    return np.sign(high) * ((2 * np.abs(high) + divisor) // (2 * divisor))
