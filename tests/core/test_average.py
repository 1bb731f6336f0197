"""Averages of real values over windows, against float32 arithmetic written out in rationals."""

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from halfstep.core.pooling import AVERAGE
from tests.broken import average as broken
from tests.core.exact import half_even, nearest_float32, rational

Array = NDArray[Any]
SCALES = [
    tuple(map(np.float32, pair))
    for pair in ((0.25, 0.5), (0.1, 0.1), (0.3, 0.3), (0.9, 0.1), (0.037, 0.011))
]
ZEROS = (0, 3, 101)


def windows(scale: np.float32, n: int) -> list[Array]:
    """``n`` taps over 60 windows; the first windows have equal values, whose means are ties."""
    steps = np.random.default_rng(n).integers(-100, 156, (n, 60))
    steps[:, :20] = np.arange(20) + (np.arange(n) % 2)[:, None]
    return list((steps.astype(np.float32) * scale).astype(np.float32))


def counts(n: int) -> Array:
    return np.where(np.arange(60) % 3 == 2, np.float32(max(n - 1, 1)), np.float32(n))


@cache
def exact_codes(n: int, scales: tuple[np.float32, ...], zero: int) -> list[int]:
    f, found = nearest_float32, []
    for taps, count in zip(np.stack(windows(scales[0], n), axis=1), counts(n), strict=True):
        total = Fraction(0)
        for tap in taps:
            total = f(total + rational(tap))
        found.append(half_even(f(f(f(total / rational(count)) / rational(scales[1])) + zero)))
    return found


def assert_average_is_exact(name: str, formula: Callable[..., Array]) -> None:
    """Law: the taps are added in turn, and every step is rounded to float32 once."""
    for n in (1, 2, 4, 6, 9):
        for scales in SCALES:
            for zero in ZEROS:
                found = formula(windows(scales[0], n), counts(n), scales[1], zero)
                expected = exact_codes(n, scales, zero)
                np.testing.assert_array_equal(found, expected, f"{name} of {n}, {scales}, {zero}")


@pytest.mark.parametrize("name", AVERAGE)
def test_average_is_exact(name: str) -> None:
    assert_average_is_exact(name, AVERAGE[name])


@pytest.mark.parametrize("specimen", broken.AVERAGE_SPECIMENS)
def test_broken_average_is_rejected(specimen: str) -> None:
    with pytest.raises(AssertionError, match="dequantized of"):
        assert_average_is_exact("dequantized", broken.AVERAGE_SPECIMENS[specimen])


@pytest.mark.parametrize("name", AVERAGE)
def test_torch_gives_the_same_codes(name: str) -> None:
    for scales in SCALES:
        values = windows(scales[0], 9)
        expected = AVERAGE[name](values, counts(9), scales[1], 3)
        found = AVERAGE[name](map(torch.from_numpy, values), torch.from_numpy(counts(9)),
                              scales[1], 3)  # fmt: skip
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), expected)
