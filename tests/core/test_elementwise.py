"""Formulas from codes to codes: every pair of 8-bit codes, against exact arithmetic."""

import doctest
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from halfstep.core import elementwise
from halfstep.core.elementwise import ADD, MUL, QUANTIZE, RESCALE, SUB
from tests.broken import core as broken
from tests.core.exact import (
    f32,
    fixed_point,
    half_away,
    half_even,
    half_up,
    nearest_float32,
    rational,
    round_to_bits,
    round_twice,
    round_twice_all,
)

Codes = NDArray[np.int64]
A, B = (grid.ravel() for grid in np.meshgrid(np.arange(256), np.arange(256)))

# (sa, sb, sy), (za, zb, zy): odd zero points on equal and power-of-two scales make ties common.
PAIRS = [
    ((0.1, 0.1, 0.1), (128, 128, 128)),
    ((0.1, 0.1, 0.1), (3, 250, 77)),
    ((1, 1, 2), (127, 127, 127)),
    ((1, 1, 2), (0, 1, 1)),
    ((0.5, 0.25, 1), (1, 2, 3)),
    ((0.3, 0.3, 0.6), (9, 4, 121)),
    ((1, 1, 4), (3, 3, 1)),
    ((2, 1, 0.5), (255, 0, 13)),
    ((0.0473, 0.0231, 0.0657), (121, 7, 13)),
    ((0.013, 0.9, 0.5), (100, 101, 33)),
    ((0.0004, 0.7, 0.011), (17, 128, 129)),
]
# The scales of a product are chosen so that its codes spread over the type.
PRODUCTS = [((sa, sb, 40 * sa * sb), zeros) for (sa, sb, _), zeros in PAIRS]
PRODUCTS += [((sa, sb, 2**k), zeros) for k, ((sa, sb, _), zeros) in enumerate(PAIRS[2:7])]
# The multiplier is 1/8 in float32 alone.
PRODUCTS += [
    ((sa, sb, 8 * (np.float32(sa) * np.float32(sb))), zeros) for (sa, sb, _), zeros in PAIRS
]


def arguments(pair: tuple[Any, Any]) -> tuple[Any, ...]:
    scales, zeros = pair
    return (*map(np.float32, scales), *zeros)


# The formulas as rationals, one pair of codes at a time


def ratios(sa: float, sb: float, sy: float) -> tuple[Fraction, Fraction]:
    return tuple(nearest_float32(rational(s) / rational(sy)) for s in (sa, sb))


def fused_offset(ra: Fraction, rb: Fraction, za: int, zb: int, zy: int) -> Fraction:
    f = nearest_float32
    return f(zy - f(ra * za + f(rb * zb)))


def exact_fused(a, b, sa, sb, sy, za, zb, zy) -> int:
    f = nearest_float32
    ra, rb = ratios(sa, sb, sy)
    return half_even(f(a * ra + f(b * rb + fused_offset(ra, rb, za, zb, zy))))


def twenty_bit_multipliers(sa: float, sb: float, sy: float) -> tuple[int, int, int]:
    ra, rb = ratios(sa, sb, sy)
    shift = 20
    while Fraction(2) ** (20 - shift) > max(ra, rb):
        shift += 1
    while Fraction(2) ** (21 - shift) <= max(ra, rb):
        shift -= 1
    return half_even(ra * 2**shift), half_even(rb * 2**shift), shift


def exact_twenty_bits(a, b, sa, sb, sy, za, zb, zy) -> int:
    ma, mb, shift = twenty_bit_multipliers(sa, sb, sy)
    return half_up(Fraction((a - za) * ma + (b - zb) * mb, 2**shift)) + zy


def add_multipliers(sa: float, sb: float, sy: float) -> list[tuple[int, int]]:
    common = 2 * max(float(sa), float(sb))
    return [fixed_point(real) for real in (sa / common, sb / common, common / (2**20 * float(sy)))]


def exact_add_double_rounding(a, b, sa, sb, sy, za, zb, zy) -> int:
    of_a, of_b, of_y = add_multipliers(float(sa), float(sb), float(sy))
    total = round_twice((a - za) * 2**20, *of_a) + round_twice((b - zb) * 2**20, *of_b)
    return round_twice(total, *of_y) + zy


def exact_sub_double_rounding(a, b, sa, sb, sy, za, zb, zy) -> int:
    of_a, of_b, of_y = add_multipliers(float(sa), float(sb), float(sy))
    total = round_twice((a - za) * 2**20, *of_a) - round_twice((b - zb) * 2**20, *of_b)
    return round_twice(total, *of_y) + zy


