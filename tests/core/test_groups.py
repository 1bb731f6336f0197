"""Scales for groups: the grid of each group, and the sum of accumulators with different scales."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfstep.core.grid import Affine, group_count, power_of_two_above
from halfstep.core.qtype import INT8, INT32, QType
from halfstep.core.requant import ACCUMULATOR, GROUPS, float_scale, float_sum
from halfstep.errors import CalibrationError
from tests.broken import core as broken
from tests.core.exact import half_even, nearest_float32, rational

SHAPE = (3, 2, 5)  # 10 values a channel on axis 0
SIZES = (1, 3, 4, 5, 9, 10, 64)


def grid_in_groups(make: type[Affine], shape: tuple[int, ...], axis: int, size: int) -> Affine:
    rng = np.random.default_rng(size)
    channels = shape[axis]
    n_groups = group_count(int(np.prod(shape)) // channels, size)
    scale = np.exp(rng.uniform(-5, 1, (channels, n_groups))).astype(np.float32)
    zero_point = rng.integers(-128, 128, scale.shape).astype(np.int32)
    return make(INT8, scale, zero_point, axis, size)


def assert_groups_equal_grids_of_their_own(make: type[Affine]) -> None:
    """Law: each run of values of a channel lies on a grid of its own, the last run too."""
    real = np.random.default_rng(0).normal(0, 30, SHAPE).astype(np.float32)
    for axis in (0, 1, 2, -1):
        apart = np.moveaxis(real, axis, 0).reshape(SHAPE[axis], -1)
        for size in SIZES:
            grid = grid_in_groups(make, SHAPE, axis, size)
            codes = grid.quantize(real)
            found = np.moveaxis(codes, axis, 0).reshape(apart.shape)
            back = np.moveaxis(grid.dequantize(codes), axis, 0).reshape(apart.shape)
            for channel, group in np.ndindex(*grid.scale.shape):
                at = channel, slice(group * size, (group + 1) * size)
                alone = Affine(INT8, grid.scale[channel, group], grid.zero_point[channel, group])
                np.testing.assert_array_equal(found[at], alone.quantize(apart[at]))
                np.testing.assert_array_equal(back[at], alone.dequantize(found[at]))


def test_groups_equal_grids_of_their_own() -> None:
    assert_groups_equal_grids_of_their_own(Affine)


@pytest.mark.parametrize("specimen", [broken.GroupsAcrossChannels, broken.GroupsOfEqualSize])
def test_broken_groups_are_rejected(specimen: type[Affine]) -> None:
    with pytest.raises(AssertionError):
        assert_groups_equal_grids_of_their_own(specimen)


def test_from_range_of_groups_equals_one_range_at_a_time() -> None:
    low, high = np.float32([[-1, 0, -3], [-5, -1e-9, 0]]), np.float32([[2, 0, -1], [1, 1e-9, 7]])
    for how in ({}, {"symmetric": True}, {"pow2": True}, {"symmetric": True, "pow2": True}):
        grid = Affine.from_range(low, high, INT8, axis=0, group_size=4, **how)
        assert grid.group_size == 4
        for at in np.ndindex(2, 3):
            alone = Affine.from_range(low[at], high[at], INT8, **how)
            assert (grid.scale[at], grid.zero_point[at]) == (alone.scale, alone.zero_point)


def test_the_scale_of_a_channel_is_that_of_its_widest_group() -> None:
    scale = np.float32([[1, 4, 2], [3, 0.5, 0.25]])
    assert Affine(INT8, scale, np.int32(0), 0, 2).channel_scale.tolist() == [4, 3]
    assert Affine(INT8, scale[:, 0], np.int32(0), 0).channel_scale.tolist() == [1, 3]
    assert Affine(INT8, scale[0, 0], np.int32(0)).channel_scale == 1


def test_a_grid_of_groups_says_so_and_is_another_than_that_of_other_groups() -> None:
    grid = Affine(INT8, np.float32([[1, 4], [3, 0.5]]), np.int32(0), 0, 2)
    assert str(grid) == "int8 4 scales in [0.5, 4] on axis 0 in groups of 2"
    assert grid.same_as(Affine(INT8, grid.scale, np.int32(0), 0, 2))
    assert not grid.same_as(Affine(INT8, grid.scale, np.int32(0), 0, 3))


@pytest.mark.parametrize(
    ("scale", "axis", "size", "text"),
    [
        (np.ones(3), 0, 2, r"axis 0 with scales of shape \(3,\) and groups of 2$"),
        (np.ones((3, 2)), 0, None, r"axis 0 with scales of shape \(3, 2\)$"),
        (np.ones((3, 2)), None, 2, r"axis None with scales of shape \(3, 2\) and groups of 2$"),
    ],
)
def test_scales_of_another_shape_are_refused(
    scale: Any, axis: int | None, size: int | None, text: str
) -> None:
    with pytest.raises(CalibrationError, match=text):
        Affine(INT8, scale, np.int32(0), axis, size)


def test_values_of_another_number_of_groups_are_refused() -> None:
    grid = Affine(INT8, np.ones((2, 3)), np.int32(0), 0, 4)
    assert grid.quantize(np.ones((2, 12), np.float32)).shape == (2, 12)
    text = (
        r"^scales of shape \(2, 3\) in groups of 4 for values of shape \(2, 13\) with channels on "
        r"axis 0$"
    )
    with pytest.raises(CalibrationError, match=text):
        grid.quantize(np.ones((2, 13), np.float32))


def test_group_count() -> None:
    assert [group_count(n, 4) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


def test_power_of_two_above() -> None:
    values = np.float32([0, 1, 1.0000001, 0.75, 2.0**-60, 3])
    assert power_of_two_above(values).tolist() == [0, 1, 2, 1, 2.0**-60, 4]


def test_codes_wider_than_32_bits_are_exact() -> None:
    grid = Affine(QType(48), np.float32(2.0**-20), np.int32(0))
    codes = grid.quantize(np.float32([2.0**24, -1.5, 1e30, -1e30]))
    assert codes.dtype == np.int64
    assert codes.tolist() == [2**44, -3 * 2**19, 2**47 - 1, -(2**47)]
    np.testing.assert_array_equal(grid.dequantize(codes[:2]), np.float32([2.0**24, -1.5]))


# Sums of accumulators with different scales


@st.composite
def sums(draw: Any) -> tuple[list[int], list[float], float, float, int]:
    n = draw(st.integers(1, 6))
    power_of_two = draw(st.booleans())
    scales = st.integers(-9, 0).map(lambda k: 2.0**k)
    if not power_of_two:
        scales = st.floats(2.0**-10, 1, width=32)
    accs = draw(st.lists(st.integers(-(2**25), 2**25), min_size=n, max_size=n))
    weights = draw(st.lists(scales, min_size=n, max_size=n))
    return accs, weights, draw(scales), 64 * draw(scales), draw(st.integers(-128, 127))


def exact_sum(accs: list[int], weights: list[float], si: float, so: float, zero: int) -> int:
    f, total = nearest_float32, Fraction(0)
    for acc, sw in zip(accs, weights, strict=True):
        multiplier = f(f(rational(si) * rational(sw)) / rational(so))
        total = f(total + f(f(Fraction(acc)) * multiplier))
    return half_even(total) + zero


def assert_sum_is_exact(formula: Any, case: tuple[Any, ...]) -> None:
    """Law: every product and every sum, from the left, rounded to float32; the integer at last."""
    accs, weights, si, so, zero = case
    scales = [np.float32(s) for s in (si, so)]
    terms = [(np.asarray([a], np.float64), np.float32(w)) for a, w in zip(*case[:2], strict=True)]
    expected = exact_sum(accs, weights, si, so, zero)
    if abs(expected) < 2**23:
        assert formula(iter(terms), *scales, zero).tolist() == [expected]


@given(sums())
@settings(max_examples=300)
def test_sum_is_exact(case: tuple[Any, ...]) -> None:
    assert_sum_is_exact(float_sum, case)


# Sums that only one order, and one rounding at a time, gets right: ties and cancellation.
HARD = [
    ([2**24 + 1, -(2**24), 1], [1.0, 1.0, 1.0], 1.0, 64.0, 0),
    ([3, 2**26, -(2**26)], [1.0, 1.0, 1.0], 1.0, 4.0, 3),
    ([5, 7, 9], [0.3, 0.7, 0.9], 0.11, 0.77, -1),
    ([1, 1, 1], [0.5, 0.25, 0.25], 1.0, 2.0, 1),
    ([3, -1], [1.0, 1.0], 1.0, 4.0, 127),
]


@pytest.mark.parametrize("specimen", broken.SUM_SPECIMENS)
def test_broken_sum_is_rejected(specimen: str) -> None:
    for case in HARD:
        assert_sum_is_exact(float_sum, case)
    with pytest.raises(AssertionError):
        for case in HARD:
            assert_sum_is_exact(broken.SUM_SPECIMENS[specimen], case)


def test_one_group_is_the_formula_without_groups() -> None:
    acc = np.random.default_rng(0).integers(-(2**26), 2**26, 1000).astype(np.float64)
    scales = [np.float32(s) for s in (0.013, 0.0021, 0.37)]
    np.testing.assert_array_equal(
        float_sum([(acc, scales[1])], scales[0], scales[2], 7), float_scale(acc, *scales, 7)
    )


def test_torch_gives_the_codes_of_numpy() -> None:
    rng = np.random.default_rng(0)
    accs = [rng.integers(-(2**26), 2**26, (50, 4)).astype(np.float64) for _ in range(5)]
    weights = [np.exp(rng.uniform(-9, 0, (1, 4))).astype(np.float32) for _ in range(5)]
    scales = np.float32(0.013), np.float32(9)
    found = float_sum(zip(accs, weights, strict=True), *scales, 3)
    tensors = zip(map(torch.from_numpy, accs), weights, strict=True)
    np.testing.assert_array_equal(float_sum(tensors, *scales, 3).numpy(), found)


def test_formulas_with_a_form_for_groups_are_formulas() -> None:
    assert set(GROUPS) <= set(ACCUMULATOR)
    assert INT32.bits == 32
