"""Grids: the laws of quantizing and dequantizing, for every code of every type up to 8 bits."""

import copy
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfstep.core.grid import SMALLEST_SCALE, Affine
from halfstep.core.qtype import INT8, INT8_NARROW, INT32, UINT8, QType
from halfstep.errors import CalibrationError
from tests.broken import core as broken
from tests.core.exact import half_even, nearest_float32, rational

SMALL_TYPES = [
    QType(bits, signed, narrow)
    for bits in range(1, 9)
    for signed, narrow in ((True, False), (False, False), (True, True))
    if bits > 1 or not narrow
]
SCALES = [np.float32(s) for s in (1, 0.25, 0.1, 0.0123, 3, 7e-7, 2.0**-60, 1e12)]


def grids(make: type[Affine], qtype: QType) -> list[Affine]:
    """Grids with the zero point at both ends, at 0 and on an odd code between."""
    zeros = {qtype.qmin, qtype.qmax, 0, (qtype.qmin + qtype.qmax) // 2 | 1}
    zeros = {min(max(z, qtype.qmin), qtype.qmax) for z in zeros}
    return [make(qtype, scale, np.int32(z)) for scale in SCALES for z in sorted(zeros)]


def reals_of(grid: Affine) -> np.ndarray:
    """Sorted: half steps and their neighbours over the range and beyond it, and generic values."""
    steps = np.arange(2 * (grid.qtype.qmin - 300), 2 * (grid.qtype.qmax + 300), 7) / 2
    halves = ((steps - grid.zero_point) * np.float64(grid.scale)).astype(np.float32)
    inf = np.float32(np.inf)
    generic = np.random.default_rng(0).normal(0, 200, 200) * grid.scale
    near = [np.nextafter(halves, inf), np.nextafter(halves, -inf)]
    return np.sort(np.concatenate([halves, *near, generic]).astype(np.float32))


def codes_of(qtype: QType) -> np.ndarray:
    return np.arange(qtype.qmin, qtype.qmax + 1).astype(qtype.storage)


# Laws


def assert_every_code_round_trips(grid: Affine) -> None:
    codes = codes_of(grid.qtype)
    found = grid.quantize(grid.dequantize(codes))
    assert found.dtype == grid.qtype.storage
    np.testing.assert_array_equal(found, codes)


def assert_zero_is_exact(grid: Affine) -> None:
    zeros = np.zeros(2, np.float32)
    np.testing.assert_array_equal(grid.quantize(zeros), grid.zero_point)
    np.testing.assert_array_equal(grid.dequantize(grid.quantize(zeros)), 0)


def assert_idempotent(grid: Affine) -> None:
    once = grid.dequantize(grid.quantize(reals_of(grid)))
    np.testing.assert_array_equal(grid.dequantize(grid.quantize(once)), once)


def assert_monotone(grid: Affine) -> None:
    assert np.all(np.diff(grid.quantize(reals_of(grid)).astype(int)) >= 0)
    assert np.all(np.diff(grid.dequantize(codes_of(grid.qtype))) > 0)


def assert_error_is_at_most_half_a_step(grid: Affine) -> None:
    """Inside the range, up to float32's rounding of the quotient and of the product."""
    real = reals_of(grid)
    inside = real[(real >= grid.low) & (real <= grid.high)].astype(np.float64)
    found = grid.dequantize(grid.quantize(inside)).astype(np.float64)
    power_of_two = np.frexp(grid.scale)[0] == 0.5
    slack = 0 if power_of_two else (np.abs(inside) + np.abs(found)) * 2.0**-24
    assert np.all(np.abs(found - inside) <= grid.scale.astype(np.float64) / 2 + slack)


def assert_codes_are_exact(grid: Affine) -> None:
    """The nearest integer of the float32 quotient, ties to even, plus the zero point, clamped."""
    for x, code in zip(reals_of(grid)[::3], grid.quantize(reals_of(grid))[::3], strict=True):
        steps = half_even(nearest_float32(rational(x) / rational(grid.scale)))
        exact = min(max(steps + int(grid.zero_point), grid.qtype.qmin), grid.qtype.qmax)
        assert code == exact, f"{grid}: {x} is {code}, not {exact}"


def assert_reals_are_exact(grid: Affine) -> None:
    codes = codes_of(grid.qtype)[::5]
    for code, real in zip(codes, grid.dequantize(codes), strict=True):
        steps = Fraction(int(code) - int(grid.zero_point))
        assert rational(real) == nearest_float32(rational(grid.scale) * steps)


LAWS = [
    assert_every_code_round_trips,
    assert_zero_is_exact,
    assert_idempotent,
    assert_monotone,
    assert_error_is_at_most_half_a_step,
    assert_reals_are_exact,
]


@pytest.mark.parametrize("qtype", SMALL_TYPES, ids=str)
def test_laws(qtype: QType) -> None:
    for grid in grids(Affine, qtype):
        for law in LAWS:
            law(grid)


@pytest.mark.parametrize("qtype", [QType(16), QType(16, False), QType(12, True, True)], ids=str)
def test_laws_of_wider_types(qtype: QType) -> None:
    for scale in (np.float32(0.25), np.float32(0.0123)):
        for law in LAWS[:-1]:
            law(Affine(qtype, scale, np.int32(3)))


@pytest.mark.parametrize("qtype", [INT8, UINT8, INT8_NARROW, QType(4), QType(2), QType(1)], ids=str)
def test_codes_are_exact(qtype: QType) -> None:
    for grid in grids(Affine, qtype)[::3]:
        assert_codes_are_exact(grid)


@pytest.mark.parametrize(
    ("law", "specimen"),
    [
        (assert_every_code_round_trips, broken.ZeroPointOffByOne),
        (assert_every_code_round_trips, broken.Truncated),
        (assert_zero_is_exact, broken.ZeroPointOffByOne),
        (assert_idempotent, broken.ZeroPointOffByOne),
        (assert_idempotent, broken.ScaleOffByOnePercent),
        (assert_monotone, broken.WrapsAround),
        (assert_error_is_at_most_half_a_step, broken.ScaleOffByOnePercent),
        (assert_error_is_at_most_half_a_step, broken.ZeroPointOffByOne),
        (assert_error_is_at_most_half_a_step, broken.Truncated),
        (assert_codes_are_exact, broken.HalfUp),
        (assert_codes_are_exact, broken.TimesReciprocal),
        (assert_codes_are_exact, broken.WrapsAround),
        (assert_reals_are_exact, broken.ScaleOffByOnePercent),
    ],
)
def test_broken_grid_is_rejected(law: Any, specimen: type[Affine]) -> None:
    with pytest.raises(AssertionError):
        for grid in grids(specimen, INT8):
            law(grid)


# Per channel


def assert_channels_equal_grids_of_their_own(make: type[Affine]) -> None:
    """Law: a per-channel grid is one per-tensor grid for each index of the axis."""
    rng = np.random.default_rng(0)
    scale = np.exp(rng.uniform(-5, 1, 5)).astype(np.float32)
    zero_point = rng.integers(-128, 128, 5).astype(np.int32)
    real = rng.normal(0, 30, (5, 5, 5)).astype(np.float32)
    for axis in (0, 1, 2, -1, -3):
        grid = make(INT8, scale, zero_point, axis)
        codes = grid.quantize(real)
        channels = [Affine(INT8, *pair) for pair in zip(scale, zero_point, strict=True)]
        apart = np.moveaxis(real, axis, 0)
        stacked = [channel.quantize(x) for channel, x in zip(channels, apart, strict=True)]
        np.testing.assert_array_equal(codes, np.moveaxis(np.stack(stacked), 0, axis))
        stacked = [channel.dequantize(c) for channel, c in zip(channels, stacked, strict=True)]
        np.testing.assert_array_equal(
            grid.dequantize(codes), np.moveaxis(np.stack(stacked), 0, axis)
        )


def test_channels_equal_grids_of_their_own() -> None:
    assert_channels_equal_grids_of_their_own(Affine)


def test_broken_channels_are_rejected() -> None:
    with pytest.raises(AssertionError):
        assert_channels_equal_grids_of_their_own(broken.FirstChannelForAll)


def test_from_range_per_channel_equals_stacking() -> None:
    low, high = np.float32([-1, 0, 0, -3]), np.float32([2, 0, 1e-30, -1])
    for symmetric in (True, False):
        grid = Affine.from_range(low, high, INT8, axis=1, symmetric=symmetric)
        for channel, pair in enumerate(zip(low, high, strict=True)):
            alone = Affine.from_range(*pair, INT8, symmetric=symmetric)
            assert (grid.scale[channel], grid.zero_point[channel]) == (
                alone.scale,
                alone.zero_point,
            )


# Grids from ranges

ends = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-4, 4, width=32)
types = st.sampled_from([*SMALL_TYPES, QType(16), QType(16, False)])


