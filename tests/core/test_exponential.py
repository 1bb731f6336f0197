"""Fixed-point exponentials, and LiteRT's two softmaxes, one row at a time in Python's integers."""

import doctest
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from halfstep.core import exponential
from halfstep.core.exponential import exp_of_negative, reciprocal
from halfstep.core.softmax import SOFTMAX
from tests.broken import softmax as broken
from tests.core.exact import fixed_point, half_away, high_multiply

F = np.float32
LARGEST = 2**31 - 1


def divided(x: int, exponent: int) -> int:
    return half_away(Fraction(x, 2**exponent))


def exact_exp(raw: int) -> int:
    """As gemmlowp's source has it: a Taylor series around -1/8, and a factor a bit."""
    if raw == 0:
        return LARGEST
    fraction = raw % 2**24 - 2**24
    x = fraction * 32 + 2**28
    x2 = high_multiply(x, x)
    x3, x4 = high_multiply(x2, x), high_multiply(x2, x2)
    higher = divided(high_multiply(divided(x4, 2) + x3, 715827883) + x2, 1)
    result = 1895147668 + high_multiply(1895147668, x + higher)
    factors = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
    for bit, factor in zip(range(24, 31), factors, strict=True):
        if (fraction - raw) >> bit & 1:
            result = high_multiply(result, factor)
    return result


def exact_share(total: int) -> tuple[int, int]:
    """One over a sum with 12 integer bits, by Newton's method, and by how many bits to shift it."""
    half = (total * 2 ** (32 - total.bit_length()) - 2**31 + LARGEST + 1) // 2
    x = 1515870810 + high_multiply(half, -1010580540)
    for _ in range(3):
        x += 4 * high_multiply(x, 2**29 - high_multiply(half, x))
    return min(2 * x, LARGEST), total.bit_length() - 20


def exact_fixed_point(row: list[int], scale: float) -> list[int]:
    q, shift = fixed_point(min(float(scale) * 2**26, float(LARGEST)))
    smallest = -math.floor(31 * 2.0 ** (26 - shift))
    differences = [code - max(row) for code in row]
    powers = [
        exact_exp(high_multiply(d * 2 ** max(shift, 0), q)) if d >= smallest else 0
        for d in differences
    ]
    share, over = exact_share(sum(divided(power, 12) for power in powers))
    return [
        divided(high_multiply(share, power), over + 23) if d >= smallest else 0
        for power, d in zip(powers, differences, strict=True)
    ]


def exact_reciprocal(row: list[int], scale: float) -> list[int]:
    powers = [F(math.exp(float(F(code - max(row)) * F(scale)))) for code in row]
    total = F(0)
    for power in powers:
        total = F(total + power)
    factor = F(1) / F(total * F(1 / 256))
    return [math.floor(F(F(power * factor) + F(0.5))) for power in powers]


EXACT = {"fixed_point": exact_fixed_point, "reciprocal": exact_reciprocal}


def rows(length: int) -> Any:
    x = np.random.default_rng(length).integers(-128, 128, (24, length))
    x[:8] = x[:8, :1]
    x[8:16] //= 64
    return x


def assert_codes_are_exact(name: str, formula: Any) -> None:
    """Law: each row has the codes of the formula written out."""
    # Equal codes in a row of 512 are ties, but its sum is too large for fixed point.
    lengths = (1, 2, 3, 10, 200) if name == "fixed_point" else (1, 3, 10, 512)
    for length in lengths:
        for scale in map(F, (0.001, 0.0371, 0.125, 0.7, 9)):
            found = formula(rows(length), -1, 256, scale, F(1 / 256), 0)
            expected = [EXACT[name](row, scale) for row in rows(length).tolist()]
            np.testing.assert_array_equal(found, expected, f"{name} of {length}, {scale}")


@pytest.mark.parametrize("name", EXACT)
def test_codes_are_exact(name: str) -> None:
    assert_codes_are_exact(name, SOFTMAX[name])


@pytest.mark.parametrize("specimen", broken.LITERT_SPECIMENS)
def test_broken_softmax_is_rejected(specimen: str) -> None:
    name, formula = broken.LITERT_SPECIMENS[specimen]
    with pytest.raises(AssertionError, match=f"{name} of"):
        assert_codes_are_exact(name, formula)


def assert_exponentials_are_exact(function: Any) -> None:
    """Law: the raw values are those of the source, written out, and near the real ones."""
    raw = -np.concatenate([np.arange(2000), np.arange(0, 2**31, 2**31 // 1000)])
    found = function(raw)
    np.testing.assert_array_equal(found, [exact_exp(int(x)) for x in raw], "exponentials")
    # The sixth term of the series is missing.
    assert np.abs(found / 2**31 - np.exp(raw / 2**26)).max() < 2**-21


def assert_reciprocals_are_exact(function: Any) -> None:
    """Law: the raw values are those of the source, written out, and near the real ones."""
    raw = np.random.default_rng(0).integers(2**19, 2**31, 1000)
    share, bits = function(raw, 12)
    expected = [exact_share(int(x)) for x in raw]
    np.testing.assert_array_equal(np.stack([share, bits], 1), expected, "reciprocals")
    assert np.abs(share / 2.0 ** (31 + bits) * (raw / 2**19) - 1).max() < 2**-25


def test_exponentials_and_reciprocals_are_exact() -> None:
    assert_exponentials_are_exact(exp_of_negative)
    assert_reciprocals_are_exact(reciprocal)


def test_broken_exponentials_and_reciprocals_are_rejected() -> None:
    with pytest.raises(AssertionError, match="exponentials"):
        assert_exponentials_are_exact(broken.exponential_of_float64)
    with pytest.raises(AssertionError, match="reciprocals"):
        assert_reciprocals_are_exact(broken.reciprocal_of_float64)


def test_worked_example() -> None:
    result = doctest.testmod(exponential)
    assert result.attempted >= 3
    assert result.failed == 0
