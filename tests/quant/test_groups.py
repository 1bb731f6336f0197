"""Scales for groups, in torch: ranges, fake quantization and biases are those of each group."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfstep.core.grid import Affine, group_count
from halfstep.core.qtype import INT8, INT8_NARROW, INT32, QType
from halfstep.core.spec import QuantSpec
from halfstep.errors import CalibrationError
from halfstep.quant.bias import bias_codes, bias_grid, largest_bias_code, widen_for_bias
from halfstep.quant.calibrators.base import Calibrator
from halfstep.quant.calibrators.ema import Ema
from halfstep.quant.calibrators.entropy import Entropy
from halfstep.quant.calibrators.minmax import MinMax
from halfstep.quant.calibrators.mse import Mse
from halfstep.quant.calibrators.percentile import Percentile
from halfstep.quant.functional import spread
from halfstep.quant.quantizers.ste import StraightThrough
from tests.models import normal

WEIGHT = normal(4, 3, 2, 5) ** 3  # 30 values a channel on axis 0
SIZES = (1, 7, 30, 64)
GRIDS: list[dict[str, Any]] = [
    {},
    {"symmetric": True},
    {"pow2": True},
    {"symmetric": True, "pow2": True},
]


def groups_of(weight: torch.Tensor, axis: int, size: int) -> list[list[torch.Tensor]]:
    rows = weight.movedim(axis, 0).flatten(1)
    return [list(row.split(size)) for row in rows]


# Ranges


@pytest.mark.parametrize("kind", [MinMax, Ema, Mse])
@pytest.mark.parametrize("how", GRIDS, ids=str)
@pytest.mark.parametrize("axis", [0, -2])
@pytest.mark.parametrize("size", SIZES)
def test_a_group_has_the_range_that_it_has_alone(
    kind: type[Calibrator], how: dict[str, Any], axis: int, size: int
) -> None:
    calibrator = kind(QType(4), axis=axis, group_size=size, **how)
    calibrator.update(WEIGHT)
    low, high = calibrator.range()
    apart = groups_of(WEIGHT, axis, size)
    assert low.shape == high.shape == (len(apart), len(apart[0]))
    grid = Affine.from_range(low, high, QType(4), axis=axis, group_size=size, **how)
    for at in np.ndindex(low.shape):
        alone = kind(QType(4), axis=0, **how)
        alone.update(apart[at[0]][at[1]][None])
        expected = Affine.from_range(*alone.range(), QType(4), axis=0, **how)
        assert (grid.scale[at], grid.zero_point[at]) == (
            expected.scale[0],
            expected.zero_point[0],
        )


@pytest.mark.parametrize("kind", [Percentile, Entropy])
def test_a_method_without_ranges_of_groups_says_which_have_them(kind: type[Calibrator]) -> None:
    with pytest.raises(CalibrationError, match=r"use minmax|for channels use minmax"):
        kind(INT8, axis=0, group_size=4)


def test_groups_need_an_axis() -> None:
    text = r"^the minmax calibrator finds no ranges of groups with axis=None: use minmax or mse"
    with pytest.raises(CalibrationError, match=text):
        MinMax(INT8, group_size=4)


def test_calibrators_of_other_groups_are_not_merged() -> None:
    one, other = (MinMax(INT8, axis=0, group_size=size) for size in (4, 5))
    other.update(WEIGHT)
    with pytest.raises(CalibrationError, match=r"group_size=5 .*group_size=4.* settings differ$"):
        one.merge(other)
    with pytest.raises(CalibrationError, match="cannot take over"):
        one.adopt(other)
    assert MinMax(QType(4), axis=0, group_size=5).adopt(other).range()[0].shape == (4, 6)


# Fake quantization


@st.composite
def cases(draw: Any) -> tuple[torch.Tensor, int, int]:
    shape = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return normal(*shape, seed=draw(st.integers(0, 99))), axis, draw(st.integers(1, 30))


@given(cases())
@settings(max_examples=60)
def test_fake_quantization_is_that_of_the_grid(case: tuple[torch.Tensor, int, int]) -> None:
    weight, axis, size = case
    spec = QuantSpec(INT8_NARROW, axis=axis, group_size=size, symmetric=True)
    calibrator = MinMax(INT8_NARROW, axis=axis, group_size=size, symmetric=True)
    calibrator.update(weight)
    grid = Affine.from_range(
        *calibrator.range(), INT8_NARROW, axis=axis, group_size=size, symmetric=True
    )
    quantizer = StraightThrough("w:weight", spec, *grid.scale.shape)
    quantizer.set_grid(grid)
    assert quantizer.grid().same_as(grid)
    real = weight.numpy()
    expected = grid.dequantize(grid.quantize(real))
    np.testing.assert_array_equal(quantizer(weight).numpy(), expected)
    with_gradient = weight.clone().requires_grad_()
    found = quantizer(with_gradient)
    np.testing.assert_array_equal(found.detach().numpy(), expected)
    found.sum().backward()
    assert with_gradient.grad is not None
    assert (with_gradient.grad == 1).all()
    scale = torch.tensor(grid.scale)
    np.testing.assert_array_equal(
        spread(scale, axis, tuple(weight.shape), size).expand_as(weight).numpy(),
        np.broadcast_to(grid.spread(grid.scale, real.shape), real.shape),
    )


def test_the_state_of_a_quantizer_of_groups_round_trips() -> None:
    spec = QuantSpec(INT8_NARROW, axis=0, group_size=7, symmetric=True)
    grid = Affine(INT8_NARROW, np.exp(normal(4, 5).numpy()), np.int32(0), 0, 7)
    made, other = (StraightThrough("w:weight", spec, 4, 5) for _ in range(2))
    made.set_grid(grid)
    other.load_state_dict(made.state_dict())
    assert other.grid().same_as(grid)


# Biases

X = Affine(QType(8, signed=False), np.float32(0.01), np.int32(7))


def test_a_bias_is_on_the_scale_of_the_widest_group() -> None:
    weight = Affine(INT8_NARROW, np.float32([[0.1, 0.4], [0.3, 0.2]]), np.int32(0), 0, 5)
    on = bias_grid(X, weight, 2)
    assert on.qtype == INT32
    np.testing.assert_array_equal(on.scale, X.scale * np.float32([0.4, 0.3]))
    assert bias_codes(np.float32([0.4, -3.0]), on).tolist() == [100, -1000]


def test_a_bias_may_be_as_wide_as_its_accumulator() -> None:
    weight = Affine(INT8_NARROW, np.float32(2.0**-30), np.int32(0))
    x = Affine(QType(16), np.float32(2.0**-10), np.int32(0))
    bias = np.float32([0.5, 2.0**-40, -3.0])
    wide = bias_codes(bias, bias_grid(x, weight, 3, QType(48)))
    assert wide.dtype == np.int64
    assert wide.tolist() == [2**39, 1, -3 * 2**40]
    narrow = bias_codes(bias, bias_grid(x, weight, 3))
    assert narrow.dtype == np.int32
    assert narrow.tolist() == [2**28, 1, -(2**28)]


@pytest.mark.parametrize("qtype", [INT32, QType(48)])
@pytest.mark.parametrize("pow2", [False, True])
def test_the_guard_raises_no_more_than_it_must(qtype: QType, pow2: bool) -> None:
    scale = np.float32([[1e-12, 3e-13], [0.1, 0.2], [1e-13, 1e-14]])
    scale = 2.0 ** np.floor(np.log2(scale)) if pow2 else scale
    weight = Affine(INT8_NARROW, scale, np.int32(0), 0, 5)
    bias = np.float32([7.0, 3.0, 0.0])
    found = widen_for_bias(weight, bias, X, qtype, pow2)
    assert found.group_size == 5
    np.testing.assert_array_equal(found.scale[1:], weight.scale[1:])
    codes = bias[0] / (np.float64(X.scale) * found.scale[0])
    limit = largest_bias_code(qtype)
    assert (codes <= limit).all()
    raised = found.scale[0] > weight.scale[0]
    assert (codes[raised] > limit * (0.499 if pow2 else 0.999)).all()
    if pow2:
        assert (np.frexp(found.scale)[0] == 0.5).all()


def test_group_count_is_that_of_the_spec() -> None:
    assert group_count(30, 7) == len(groups_of(WEIGHT, 0, 7)[0])
