"""OpenVINO's formulas against the same roundings in exact rational arithmetic."""

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from halfstep.core.fake_quantize import (
    add_rescaled_first,
    fake_quantize,
    folded_sum,
    folded_sum_and_bias,
    sum_alone,
    sum_and_bias,
)
from tests.broken import fake_quantize as broken
from tests.core.exact import half_even, nearest_float32, rational

F = np.float32
RNG = np.random.default_rng(0)
ZEROS = 0, 1, 255, *range(7, 250, 27)
GRIDS = [(F(s), z) for s, z in zip(np.exp(RNG.uniform(-6, 0, len(ZEROS))), ZEROS, strict=True)]
CODES = 0, 255


def ends(scale: np.float32, zero: int) -> list[Fraction]:
    return [nearest_float32(rational(scale) * (code - zero)) for code in CODES]


def line(low: Fraction, high: Fraction) -> tuple[Fraction, Fraction]:
    span = nearest_float32(high - low)
    shift = nearest_float32(nearest_float32(-low * 255) / span)
    return nearest_float32(255 / span), shift


def sum_line(low: Fraction, high: Fraction) -> tuple[Fraction, Fraction]:
    slope, offset = line(low, high)
    inverse = nearest_float32(1 / nearest_float32(1 / slope))
    return (slope if offset else inverse), offset


def code(x: Fraction, slope: Fraction, offset: Fraction) -> int:
    return half_even(nearest_float32(x * slope + offset))


def near_ties(scale: np.float32, zero: int) -> np.ndarray:
    """Real values half-way between codes, and their neighbours."""
    halves = ((np.arange(-4, 260) + 0.5 - zero) * np.float64(scale)).astype(F)
    around = [halves]
    for end in (np.inf, -np.inf):
        step = halves
        for _ in range(3):
            step = np.nextafter(step, F(end))
            around.append(step)
    return np.concatenate(around)


def assert_line_is_exact(formula: Any) -> None:
    for scale, zero in GRIDS:
        real = near_ties(scale, zero)
        on = line(*ends(scale, zero))
        expected = [code(rational(x), *on) for x in real]
        np.testing.assert_array_equal(formula(real, scale, zero), expected, f"{scale}, {zero}")


def test_fake_quantize_is_exact() -> None:
    assert_line_is_exact(fake_quantize)


@pytest.mark.parametrize("name", broken.FAKE_QUANTIZE)
def test_a_line_that_is_nearly_right_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        assert_line_is_exact(broken.FAKE_QUANTIZE[name])


# Sums


def sums(si: np.float32, sw: np.float32, so: np.float32, bias: np.float32, zero: int) -> np.ndarray:
    """Accumulators next to ties."""
    real = near_ties(so, zero)[::2] - bias
    return np.rint(real / np.float64(si * sw)).astype(np.int64)


SCALES = [
    tuple(F(s) for s in row) for row in np.exp(RNG.uniform((-5, -9, -4), (-3, -8, -2), (8, 3)))
]
BIASES = [F(b) for b in RNG.normal(size=len(SCALES))]


def assert_sums_are_exact(formula: Any) -> None:
    for (si, sw, so), bias, (_, zero) in zip(SCALES, BIASES, GRIDS, strict=False):
        acc = sums(si, sw, so, bias, zero)
        on, scale = sum_line(*ends(so, zero)), nearest_float32(rational(si) * rational(sw))
        expected = [
            code(nearest_float32(nearest_float32(int(a) * scale) + rational(bias)), *on)
            for a in acc
        ]
        found = formula(acc, bias, si, sw, so, zero)
        np.testing.assert_array_equal(found, expected, f"{si}, {sw}, {so}, {zero}")


def test_a_sum_and_its_bias_are_exact() -> None:
    assert_sums_are_exact(sum_and_bias)


@pytest.mark.parametrize("name", broken.SUM_AND_BIAS)
def test_a_bias_that_is_added_otherwise_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        assert_sums_are_exact(broken.SUM_AND_BIAS[name])


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_sum_alone_is_exact(per_channel: bool) -> None:
    for (si, sw, so), (_, zero) in zip(SCALES, GRIDS, strict=False):
        weights = np.asarray([sw, sw * F(1.7)]) if per_channel else sw
        acc = sums(si, sw, so, F(0), zero)[:, None]
        lines = []
        for one in np.ravel(weights):
            scale = nearest_float32(rational(si) * rational(one))
            made = line if per_channel else sum_line
            lines.append(made(*(nearest_float32(end / scale) for end in ends(so, zero))))
        found = sum_alone(acc, si, weights, so, zero)
        for channel, (slope, offset) in enumerate(lines):
            first = lines[0][1] if abs(offset - lines[0][1]) < 5e-5 else offset
            expected = [
                half_even(nearest_float32(nearest_float32(int(a) * slope) + first))
                if per_channel
                else code(Fraction(int(a)), slope, offset)
                for a in acc[:, 0]
            ]
            np.testing.assert_array_equal(found[:, channel], expected)


def test_folded_sums_are_exact() -> None:
    for (si, sw, so), bias, (_, zero) in zip(SCALES, BIASES, GRIDS, strict=False):
        acc, scale = sums(si, sw, so, bias, zero), nearest_float32(rational(si) * rational(sw))
        slope, offset = line(*ends(so, zero))
        shift = nearest_float32(nearest_float32(rational(bias) * slope) + offset)
        folded = nearest_float32(scale * slope)
        expected = [
            half_even(nearest_float32(nearest_float32(int(a) * folded) + shift)) for a in acc
        ]
        found = folded_sum_and_bias(acc, bias, si, sw, so, zero)
        np.testing.assert_array_equal(found, expected)

        taken = 12345
        low, high = (
            nearest_float32(nearest_float32(end / scale) + taken) for end in ends(so, zero)
        )
        slope, offset = line(low, high)
        expected = [
            half_even(nearest_float32(nearest_float32((int(a) + taken) * slope) + offset))
            for a in acc
        ]
        found = folded_sum(acc, F(taken), si, sw, so, zero)
        np.testing.assert_array_equal(found, expected)


# Additions


def test_an_addition_is_exact() -> None:
    pairs = list(product(range(0, 256, 15), range(0, 256, 17)))
    a, b = np.transpose(pairs)
    for (sa, sb, _), (_, zero) in zip(SCALES, GRIDS, strict=False):
        za, zb, s = 3, 250, F(sa + sb)
        zero_a = nearest_float32(
            za + nearest_float32(nearest_float32(zb * rational(sb)) / rational(sa))
        )
        ratio = nearest_float32(rational(sa) / rational(sb))
        on = line(*(nearest_float32(end / rational(sb)) for end in ends(s, zero)))
        expected = [
            code(
                nearest_float32(nearest_float32(nearest_float32(int(i) - zero_a) * ratio) + int(j)),
                *on,
            )
            for i, j in pairs
        ]
        found = add_rescaled_first(a, b, sa, sb, s, za, zb, zero)
        np.testing.assert_array_equal(found, expected)


def test_torch_gives_the_same_codes() -> None:
    scale, zero = GRIDS[4]
    real = near_ties(scale, zero)
    found = fake_quantize(torch.from_numpy(real), scale, zero)
    np.testing.assert_array_equal(found.numpy(), fake_quantize(real, scale, zero))
