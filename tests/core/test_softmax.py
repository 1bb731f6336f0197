"""Softmax of codes: the table's formula one value at a time, and what both formulas share."""

import doctest
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from halfstep.core import softmax
from halfstep.core.softmax import SOFTMAX
from tests.broken import softmax as broken

Array = NDArray[Any]
F = np.float32
SCALES = [F(s) for s in (0.001, 0.0371, 0.1, 0.7)]
OUTPUTS = [(F(s), z) for s, z in ((1 / 256, 0), (1 / 128, 3), (1, 3), (2**-22, 128))]
LENGTHS = (1, 2, 3, 10, 333)


def rows(length: int, low: int = 0, high: int = 256) -> Array:
    """Random codes, rows of equal ones, whose probabilities are often ties, and nearly equal."""
    x = np.random.default_rng(length).integers(low, high, (30, length))
    x[:8] = np.linspace(low, high - 1, 8).astype(int)[:, None]
    x[8:16] = x[8:16] // 128 * 3
    return x


def exact_row(name: str, row: list[int], scale_in: float, scale_out: float, zero: int) -> list[int]:
    """One row, step by step in Python: float64 is written out, float32 is rounded to."""
    length, step = len(row), float(scale_in)
    if name == "integer":
        whole = [math.floor(math.exp((c - max(row)) * step) * 2**22 + 0.5) for c in row]
        n, total_of_whole = math.floor(F(1) / F(scale_out)), sum(whole)
        return [(power * n + total_of_whole // 2) // total_of_whole + zero for power in whole]
    room = float(F(math.log(float(np.finfo(F).max / F(length))))) - 5 if name == "table" else 0.0
    powers = [F(math.exp((code - max(row) + room / step) * step)) for code in row]
    total = F(0)
    for power in powers:
        total = F(total + power)
    if name == "table":
        steps = math.floor(F(1) / F(scale_out))
        reals = [float(power) * steps / float(total) for power in powers]
    else:
        reals = [float(F(F(power / total) / F(scale_out))) for power in powers]
    return [round(real) + zero for real in reals]


def assert_codes_are_exact(name: str, formula: Any) -> None:
    """Law: each row has the codes of the formula written out."""
    for length in LENGTHS:
        for scale_in in SCALES:
            for scale_out, zero in OUTPUTS:
                x = rows(length)
                found = formula(x, -1, 256, scale_in, scale_out, zero)
                expected = [
                    exact_row(name, row, scale_in, scale_out, zero) for row in x[:20].tolist()
                ]
                where = f"{name} of {length}, {scale_in} to {scale_out}"
                np.testing.assert_array_equal(found[:20], expected, where)


@pytest.mark.parametrize("name", ["table", "dequantized"])
def test_codes_are_exact(name: str) -> None:
    assert_codes_are_exact(name, SOFTMAX[name])


@pytest.mark.parametrize("specimen", broken.SOFTMAX_SPECIMENS)
def test_broken_softmax_is_rejected(specimen: str) -> None:
    name, formula = broken.SOFTMAX_SPECIMENS[specimen]
    with pytest.raises(AssertionError, match=f"{name} of"):
        assert_codes_are_exact(name, formula)


@pytest.mark.parametrize("name", SOFTMAX)
def test_only_differences_of_codes_matter(name: str) -> None:
    for length in LENGTHS:
        x = rows(length)
        arguments = (SCALES[1], *OUTPUTS[0])
        unsigned = SOFTMAX[name](x, -1, 256, *arguments)
        np.testing.assert_array_equal(SOFTMAX[name](x - 128, -1, 256, *arguments), unsigned)


@pytest.mark.parametrize("name", SOFTMAX)
def test_fewer_codes_use_the_end_of_the_table(name: str) -> None:
    x = rows(10, 0, 16)
    arguments = (SCALES[2], *OUTPUTS[0])
    found = SOFTMAX[name](x, -1, 16, *arguments)
    np.testing.assert_array_equal(found, SOFTMAX[name](x, -1, 256, *arguments))


@pytest.mark.parametrize("name", SOFTMAX)
def test_every_axis(name: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, 5, 4))
    arguments = (256, SCALES[1], *OUTPUTS[0])
    for axis in (0, 1, 2, -1, -2):
        moved = SOFTMAX[name](np.moveaxis(x, axis, -1), -1, *arguments)
        found = SOFTMAX[name](x, axis, *arguments)
        np.testing.assert_array_equal(np.moveaxis(found, axis, -1), moved)


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_torch_and_every_dtype_give_the_same_codes(name: str, dtype: str) -> None:
    for length in LENGTHS:
        x = rows(length)
        arguments = (-1, 256, SCALES[1], *OUTPUTS[1])
        expected = SOFTMAX[name](x, *arguments)
        np.testing.assert_array_equal(SOFTMAX[name](x.astype(dtype), *arguments), expected)
        found = SOFTMAX[name](torch.from_numpy(x.astype(dtype)), *arguments)
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), expected)


def test_probabilities_are_those_of_torch() -> None:
    """Where one is a whole number of steps, all formulas are the softmax but for ties.

    In fixed point, each term of the sum has an error of up to 2^-20; of integers, each of 10, and
    the half of their sum, is off by at most one half in 2^22.
    """
    x = rows(10)
    real = torch.from_numpy(x).double() * 0.1
    exact = real.softmax(-1).numpy() * 256
    near_ties = {"fixed_point": 10 * 2**-20 * 256, "integer": 256 * 6 / 2**22}
    for name, formula in SOFTMAX.items():
        found = formula(x, -1, 256, F(0.1), F(1 / 256), 0)
        assert np.abs(found - exact).max() < 0.5 + near_ties.get(name, 1e-4)


def test_worked_example() -> None:
    result = doctest.testmod(softmax)
    assert result.attempted >= 3
    assert result.failed == 0
