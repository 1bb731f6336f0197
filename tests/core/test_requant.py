"""Every requantization formula, against exact rational arithmetic."""

import doctest
import itertools
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from halfstep.core import requant
from halfstep.core.requant import (
    ACCUMULATOR,
    fixed_point_multiplier,
    float_multiplier,
    multiply_double_rounding,
    multiply_single_rounding,
    rounding_divide_by_pot,
    srdhm,
    truncating_divide,
)
from tests.broken import core as broken
from tests.core.exact import (
    fixed_point,
    half_away,
    half_even,
    half_up,
    high_multiply,
    nearest_float32,
    rational,
    round_twice,
)

MIN, MAX = -(2**31), 2**31 - 1
CLAMP = -(2**17), 2**17
EDGES = [MIN, MIN + 1, -(2**30) - 1, -(2**30), -1, 0, 1, 2**24 + 1, 2**30, 2**30 + 1, MAX - 1, MAX]


# The formulas as rationals, one code at a time


def exact_float(acc: int, si: float, sw: float, so: float) -> int:
    f = nearest_float32
    multiplier = f(f(rational(si) * rational(sw)) / rational(so))
    return half_even(f(f(Fraction(acc)) * multiplier))


def exact_double_rounding(acc: int, si: float, sw: float, so: float) -> int:
    return round_twice(acc, *fixed_point(float(si) * float(sw) / float(so)))


def exact_double_rounding_product(acc: int, si: float, sw: float, so: float) -> int:
    product = nearest_float32(rational(si) * rational(sw))
    return round_twice(acc, *fixed_point(float(product) / float(so)))


def exact_single_rounding(acc: int, si: float, sw: float, so: float) -> int:
    q, shift = fixed_point(float(si) * float(sw) / float(so))
    return half_up(Fraction(acc * q) * Fraction(2) ** (shift - 31))


def exact_single_rounding_away(acc: int, si: float, sw: float, so: float) -> int:
    q, shift = fixed_point(float(si) * float(sw) / float(so))
    return half_away(Fraction(acc * q) * Fraction(2) ** (shift - 31))


EXACT = {
    "float": exact_float,
    "double_rounding": exact_double_rounding,
    "double_rounding_product": exact_double_rounding_product,
    "single_rounding": exact_single_rounding,
    "single_rounding_away": exact_single_rounding_away,
}


def scale_triples() -> list[tuple[np.float32, ...]]:
    """Generic scales; ratios that are powers of two, where every odd sum is a tie; tiny ones."""
    rng = np.random.default_rng(0)
    generic = np.exp(rng.uniform(-6, 0, (6, 3))).astype(np.float32)
    triples = [(si, sw / 100, so) for si, sw, so in generic]
    triples += [
        (si, sw, 2**k * (si * sw))
        for (si, sw, _), k in zip(generic, (1, 1, 2, 3, 9, 9), strict=True)
    ]
    triples += [
        tuple(map(np.float32, t)) for t in ((1, 1, 2), (0.5, 0.25, 1), (1, 1, 1), (1, 1, 18))
    ]
    triples += [tuple(map(np.float32, t)) for t in ((1, 2**-31, 1), (2**-60, 1, 1), (0.1, 1e-9, 9))]
    return triples


TRIPLES = scale_triples()
SUMS = np.concatenate(
    [
        np.arange(-200, 200),
        np.asarray(EDGES),
        np.random.default_rng(1).integers(-(2**22), 2**22, 200),
        2 * np.random.default_rng(2).integers(2**23, 2**24, 100) + 1,
    ]
)


@cache
def exact_steps(name: str) -> np.ndarray:
    """What the rational formula makes of every sum, a row for each triple of scales."""
    return np.asarray([[EXACT[name](int(acc), *triple) for acc in SUMS] for triple in TRIPLES])