def assert_covers(grid: Affine, low: float, high: float) -> None:
    """Law: both ends, widened to hold zero, are within half a step of the grid."""
    for end in (min(low, 0.0), max(high, 0.0)):
        real = np.float32(end)
        found = np.float64(grid.dequantize(grid.quantize(real)))
        slack = 2.0**-22 * max(abs(low), abs(high))
        assert abs(found - real) <= np.float64(grid.scale) / 2 + slack, f"{grid} has no {end}"
    assert grid.quantize(np.float32(0)) == grid.zero_point


@given(ends, ends, types, st.booleans())
def test_from_range_covers_the_range(low: float, high: float, qtype: QType, pow2: bool) -> None:
    low, high = sorted((low, high))
    assert_covers(Affine.from_range(low, high, qtype, pow2=pow2), low, high)


@given(ends, ends, types.filter(lambda t: t.signed and t.bits > 1), st.booleans())
def test_symmetric_from_range_covers_the_range(
    low: float, high: float, qtype: QType, pow2: bool
) -> None:
    low, high = sorted((low, high))
    grid = Affine.from_range(low, high, qtype, symmetric=True, pow2=pow2)
    assert grid.zero_point == 0
    assert_covers(grid, low, high)


def test_a_range_off_by_one_percent_is_rejected() -> None:
    grid = Affine.from_range(-1, 1, INT8)
    with pytest.raises(AssertionError, match="has no"):
        assert_covers(broken.ScaleOffByOnePercent(INT8, grid.scale, grid.zero_point), -1, 1)


