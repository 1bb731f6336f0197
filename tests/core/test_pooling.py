"""Averages of codes, against exact rational arithmetic."""

import doctest
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from halfstep.core import pooling
from halfstep.core.pooling import MEAN, average_half_away
from tests.broken import core as broken
from tests.core.exact import (
    fixed_point,
    half_away,
    half_even,
    nearest_float32,
    rational,
    round_twice,
)

COUNTS = (1, 2, 3, 4, 7, 9, 12, 49, 64, 196)
SCALES = [
    tuple(map(np.float32, pair))
    for pair in ((0.1, 0.1), (1, 2), (0.5, 0.25), (0.0431, 0.0319), (0.3, 0.6), (0.02, 0.0003))
]
ZEROS = ((0, 0), (128, 3), (7, 255), (-5, -128))


def sums_of(count: int) -> np.ndarray:
    """Small sums, among them all ties near zero, and sums up to the largest of ``count`` codes."""
    spread = np.random.default_rng(count).integers(-255 * count, 255 * count, 60)
    return np.unique([*range(-60, 61), *spread, -255 * count, 255 * count])


def exact_divided_scale(total: int, count: int, si: float, so: float, zi: int, zo: int) -> int:
    f = nearest_float32
    multiplier = f(rational(si) / f(rational(so) * count))
    return half_even(f(f(Fraction(total)) * multiplier)) + zo


def exact_offset_inside(total: int, count: int, si: float, so: float, zi: int, zo: int) -> int:
    f = nearest_float32
    multiplier = f(f(rational(si) / rational(so)) * f(Fraction(1, count)))
    return half_even(f(f(f(Fraction(total)) * multiplier) + zo))


def exact_raw_codes(total: int, count: int, si: float, so: float, zi: int, zo: int) -> int:
    f = nearest_float32
    multiplier = f(f(rational(si) / rational(so)) * f(Fraction(1, count)))
    offset = f(zo - f(f(Fraction(count * zi)) * multiplier))
    return half_even(f(f(f(Fraction(total + count * zi)) * multiplier) + offset))


def exact_double_rounding(total: int, count: int, si: float, so: float, zi: int, zo: int) -> int:
    q, shift = fixed_point(float(si) / float(so))
    leading = max(k for k in range(40) if 2**k <= count)
    left = min(leading, 32, 31 + shift)
    return round_twice(total, q * 2**left // count, shift - left) + zo


EXACT = {
    "divided_scale": exact_divided_scale,
    "offset_inside": exact_offset_inside,
    "raw_codes": exact_raw_codes,
    "double_rounding": exact_double_rounding,
}


@cache
def exact_codes(
    name: str, count: int, scales: tuple[np.float32, ...], zeros: tuple[int, int]
) -> list[int]:
    return [EXACT[name](int(total), count, *scales, *zeros) for total in sums_of(count)]


def assert_mean_is_exact(name: str, formula: Any) -> None:
    """Law: the codes are those of the rational formula, for every count, scale and zero point."""
    for count in COUNTS:
        for i, scales in enumerate(SCALES):
            zeros = ZEROS[(count + i) % len(ZEROS)]
            found = formula(sums_of(count), count, *scales, *zeros)
            expected = exact_codes(name, count, scales, zeros)
            np.testing.assert_array_equal(found, expected, f"{name} of {count}, {scales}")


@pytest.mark.parametrize("name", MEAN)
def test_mean_is_exact(name: str) -> None:
    assert_mean_is_exact(name, MEAN[name])


@pytest.mark.parametrize("specimen", broken.MEAN_SPECIMENS)
def test_broken_mean_is_rejected(specimen: str) -> None:
    name, formula = broken.MEAN_SPECIMENS[specimen]
    with pytest.raises(AssertionError, match=f"{name} of"):
        assert_mean_is_exact(name, formula)


def assert_average_is_exact(average: Any) -> None:
    """Law: the mean of the raw codes, half away from zero, for every sum of up to nine codes."""
    one = np.float32(1)
    for count in range(1, 10):
        for zero in (0, 3, -128, 127):
            raw = np.arange(-128 * count, 127 * count + 1)
            found = average(raw - count * zero, count, one, one, zero, zero)
            expected = [half_away(Fraction(int(total), count)) for total in raw]
            np.testing.assert_array_equal(found, expected, f"average of {count}, zero {zero}")


def test_average_is_exact() -> None:
    assert_average_is_exact(average_half_away)


@pytest.mark.parametrize("specimen", [broken.average_half_up, broken.average_around_zero_point])
def test_broken_average_is_rejected(specimen: Any) -> None:
    with pytest.raises(AssertionError, match="average of"):
        assert_average_is_exact(specimen)


@pytest.mark.parametrize("name", [*MEAN, "half_away"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_torch_and_every_dtype_give_the_same_codes(name: str, dtype: str) -> None:
    formula = MEAN.get(name, average_half_away)
    for count in COUNTS:
        totals = sums_of(count)
        expected = formula(totals, count, *SCALES[3], 7, 9)
        np.testing.assert_array_equal(
            formula(totals.astype(dtype), count, *SCALES[3], 7, 9), expected
        )
        found = formula(torch.from_numpy(totals.astype(dtype)), count, *SCALES[3], 7, 9)
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), expected)


def test_worked_example() -> None:
    result = doctest.testmod(pooling)
    assert result.attempted >= 3
    assert result.failed == 0
    scale = np.float32(0.1)
    formulas = [*MEAN.values(), average_half_away]
    assert [int(f(np.asarray([7]), 2, scale, scale, 0, 0)[0]) for f in formulas] == [4, 4, 4, 4, 4]