def exact_dequantized(operate: Callable[[Fraction, Fraction], Fraction]) -> Callable[..., int]:
    def formula(a, b, sa, sb, sy, za, zb, zy) -> int:
        f = nearest_float32
        real = f(operate(f((a - za) * rational(sa)), f((b - zb) * rational(sb))))
        return half_even(f(real / rational(sy))) + zy

    return formula


def mul_multiplier(sa: float, sb: float, sy: float) -> Fraction:
    return nearest_float32(nearest_float32(rational(sa) * rational(sb)) / rational(sy))


def exact_offset_inside(a, b, sa, sb, sy, za, zb, zy) -> int:
    f = nearest_float32
    return half_even(f(f((a - za) * (b - zb) * mul_multiplier(sa, sb, sy)) + zy))


def exact_mul_float(a, b, sa, sb, sy, za, zb, zy) -> int:
    return half_even(nearest_float32((a - za) * (b - zb) * mul_multiplier(sa, sb, sy))) + zy


def exact_mul_double_rounding(a, b, sa, sb, sy, za, zb, zy) -> int:
    return round_twice((a - za) * (b - zb), *fixed_point(float(mul_multiplier(sa, sb, sy)))) + zy


# The same for all pairs at once, in float64 rounded to float32 or in integers


def all_fused(a: Codes, b: Codes, sa, sb, sy, za, zb, zy) -> Codes:
    """In integers, units of 2^-42: rounding to 24 bits is then rounding to float32."""
    ra, rb = ratios(sa, sb, sy)
    unit = Fraction(2) ** -42
    numbers = [x / unit for x in (ra, rb, fused_offset(ra, rb, za, zb, zy))]
    assert all(x.denominator == 1 for x in numbers)
    ra_units, rb_units, offset = (int(x) for x in numbers)
    total = round_to_bits(a * ra_units + round_to_bits(b * rb_units + offset))
    floor, rest = total >> 42, total & (2**42 - 1)
    return floor + ((rest > 2**41) | ((rest == 2**41) & (floor % 2 == 1)))


def all_twenty_bits(a: Codes, b: Codes, sa, sb, sy, za, zb, zy) -> Codes:
    ma, mb, shift = twenty_bit_multipliers(sa, sb, sy)
    return (2 * ((a - za) * ma + (b - zb) * mb) + 2**shift) // 2 ** (shift + 1) + zy


def all_add_double_rounding(a: Codes, b: Codes, sa, sb, sy, za, zb, zy) -> Codes:
    of_a, of_b, of_y = add_multipliers(float(sa), float(sb), float(sy))
    total = round_twice_all((a - za) << 20, *of_a) + round_twice_all((b - zb) << 20, *of_b)
    return round_twice_all(total, *of_y) + zy


def all_sub_double_rounding(a: Codes, b: Codes, sa, sb, sy, za, zb, zy) -> Codes:
    of_a, of_b, of_y = add_multipliers(float(sa), float(sb), float(sy))
    total = round_twice_all((a - za) << 20, *of_a) - round_twice_all((b - zb) << 20, *of_b)
    return round_twice_all(total, *of_y) + zy