def assert_pow2_rounds_up(make: type[Affine]) -> None:
    """Law: the scale is the smallest power of two that is not below the plain scale."""
    for power in (-50, -7, -1, 0, 3, 6, 40):
        exact = np.float32(2.0**power)
        for scale in (exact, np.nextafter(exact, np.float32(np.inf)), exact * np.float32(1.5)):
            high = np.float64(scale) * 255
            plain, rounded = (make.from_range(0, high, UINT8, pow2=pow2) for pow2 in (False, True))
            assert plain.scale == scale
            assert np.frexp(rounded.scale)[0] == 0.5
            assert rounded.scale / 2 < plain.scale <= rounded.scale, f"{plain.scale!r}"


def test_pow2_rounds_up() -> None:
    assert_pow2_rounds_up(Affine)


def test_broken_pow2_is_rejected() -> None:
    with pytest.raises(AssertionError):
        assert_pow2_rounds_up(broken.LogarithmicPow2)


@pytest.mark.parametrize(
    ("low", "high", "qtype", "scale", "zero_point"),
    [
        (0, 0, UINT8, 1, 0),
        (0, 0, INT8, 1, -128),
        (-0.0, 0, INT8, 1, -128),
        (0, 255, UINT8, 1, 0),
        (-255, 0, UINT8, 1, 255),
        (-128, 127, INT8, 1, 0),
        (2, 255, UINT8, 1, 0),  # widened to hold zero
        (-255, -3, UINT8, 1, 255),
        (-1, 1, QType(1, False), 2, 0),  # -1 / 2 is a tie
        (-3, 1, QType(1), 4, 0),
        (-64, 63.5, INT8, 0.5, 0),
        (-0.7, 254.3, UINT8, 1, 1),
    ],
)
def test_from_range(low: float, high: float, qtype: QType, scale: float, zero_point: int) -> None:
    grid = Affine.from_range(low, high, qtype)
    assert (grid.scale, grid.zero_point) == (scale, zero_point)


@pytest.mark.parametrize(
    ("low", "high", "qtype", "scale"),
    [
        (0, 0, INT8, 1),
        (-127, 127, INT8_NARROW, 1),
        (-127, 3, INT8_NARROW, 1),
        (-3, 127, INT8_NARROW, 1),
        (-128, 127, INT8, 1),
        (-128, 3, INT8, 1),
        (-3, 127, INT8, 1),
        (-7, 0, QType(4, True, True), 1),
    ],
)
def test_symmetric_from_range(low: float, high: float, qtype: QType, scale: float) -> None:
    grid = Affine.from_range(low, high, qtype, symmetric=True)
    assert (grid.scale, grid.zero_point) == (scale, 0)


@pytest.mark.parametrize("width", [1e-45, 1e-40, 1e-38, 1e-30, 2.0**-54])
def test_a_tiny_width_gives_the_smallest_scale(width: float) -> None:
    for low, high in ((0, width), (-width, 0), (-width, width)):
        for symmetric in (True, False):
            for pow2 in (True, False):
                grid = Affine.from_range(low, high, INT8, symmetric=symmetric, pow2=pow2)
                assert grid.scale == SMALLEST_SCALE
                assert np.isfinite(1 / grid.scale)


