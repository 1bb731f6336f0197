"""The oracles' own arithmetic, against what is known without them."""

from fractions import Fraction

import numpy as np
import pytest

from tests.core.exact import (
    exponent,
    half_away,
    half_even,
    half_up,
    nearest_float32,
    rational,
    round_to_bits,
)


@pytest.mark.parametrize(
    ("halves", "even", "up", "away"),
    [(-5, -2, -2, -3), (-3, -2, -1, -2), (-1, 0, 0, -1), (1, 0, 1, 1), (3, 2, 2, 2), (5, 2, 3, 3)],
)
def test_ties(halves: int, even: int, up: int, away: int) -> None:
    x = Fraction(halves, 2)
    assert (half_even(x), half_up(x), half_away(x)) == (even, up, away)
    below, above = x - Fraction(1, 99), x + Fraction(1, 99)
    for rounding in (half_even, half_up, half_away):
        assert rounding(above) - rounding(below) == 1


def test_nearest_float32_agrees_with_the_cast_of_the_processor() -> None:
    rng = np.random.default_rng(0)
    values = np.ldexp(rng.normal(size=2000), rng.integers(-155, 127, 2000))
    for value in values:
        assert nearest_float32(rational(value)) == rational(np.float32(value))


@pytest.mark.parametrize(
    ("x", "rounded"),
    [
        (1 + Fraction(1, 2**24), 1),
        (1 + Fraction(3, 2**24), 1 + Fraction(1, 2**22)),
        (1 + Fraction(1, 2**24) + Fraction(1, 2**90), 1 + Fraction(1, 2**23)),
        (Fraction(1, 2**150), 0),
        (Fraction(3, 2**150), Fraction(1, 2**148)),
        (Fraction(1, 2**150) + Fraction(1, 2**300), Fraction(1, 2**149)),
    ],
)
def test_nearest_float32_on_ties_and_subnormal_numbers(x: Fraction, rounded: Fraction) -> None:
    assert nearest_float32(x) == rounded
    assert nearest_float32(-x) == -rounded


def test_nearest_float32_refuses_what_overflows() -> None:
    with pytest.raises(AssertionError, match="overflows"):
        nearest_float32(Fraction(2) ** 128 - 1)


@pytest.mark.parametrize("x", [Fraction(1), Fraction(4, 3), Fraction(2, 3), Fraction(-7, 2**70)])
def test_exponent(x: Fraction) -> None:
    assert Fraction(2) ** exponent(x) <= abs(x) < Fraction(2) ** (exponent(x) + 1)


def test_round_to_bits_agrees_with_fractions() -> None:
    rng = np.random.default_rng(0)
    n = rng.integers(-(2**61), 2**61, 2000) >> rng.integers(0, 61, 2000)
    n = np.concatenate([n, (2 * rng.integers(2**23, 2**24, 500) + 1) << rng.integers(0, 30, 500)])
    expected = [nearest_float32(Fraction(int(v))) for v in n]
    assert round_to_bits(n).tolist() == expected