def assert_formula_is_exact(name: str, formula: Any) -> None:
    """Law: the codes are those of the rational formula, for every scale, zero point and sum.

    Codes that any type clamps are clamped here too: float32 cannot hold all of them.
    """
    for triple, steps in zip(TRIPLES, exact_steps(name), strict=True):
        for zero_point in (0, -7, 128):
            codes = np.clip(formula(SUMS, *triple, zero_point), *CLAMP)
            expected = np.clip(steps + zero_point, *CLAMP)
            np.testing.assert_array_equal(codes, expected, f"{name} of {triple}")


@pytest.mark.parametrize("name", ACCUMULATOR)
def test_formula_is_exact(name: str) -> None:
    assert_formula_is_exact(name, ACCUMULATOR[name])


@pytest.mark.parametrize("specimen", broken.ACCUMULATOR_SPECIMENS)
def test_broken_formula_is_rejected(specimen: str) -> None:
    name, formula = broken.ACCUMULATOR_SPECIMENS[specimen]
    with pytest.raises(AssertionError):
        assert_formula_is_exact(name, formula)


def test_the_formulas_differ_from_each_other() -> None:
    codes = {
        name: np.stack([formula(SUMS, *triple, 0) for triple in TRIPLES])
        for name, formula in ACCUMULATOR.items()
    }
    for one, other in itertools.combinations(codes, 2):
        assert np.any(codes[one] != codes[other]), f"{one} and {other} agree on all sums"


def test_float_multiplier_rounds_twice_in_order() -> None:
    for si, sw, so in TRIPLES:
        product = nearest_float32(rational(si) * rational(sw))
        assert rational(float_multiplier(si, sw, so)) == nearest_float32(product / rational(so))


def assert_multiplier_is_exact(multiplier: Any) -> None:
    """Law: q is the mantissa rounded to 31 bits, in [2^30, 2^31), and what is too small is 0."""
    rng = np.random.default_rng(0)
    reals = np.ldexp(rng.uniform(0.5, 1, 500), rng.integers(-40, 12, 500))
    ones = np.asarray([np.nextafter(1, 0), 1 - 2.0**-32, 1 - 2.0**-33, 1 - 3 * 2.0**-33])
    ties = (2**30 + np.arange(8) + 0.5) / 2**31
    powers = 2.0 ** np.arange(-33, 5)
    for real in np.concatenate([reals, ones, ties, powers, ones * 2.0**-32]):
        q, shift = multiplier(real)
        assert (int(q), int(shift)) == fixed_point(real), f"{real.hex()}: {q}, {shift}"


def test_fixed_point_multiplier_is_exact() -> None:
    assert_multiplier_is_exact(fixed_point_multiplier)


@pytest.mark.parametrize(
    "specimen",
    [
        broken.multiplier_truncated,
        broken.multiplier_overflowing,
        broken.multiplier_with_any_shift,
    ],
)
def test_broken_multiplier_is_rejected(specimen: Any) -> None:
    with pytest.raises(AssertionError):
        assert_multiplier_is_exact(specimen)


def test_fixed_point_multiplier_takes_arrays() -> None:
    reals = np.asarray([[0.3, 1 - 2.0**-40], [2.0**-50, 6.0]])
    q, shift = fixed_point_multiplier(reals)
    assert [(int(a), int(b)) for a, b in zip(q.flat, shift.flat, strict=True)] == [
        fixed_point(real) for real in reals.flat
    ]
    assert q.shape == shift.shape == (2, 2)


@pytest.mark.parametrize("multiply", [multiply_double_rounding, multiply_single_rounding])
def test_a_vanishing_multiplier_gives_zero_for_every_sum(multiply: Any) -> None:
    x = np.asarray(EDGES)
    for real in (2.0**-33, 2.0**-34 - 2.0**-80, 2.0**-60, 2.0**-120):
        assert not multiply(x, *fixed_point_multiplier(real)).any()


def small_and_edge_pairs() -> tuple[np.ndarray, np.ndarray]:
    """Codes times multiples of 2^25, which tie in one of 64 products, and int32's edges."""
    pairs = [*itertools.product(range(-64, 65), range(-(2**31), 2**31, 2**25))]
    pairs += [*itertools.product(EDGES, EDGES)]
    a, q = np.asarray(pairs, np.int64).T
    return a, q