@pytest.mark.parametrize(
    ("low", "high"),
    [(np.nan, 1), (-1, np.nan), (-np.inf, 1), (0, np.inf), (np.nan, np.nan)],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_range_that_is_not_finite_is_refused(low: float, high: float, symmetric: bool) -> None:
    with pytest.raises(CalibrationError, match=r"^a range must be finite, found \[.*(nan|inf).*\]"):
        Affine.from_range(np.float32(low), np.float32(high), INT8, symmetric=symmetric)


def test_a_range_of_half_of_float32_is_covered() -> None:
    largest = float(np.finfo(np.float32).max) / 2
    assert_covers(Affine.from_range(-largest, largest, UINT8), -largest, largest)


def test_what_lies_beyond_the_range_saturates() -> None:
    grid = Affine(INT8, np.float32(1e-10), np.int32(3))
    codes = grid.quantize(np.float32([-np.inf, -1e30, -1, 1, 1e30, np.inf]))
    assert codes.tolist() == [-128, -128, -128, 127, 127, 127]


def test_int32_bias_codes() -> None:
    grid = Affine(INT32, np.float32(2.0**-20), np.int32(0))
    codes = grid.quantize(np.float32([1, -1.5, 2.0**-21, 3 * 2.0**-21, 1e9, -1e9]))
    assert codes.dtype == np.int32
    assert codes.tolist() == [2**20, -3 * 2**19, 0, 2, 2**31 - 1, -(2**31)]
    np.testing.assert_array_equal(grid.dequantize(codes[:2]), np.float32([1, -1.5]))


# Values and errors


def test_ends_of_the_range() -> None:
    grid = Affine(UINT8, np.float32([0.5, 2]), np.int32([128, 0]), axis=0)
    assert grid.low.tolist() == [-64, 0]
    assert grid.high.tolist() == [63.5, 510]
    assert grid.low.dtype == grid.high.dtype == np.float32


def test_one_zero_point_serves_all_channels() -> None:
    grid = Affine(INT8, np.float32([1, 2, 3]), np.int32(0), axis=0)
    assert grid.zero_point.tolist() == [0, 0, 0]


def test_same_as_compares_every_field() -> None:
    grid = Affine(INT8, np.float32([1, 2]), np.int32([3, 4]), axis=0)
    assert grid.same_as(Affine(INT8, np.float32([1, 2]), np.int32([3, 4]), axis=0))
    for other in (
        Affine(INT8, np.float32([1, 2.0000002]), np.int32([3, 4]), axis=0),
        Affine(INT8, np.float32([1, 2]), np.int32([3, 5]), axis=0),
        Affine(INT8, np.float32([1, 2]), np.int32([3, 4]), axis=1),
        Affine(UINT8, np.float32([1, 2]), np.int32([3, 4]), axis=0),
        Affine(INT8, np.float32(1), np.int32(3)),
    ):
        assert not grid.same_as(other)


def test_a_grid_is_frozen_and_keeps_its_own_arrays() -> None:
    scale = np.float32([1, 2])
    grid = Affine(INT8, scale, np.int32([0, 0]), axis=0)
    scale[0] = 9
    assert grid.scale.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        grid.scale[0] = 9
    with pytest.raises(AttributeError, match="cannot assign"):
        grid.axis = 1  # type: ignore[misc]


def test_copies_are_the_same_grid() -> None:
    grid = Affine(INT8, np.float32([1, 2]), np.int32([3, 4]), axis=0)
    assert copy.deepcopy(grid).same_as(grid)
    assert pickle.loads(pickle.dumps(grid)).same_as(grid)


def test_text() -> None:
    assert str(Affine(UINT8, np.float32(0.1), np.int32(7))) == "uint8 scale=0.1 zero_point=7"
    channels = Affine(INT8, np.float32([0.25, 2]), np.int32(0), axis=1)
    assert str(channels) == "int8 2 scales in [0.25, 2] on axis 1"


@pytest.mark.parametrize("scale", [0, -1, np.nan, np.inf, [1, 0], [1, np.nan]])
def test_a_scale_that_is_not_positive_and_finite_is_refused(scale: Any) -> None:
    axis = 0 if isinstance(scale, list) else None
    message = r"^scales must be positive and finite, found (0.0|-1.0|nan|inf)$"
    with pytest.raises(CalibrationError, match=message):
        Affine(INT8, np.float32(scale), np.int32(0), axis)


@pytest.mark.parametrize(
    ("qtype", "zero_point"), [(INT8, 128), (UINT8, -1), (INT8_NARROW, -128), (QType(4), 8)]
)
def test_a_zero_point_that_is_no_code_is_refused(qtype: QType, zero_point: int) -> None:
    message = f"^zero point {zero_point} is outside of {qtype}$"
    with pytest.raises(CalibrationError, match=message):
        Affine(qtype, np.float32(1), np.int32(zero_point))


@pytest.mark.parametrize(
    ("scale", "axis", "message"),
    [
        ([1, 2], None, r"^axis None with scales of shape \(2,\)$"),
        (1, 0, r"^axis 0 with scales of shape \(\)$"),
        ([[1, 2]], 1, r"^axis 1 with scales of shape \(1, 2\)$"),
    ],
)
def test_scales_of_the_wrong_shape_are_refused(scale: Any, axis: int | None, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        Affine(INT8, np.float32(scale), np.int32(0), axis)