def all_dequantized(operate: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def formula(a: Codes, b: Codes, sa, sb, sy, za, zb, zy) -> Any:
        real = f32(operate(f32((a - za) * float(sa)), f32((b - zb) * float(sb))))
        return np.rint(f32(real / float(sy))) + zy

    return formula


def all_offset_inside(a: Codes, b: Codes, sa, sb, sy, za, zb, zy) -> Any:
    return np.rint(f32(f32((a - za) * (b - zb) * float(mul_multiplier(sa, sb, sy))) + zy))


def all_mul_float(a: Codes, b: Codes, sa, sb, sy, za, zb, zy) -> Any:
    return np.rint(f32((a - za) * (b - zb) * float(mul_multiplier(sa, sb, sy)))) + zy


def all_mul_double_rounding(a: Codes, b: Codes, sa, sb, sy, za, zb, zy) -> Codes:
    multiplier = fixed_point(float(mul_multiplier(sa, sb, sy)))
    return round_twice_all((a - za) * (b - zb), *multiplier) + zy


def plus(x: Any, y: Any) -> Any:
    return x + y


def minus(x: Any, y: Any) -> Any:
    return x - y


def times(x: Any, y: Any) -> Any:
    return x * y


# op -> name -> (one pair, all pairs)
ORACLES = {
    "add": {
        "fused": (exact_fused, all_fused),
        "twenty_bits": (exact_twenty_bits, all_twenty_bits),
        "double_rounding": (exact_add_double_rounding, all_add_double_rounding),
        "dequantized": (exact_dequantized(plus), all_dequantized(plus)),
    },
    "sub": {
        "double_rounding": (exact_sub_double_rounding, all_sub_double_rounding),
        "dequantized": (exact_dequantized(minus), all_dequantized(minus)),
    },
    "mul": {
        "offset_inside": (exact_offset_inside, all_offset_inside),
        "float": (exact_mul_float, all_mul_float),
        "double_rounding": (exact_mul_double_rounding, all_mul_double_rounding),
        "dequantized": (exact_dequantized(times), all_dequantized(times)),
    },
}
TABLES = {"add": ADD, "sub": SUB, "mul": MUL}
GRIDS = {"add": PAIRS, "sub": PAIRS, "mul": PRODUCTS}
NAMES = [(op, name) for op, table in TABLES.items() for name in table]
SPECIMENS = [
    *(("add", s) for s in broken.ADD_SPECIMENS),
    *(("sub", s) for s in broken.SUB_SPECIMENS),
    *(("mul", s) for s in broken.MUL_SPECIMENS),
]


@cache
def all_codes(op: str, name: str) -> list[Codes]:
    """The codes of all pairs by the vectorised oracle, for each of the op's grids."""
    oracle = ORACLES[op][name][1]
    return [oracle(A, B, *arguments(pair)) for pair in GRIDS[op]]


def assert_every_pair_is_exact(op: str, name: str, formula: Any) -> None:
    """Law: for all 256 x 256 pairs the code is that of exact arithmetic."""
    for pair, expected in zip(GRIDS[op], all_codes(op, name), strict=True):
        found = formula(A, B, *arguments(pair))
        np.testing.assert_array_equal(found, expected, f"{op} {name} of {pair}")


@pytest.mark.parametrize(("op", "name"), NAMES)
def test_every_pair_is_exact(op: str, name: str) -> None:
    assert_every_pair_is_exact(op, name, TABLES[op][name])


@pytest.mark.parametrize(("op", "name"), NAMES)
def test_the_vectorised_oracle_is_the_rational_one(op: str, name: str) -> None:
    rng = np.random.default_rng(0)
    exact = ORACLES[op][name][0]
    for pair, expected in zip(GRIDS[op], all_codes(op, name), strict=True):
        for i in rng.integers(0, A.size, 60):
            assert exact(int(A[i]), int(B[i]), *arguments(pair)) == expected[i]


@pytest.mark.parametrize(("op", "specimen"), SPECIMENS)
def test_broken_formula_is_rejected(op: str, specimen: str) -> None:
    name, formula = getattr(broken, f"{op.upper()}_SPECIMENS")[specimen]
    with pytest.raises(AssertionError, match=f"{op} {name} of"):
        assert_every_pair_is_exact(op, name, formula)


@pytest.mark.parametrize(("op", "name"), NAMES)
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_torch_and_every_dtype_give_the_same_codes(op: str, name: str, dtype: str) -> None:
    a, b = A[::37].astype(dtype), B[::37].astype(dtype)
    formula = TABLES[op][name]
    for pair in GRIDS[op]:
        expected = formula(A[::37], B[::37], *arguments(pair))
        np.testing.assert_array_equal(formula(a, b, *arguments(pair)), expected)
        from_torch = formula(torch.from_numpy(a), torch.from_numpy(b), *arguments(pair))
        assert isinstance(from_torch, torch.Tensor)
        np.testing.assert_array_equal(from_torch.numpy(), expected)


@pytest.mark.parametrize("name", ADD)
def test_signed_codes_are_unsigned_codes_moved_by_128(name: str) -> None:
    for pair in PAIRS[:6]:  # ratios that are powers of two: no offset is inexact
        *scales, za, zb, zy = arguments(pair)
        unsigned = ADD[name](A, B, *scales, za, zb, zy)
        signed = ADD[name](A - 128, B - 128, *scales, za - 128, zb - 128, zy - 128)
        np.testing.assert_array_equal(signed + 128, unsigned)


# Reals to codes, and codes to codes of another grid


def exact_quantize(name: str, x: float, s: float, z: int) -> int:
    f, x, s = nearest_float32, rational(x), rational(s)
    return {
        "division": lambda: half_even(f(x / s)),
        "reciprocal": lambda: half_even(f(x * f(1 / s))),
        "half_away": lambda: half_away(f(x / s)),
    }[name]() + z


def reals_of(scale: np.float32) -> NDArray[np.float32]:
    """Every half step, both neighbours of each, generic values and subnormal ones."""
    halves = (np.arange(-520, 521) / 2 * np.float64(scale)).astype(np.float32)
    inf = np.float32(np.inf)
    near = [halves, np.nextafter(halves, inf), np.nextafter(halves, -inf)]
    rng = np.random.default_rng(0)
    generic = (rng.normal(0, 80, 300) * scale).astype(np.float32)
    return np.concatenate([*near, generic, np.float32([0.0, -0.0, 1e-45, -1e-45, 1e-38])])


QUANTIZE_SCALES = [np.float32(s) for s in (0.1, 1, 0.25, 0.0123, 3, 7e-7)]


@cache
def exact_codes(name: str) -> list[list[int]]:
    return [[exact_quantize(name, x, s, 0) for x in reals_of(s)] for s in QUANTIZE_SCALES]


def assert_quantize_is_exact(name: str, formula: Any) -> None:
    """Law: reals become the codes of exact arithmetic."""
    for scale, expected in zip(QUANTIZE_SCALES, exact_codes(name), strict=True):
        for zero_point in (0, 7, -3):
            found = formula(reals_of(scale), scale, zero_point) - zero_point
            np.testing.assert_array_equal(found, expected, f"quantize {name}, scale {scale}")


@pytest.mark.parametrize("name", QUANTIZE)
def test_quantize_is_exact(name: str) -> None:
    assert_quantize_is_exact(name, QUANTIZE[name])


@pytest.mark.parametrize("specimen", broken.QUANTIZE_SPECIMENS)
def test_broken_quantize_is_rejected(specimen: str) -> None:
    name, formula = broken.QUANTIZE_SPECIMENS[specimen]
    with pytest.raises(AssertionError, match=f"quantize {name}"):
        assert_quantize_is_exact(name, formula)


@pytest.mark.parametrize("name", QUANTIZE)
def test_quantize_of_torch_is_that_of_numpy(name: str) -> None:
    for scale in QUANTIZE_SCALES:
        real = reals_of(scale)
        from_torch = QUANTIZE[name](torch.from_numpy(real), scale, 7)
        np.testing.assert_array_equal(QUANTIZE[name](real, scale, 7), from_torch.numpy())


def exact_rescale(name: str, code: int, sa: float, sy: float, za: int, zy: int) -> int:
    if name == "eight_bits":
        multiplier = half_even(256 * nearest_float32(rational(sa) / rational(sy)))
        return half_up(Fraction((code - za) * multiplier, 256)) + zy
    return round_twice(code - za, *fixed_point(float(sa) / float(sy))) + zy


RESCALE_PAIRS = [(1, 2), (0.1, 0.1), (0.1, 0.07), (0.02, 0.3), (3, 0.5), (1, 1.003), (0.3, 0.1)]


def assert_rescale_is_exact(name: str, formula: Any) -> None:
    """Law: all 256 codes become those of exact arithmetic."""
    for sa, sy in (map(np.float32, pair) for pair in RESCALE_PAIRS):
        for za, zy in ((0, 0), (128, 3), (7, 255), (-5, -128)):
            found = formula(np.arange(256), sa, sy, za, zy)
            expected = [exact_rescale(name, code, sa, sy, za, zy) for code in range(256)]
            np.testing.assert_array_equal(found, expected, f"rescale {name}, {sa} to {sy}")


@pytest.mark.parametrize("name", RESCALE)
def test_rescale_is_exact(name: str) -> None:
    assert_rescale_is_exact(name, RESCALE[name])


@pytest.mark.parametrize("specimen", broken.RESCALE_SPECIMENS)
def test_broken_rescale_is_rejected(specimen: str) -> None:
    name, formula = broken.RESCALE_SPECIMENS[specimen]
    with pytest.raises(AssertionError, match=f"rescale {name}"):
        assert_rescale_is_exact(name, formula)


@pytest.mark.parametrize("name", RESCALE)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_rescale_of_torch_is_that_of_numpy(name: str, dtype: str) -> None:
    codes = np.arange(256).astype(dtype)
    for pair in RESCALE_PAIRS:
        scales = [np.float32(s) for s in pair]
        found = RESCALE[name](torch.from_numpy(codes), *scales, 128, 3)
        np.testing.assert_array_equal(RESCALE[name](np.arange(256), *scales, 128, 3), found.numpy())


def test_worked_example() -> None:
    result = doctest.testmod(elementwise)
    assert result.attempted >= 3
    assert result.failed == 0
    one = np.float32(1)
    for formula in ADD.values():
        assert formula(np.asarray([130]), np.asarray([129]), one, one, one, 128, 128, 128) == 131
    two = np.float32(2)
    for zero_point, code in ((128, 130), (127, 129)):
        found = broken.add_offset_outside(130, 129, one, one, two, 128, 128, zero_point)
        assert found == code