def assert_srdhm_is_exact(high: Any) -> None:
    """Law: the nearest of a * q / 2^31, ties up, saturated."""
    a, q = small_and_edge_pairs()
    found = high(a, q)
    expected = [high_multiply(int(x), int(y)) for x, y in zip(a, q, strict=True)]
    assert found.tolist() == expected


def test_srdhm_is_exact() -> None:
    a, q = small_and_edge_pairs()
    ties = (a * q) % 2**31 == 2**30
    assert np.any(ties & (a * q > 0))
    assert np.any(ties & (a * q < 0))
    assert_srdhm_is_exact(srdhm)
    assert srdhm(np.asarray([MIN]), np.asarray([MIN])) == MAX


@pytest.mark.parametrize("specimen", [broken.srdhm_ties_away, broken.srdhm_unsaturated])
def test_broken_srdhm_is_rejected(specimen: Any) -> None:
    with pytest.raises(AssertionError):
        assert_srdhm_is_exact(specimen)


def assert_divide_by_pot_is_exact(divide: Any) -> None:
    """Law: the nearest of x / 2^n, ties away from zero, for all n from 0 to 31."""
    numbers = np.asarray([*range(-300, 301), *EDGES])
    for n in range(32):
        found = divide(numbers, np.full_like(numbers, n))
        assert found.tolist() == [half_away(Fraction(int(x), 2**n)) for x in numbers], n


def test_rounding_divide_by_pot_is_exact() -> None:
    assert_divide_by_pot_is_exact(rounding_divide_by_pot)


@pytest.mark.parametrize("specimen", [broken.pot_ties_up, broken.pot_floor])
def test_broken_divide_is_rejected(specimen: Any) -> None:
    with pytest.raises(AssertionError):
        assert_divide_by_pot_is_exact(specimen)


def test_truncating_divide_rounds_towards_zero() -> None:
    numbers = np.asarray([*range(-50, 51), MIN, MAX])
    for divisor in range(1, 12):
        found = truncating_divide(numbers, divisor).tolist()
        assert found == [int(Fraction(int(x), divisor)) for x in numbers]


@pytest.mark.parametrize("name", ACCUMULATOR)
def test_per_channel_scales_equal_one_channel_at_a_time(name: str) -> None:
    formula = ACCUMULATOR[name]
    rng = np.random.default_rng(0)
    acc = rng.integers(-(2**20), 2**20, (2, 5, 3, 3))
    scale_in, scale_out = np.float32(0.02), np.float32(0.31)
    scales = np.exp(rng.uniform(-9, -2, 5)).astype(np.float32)
    together = formula(acc, scale_in, scales.reshape(5, 1, 1), scale_out, 3)
    apart = [formula(acc[:, c], scale_in, scales[c], scale_out, 3) for c in range(5)]
    np.testing.assert_array_equal(together, np.stack(apart, axis=1))


@pytest.mark.parametrize("name", ACCUMULATOR)
@pytest.mark.parametrize("dtype", ["int32", "int64", "float64"])
def test_torch_gives_the_codes_of_numpy(name: str, dtype: str) -> None:
    acc = SUMS.astype(dtype)
    for triple in TRIPLES:
        from_numpy = ACCUMULATOR[name](acc, *triple, 5)
        from_torch = ACCUMULATOR[name](torch.from_numpy(acc), *triple, 5)
        assert isinstance(from_torch, torch.Tensor)
        np.testing.assert_array_equal(from_numpy, from_torch.numpy())
        np.testing.assert_array_equal(from_numpy, ACCUMULATOR[name](SUMS, *triple, 5))


def test_worked_example() -> None:
    result = doctest.testmod(requant)
    assert result.attempted >= 3
    assert result.failed == 0
    q, shift = fixed_point_multiplier(0.125 / 3)
    assert int(srdhm(np.asarray(1000), q)) == 667
    assert int(shift) == -4
    assert float_multiplier(*map(np.float32, (0.5, 0.25, 3))) == np.float32(0.041666668)
