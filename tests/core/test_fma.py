"""The emulated fused multiply-add, against exact rational arithmetic."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfstep.core.elementwise import fma, round_to_odd_sum
from tests.broken import core as broken
from tests.core.exact import LARGEST_FLOAT32, nearest_float32, rational

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
float64s = st.floats(-(2.0**1022), 2.0**1022)
LARGEST_ROUNDED_DOWN = LARGEST_FLOAT32 + Fraction(2) ** 103


@st.composite
def trapped_products(draw: st.DrawFn) -> tuple[float, float, float]:
    """``a * b`` half-way between two float32 numbers, and a ``c`` too small for float64 to keep.

    The float64 sum loses ``c``, which decides the tie.
    """
    a = 2 * draw(st.integers(2**10, 2**11 - 1)) + 1
    smallest = 2**24 // a // 2 + 1
    b = 2 * draw(st.integers(smallest, 2 * smallest - 2)) + 1
    up, down, below = (
        draw(st.integers(-40, 40)),
        draw(st.integers(-40, 0)),
        draw(st.integers(30, 60)),
    )
    sign = draw(st.sampled_from([-1, 1]))
    c = sign * math.ldexp(draw(st.integers(2**23, 2**24 - 1)), up + down - below - 24)
    return math.ldexp(a, up), math.ldexp(b, down), c


def column(value: float) -> np.ndarray:
    return np.asarray([value], np.float32)


def fused_exactly(a: float, b: float, c: float) -> Fraction:
    return rational(a) * rational(b) + rational(c)


def assert_fma_is_exact(multiply_add: Any, a: float, b: float, c: float) -> None:
    """Law: a * b + c is rounded once, to the nearest float32, ties to even."""
    exact = fused_exactly(a, b, c)
    found = multiply_add(column(a), column(b), column(c))
    assert found.dtype == np.float32
    assert rational(found[0]) == nearest_float32(exact), f"fma({a!r}, {b!r}, {c!r}) = {found[0]!r}"


@given(float32s, float32s, float32s)
@settings(max_examples=250)
def test_fma_is_exact_over_all_of_float32(a: float, b: float, c: float) -> None:
    if abs(fused_exactly(a, b, c)) < LARGEST_ROUNDED_DOWN:
        assert_fma_is_exact(fma, a, b, c)
        return
    with np.errstate(over="ignore"):
        found = fma(column(a), column(b), column(c))
    assert found[0] == math.copysign(math.inf, fused_exactly(a, b, c))


@given(float32s.filter(bool), st.integers(-140, 20), st.integers(-3, 3), float32s.filter(bool))
@settings(max_examples=150)
def test_fma_is_exact_where_the_product_nearly_cancels(
    a: float, power: int, ulps: int, b: float
) -> None:
    a, b = (math.ldexp(math.frexp(x)[0], power // 2) for x in (a, b))
    c = -np.float32(a * b)
    for _ in range(abs(ulps)):
        c = np.nextafter(c, np.float32(math.copysign(math.inf, ulps)))
    assert_fma_is_exact(fma, np.float32(a), np.float32(b), c)


@given(trapped_products())
@settings(max_examples=150)
def test_fma_is_exact_where_rounding_twice_is_wrong(trap: tuple[float, float, float]) -> None:
    a, b, c = trap
    assert fused_exactly(a, b, 0) != nearest_float32(fused_exactly(a, b, 0)), "not half-way"
    assert a * b + c == a * b, "float64 keeps the addend"
    assert_fma_is_exact(fma, a, b, c)


@pytest.mark.parametrize("specimen", [broken.fma_through_float64, broken.fma_unfused])
def test_broken_fma_falls_into_the_trap(specimen: Any) -> None:
    # 24929 * 673 = 2^24 + 1: half-way between 2^24 and 2^24 + 2.
    for sign in (1, -1):
        trap = (sign * 24929.0, 673.0, sign * 2.0**-60)
        assert_fma_is_exact(fma, *trap)
        with pytest.raises(AssertionError, match="fma"):
            assert_fma_is_exact(specimen, *trap)


def assert_sum_is_rounded_to_odd(add: Any, a: float, b: float) -> None:
    """Law: an exact sum is kept; any other is the neighbour whose last bit is 1."""
    exact = rational(a) + rational(b)
    found = add(np.asarray([a]), np.asarray([b]))[0]
    if rational(a + b) == exact:
        assert found == a + b
        return
    below = a + b if rational(a + b) < exact else np.nextafter(a + b, -np.inf)
    neighbours = np.asarray([below, np.nextafter(below, np.inf)])
    (odd,) = neighbours[neighbours.view(np.int64) % 2 == 1]
    assert found == odd, f"{a!r} + {b!r} = {found!r}, not {odd!r}"


@given(float64s, float64s)
@settings(max_examples=150)
def test_sums_are_rounded_to_odd(a: float, b: float) -> None:
    assert_sum_is_rounded_to_odd(round_to_odd_sum, a, b)


@given(st.integers(1 - 2**53, 2**53 - 1), st.integers(1 - 2**53, 2**53 - 1), st.integers(-60, 60))
@settings(max_examples=250)
def test_sums_of_near_exponents_are_rounded_to_odd(a: int, b: int, exponent: int) -> None:
    assert_sum_is_rounded_to_odd(round_to_odd_sum, float(a), math.ldexp(b, exponent))


@pytest.mark.parametrize("specimen", [broken.sum_not_to_odd, broken.sum_always_odd])
def test_broken_sum_is_rejected(specimen: Any) -> None:
    with pytest.raises(AssertionError):
        for a, b in ((1.0, 2.0**-70), (1.0, -(2.0**-70)), (1.0, 1.0), (3.0, 2.0**-60)):
            assert_sum_is_rounded_to_odd(specimen, a, b)


def test_torch_gives_the_bits_of_numpy() -> None:
    rng = np.random.default_rng(0)
    a, b, c = np.ldexp(rng.normal(size=(3, 4000)), rng.integers(-40, 40, (3, 4000)))
    c[::2] = np.ldexp(rng.normal(size=2000), np.frexp(a * b)[1][::2] + rng.integers(-50, 30, 2000))
    numpy_inputs = [values.astype(np.float32) for values in (a, b, c)]
    from_torch = fma(*(torch.from_numpy(values) for values in numpy_inputs))
    assert from_torch.dtype == torch.float32
    np.testing.assert_array_equal(fma(*numpy_inputs), from_torch.numpy())
    sums = round_to_odd_sum(torch.from_numpy(a * b), torch.from_numpy(c)).numpy()
    np.testing.assert_array_equal(round_to_odd_sum(a * b, c), sums)
    assert np.any(sums != a * b + c)
