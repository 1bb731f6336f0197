"""Functions of one code as LiteRT computes them, against rationals written out."""

import doctest
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from halfstep.core import tables
from halfstep.core.grid import Affine
from halfstep.core.qtype import INT8
from tests.broken import tables as broken
from tests.core.exact import (
    fixed_point,
    half_even,
    half_up,
    nearest_float32,
    rational,
    round_twice,
)

CODES = np.arange(-128, 128)
GRIDS = [
    tuple(Affine(INT8, np.float32(s), np.int32(z)) for s, z in pair)
    for pair in (
        ((0.05, 7), (0.0385, -5)),
        ((1 / 16, 3), (1 / 8, -7)),
        ((0.031, -128), (0.0279, -100)),
        ((0.11, 40), (0.2, 3)),
        ((0.007, -9), (0.007, -9)),
    )
]
SLOPES = (0.01, 0.1, 0.25)


def ratio(source: Affine, out: Affine, slope: float = 1.0) -> Fraction:
    f = nearest_float32
    return f(f(rational(source.scale) * rational(np.float32(slope))) / rational(out.scale))


def exact_relu(code: int, source: Affine, out: Affine) -> int:
    steps = round_twice(code - int(source.zero_point), *fixed_point(float(ratio(source, out))))
    return max(steps, 0) + int(out.zero_point)


def exact_leaky(code: int, source: Affine, out: Affine, slope: float) -> int:
    steps = code - int(source.zero_point)
    real = ratio(source, out, 1.0 if steps >= 0 else slope)
    return round_twice(steps, *fixed_point(float(real))) + int(out.zero_point)


def exact_leaky_eight_bits(code: int, source: Affine, out: Affine, slope: float) -> int:
    steps = code - int(source.zero_point)
    multiplier = half_even(256 * ratio(source, out, 1.0 if steps >= 0 else slope))
    return half_up(Fraction(steps * multiplier, 256)) + int(out.zero_point)


EXACT = {
    "relu_double_rounding": (exact_relu, ({},)),
    "leaky_relu_double_rounding": (exact_leaky, tuple({"slope": s} for s in SLOPES)),
    "leaky_relu_eight_bits": (exact_leaky_eight_bits, tuple({"slope": s} for s in SLOPES)),
}


def assert_every_code_is_exact(name: str, function: Any) -> None:
    """Law: all 256 codes become those of the rational formula."""
    exact, choices = EXACT[name]
    for source, out in GRIDS:
        for attrs in choices:
            found = function(CODES, source, out, **attrs)
            expected = [exact(code, source, out, **attrs) for code in CODES.tolist()]
            np.testing.assert_array_equal(found, expected, f"{name} {attrs}, {source} to {out}")


@pytest.mark.parametrize("name", EXACT)
def test_every_code_is_exact(name: str) -> None:
    assert_every_code_is_exact(name, getattr(tables, name))


@pytest.mark.parametrize("specimen", broken.TABLE_SPECIMENS)
def test_a_broken_function_is_rejected(specimen: str) -> None:
    name, function = broken.TABLE_SPECIMENS[specimen]
    with pytest.raises(AssertionError, match=name):
        assert_every_code_is_exact(name, function)


REAL: dict[str, tuple[dict[str, Any], Any]] = {
    "sigmoid_rounded": ({}, lambda x: 1 / (1 + math.exp(-x))),
    "tanh_rounded": ({}, math.tanh),
    "gelu_rounded": ({"approximate": "none"}, lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2)))),
    "hardswish_sixteen_bits": ({}, lambda x: x * min(max(x + 3, 0), 6) / 6),
}


@pytest.mark.parametrize("name", REAL)
def test_codes_are_near_the_function(name: str) -> None:
    """Half a step, and for 16-bit arithmetic half a step more."""
    attrs, function = REAL[name]
    for source, out in GRIDS:
        found = getattr(tables, name)(CODES, source, out, **attrs) - int(out.zero_point)
        real = np.asarray([function(float(x)) for x in source.dequantize(CODES)])
        assert np.abs(found - real / out.scale).max() < (1.0 if "bits" in name else 0.501)


def test_worked_example() -> None:
    result = doctest.testmod(tables)
    assert result.attempted >= 3
    assert result.failed == 0
