"""Layer normalization of codes against integers of Python, and against its definition."""

import doctest
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from halfstep.core import normalize
from halfstep.core.normalize import LONGEST_ROW, affine_terms, normalized, square_root
from tests.broken.normalize import NORMALIZE_SPECIMENS
from tests.core.exact import half_away, half_even

Array = NDArray[Any]
F = np.float32
CASES = [
    (shape, n_axes, F(scale), eps)
    for shape, n_axes in (((6, 1), 1), ((9, 7), 1), ((5, 3, 4), 2), ((4, 197), 1))
    for scale, eps in ((0.05, 1e-5), (1.0, 0.0), (0.003, 1e-2))
]


def rows(shape: tuple[int, ...]) -> Array:
    """Random steps, rows of equal ones, of one that differs, and of both ends."""
    x = np.random.default_rng(len(shape)).integers(-255, 256, shape)
    x[0], x[1], x[2] = 9, 9, np.where(np.arange(x[2].size).reshape(x[2].shape) % 2, 255, -255)
    x[1].flat[0] = 10
    return x


def exact_row(row: list[int], scale: float, eps: float) -> list[int]:
    n, total = len(row), sum(row)
    centred = [n * d - total for d in row]
    term = half_even(Fraction(2**16) * Fraction(eps) * n * n / Fraction(float(scale)) ** 2)
    root = math.isqrt(sum(c * c for c in centred) * 2**16 // n + term) or 1
    return [
        math.copysign(1, c) * ((abs(c) * 2**18 + root // 2) // root) if c else 0 for c in centred
    ]


def assert_rows_are_exact(formula: Any) -> None:
    """Law: every row has the integers of the formula written out."""
    for shape, n_axes, scale, eps in CASES:
        x = rows(shape)
        found = formula(x, n_axes, scale, eps).reshape(shape[0], -1)
        expected = [exact_row(row.ravel().tolist(), float(scale), eps) for row in x]
        np.testing.assert_array_equal(found, expected, f"rows of {shape} on {scale}, {eps}")


def test_rows_are_exact() -> None:
    assert_rows_are_exact(normalized)


@pytest.mark.parametrize("specimen", NORMALIZE_SPECIMENS)
def test_a_broken_normalization_is_rejected(specimen: str) -> None:
    with pytest.raises(AssertionError, match="rows of"):
        assert_rows_are_exact(NORMALIZE_SPECIMENS[specimen])


def test_values_are_those_of_the_definition() -> None:
    for shape, n_axes, scale, eps in CASES:
        x = rows(shape)
        real = x * np.float64(scale)
        axes = tuple(range(-n_axes, 0))
        centred = real - real.mean(axes, keepdims=True)
        deviation = np.sqrt(real.var(axes, keepdims=True) + eps)
        expected = np.divide(centred, deviation, out=np.zeros_like(real), where=deviation > 0)
        found = normalized(x, n_axes, scale, eps) / 2**10
        # The root has at least 8 bits behind the point, of a deviation of at least about 1.
        assert np.abs(found - expected).max() <= 2**-11 + 2**-8 * np.abs(expected).max()


def test_the_longest_row_fits() -> None:
    x = np.where(np.arange(LONGEST_ROW) < LONGEST_ROW // 2, 255, -255)[None]
    assert normalized(x, 1, F(1), 1e-5).tolist() == [exact_row(x[0].tolist(), 1.0, 1e-5)]


def test_square_roots_are_exact() -> None:
    roots = np.concatenate([np.arange(2000), 2**31 - 1 - np.arange(2000)]).astype(np.int64)
    squares = roots * roots
    for values in (squares, squares + 1, np.maximum(squares - 1, 0)):
        assert square_root(values).tolist() == [math.isqrt(v) for v in values.tolist()]


def test_torch_gives_the_same() -> None:
    for shape, n_axes, scale, eps in CASES:
        found = normalized(torch.from_numpy(rows(shape)), n_axes, scale, eps)
        np.testing.assert_array_equal(found.numpy(), normalized(rows(shape), n_axes, scale, eps))


def test_affine_terms() -> None:
    gamma, beta = (np.asarray([2, -3]), F(0.5)), (np.asarray([1, 10**9]), F(0.25))
    steps, scale, added = affine_terms(gamma, beta)
    assert (steps.tolist(), float(scale)) == ([2, -3], 0.5)
    assert added.tolist() == [half_away(Fraction(1024, 2)), 2**30]
    assert [part.tolist() for part in affine_terms(None, None)] == [1, 1.0, 0]


def test_worked_example() -> None:
    result = doctest.testmod(normalize)
    assert result.attempted >= 2
    assert result.failed == 0
