"""Weighted squared error: the weights are what counts, and weight 1 is the plain one."""

import numpy as np
import pytest
import torch

from halfstep.core.grid import Affine
from halfstep.core.qtype import UINT8, QType
from halfstep.errors import CalibrationError
from halfstep.quant.calibrators.mse import Mse
from halfstep.quant.calibrators.weighted_mse import WeightedMse
from tests.models import normal


def direct(values: torch.Tensor, weights: torch.Tensor, grid: Affine) -> float:
    x = values.numpy()
    return float((weights.numpy() * (x - grid.dequantize(grid.quantize(x))) ** 2).sum())


def test_weights_of_one_are_the_plain_squared_error() -> None:
    x = normal(5000) ** 3
    plain, weighted = Mse(UINT8), WeightedMse(UINT8)
    plain.update(x)
    weighted.update_weighted(x, torch.ones_like(x))
    assert np.array_equal(plain.histogram.counts, weighted.histogram.counts)
    assert plain.range() == weighted.range()
    again = WeightedMse(UINT8)
    again.update(x)
    assert again.range() == plain.range()


def test_the_error_is_that_of_the_values_with_their_weights() -> None:
    x, weights = normal(20000), normal(20000, seed=1).square()
    calibrator = WeightedMse(UINT8)
    calibrator.update_weighted(x, weights)
    for high in (1.0, 2.0, 4.0):
        grid = Affine.from_range(np.asarray(-2.5), np.asarray(high), UINT8)
        assert calibrator.error_of(grid) == pytest.approx(direct(x, weights, grid), rel=0.02)


def test_the_range_is_the_best_of_many() -> None:
    x, weights = normal(20000) ** 3, normal(20000, seed=1).square()
    calibrator = WeightedMse(QType.parse("uint4"))
    calibrator.update_weighted(x, weights)
    low, high = calibrator.range()
    found = direct(x, weights, Affine.from_range(low, high, calibrator.qtype))
    for factor in np.linspace(0.2, 2, 19):
        for other in ((low * factor, high), (low, high * factor), (low * factor, high * factor)):
            grid = Affine.from_range(*other, calibrator.qtype)
            assert found <= 1.02 * direct(x, weights, grid)


def test_what_weighs_nothing_is_not_seen() -> None:
    x = torch.cat([normal(1000), torch.tensor([500.0, -500.0])])
    weights = torch.cat([torch.ones(1000), torch.zeros(2)])
    mine, other = WeightedMse(UINT8), WeightedMse(UINT8)
    mine.update_weighted(x, weights)
    other.update_weighted(x[:1000], weights[:1000])
    assert mine.range() == other.range()
    mine.update_weighted(x, torch.zeros_like(x))
    assert mine.range() == other.range()


def test_a_huge_value_is_kept_or_clipped_by_its_weight() -> None:
    x = torch.cat([normal(10000), torch.tensor([40.0])])
    high = {}
    for weight in (1e-6, 1e6):
        calibrator = WeightedMse(UINT8)
        calibrator.update_weighted(x, torch.cat([torch.ones(10000), torch.tensor([weight])]))
        high[weight] = float(calibrator.range()[1])
    assert high[1e-6] < 6
    assert high[1e6] == pytest.approx(40, rel=0.05)


def test_batches_and_the_growth_of_the_range_do_not_matter() -> None:
    x, weights = normal(4000) * torch.linspace(0.01, 30, 4000), normal(4000, seed=1).square()
    whole, parts = WeightedMse(UINT8), WeightedMse(UINT8)
    whole.update_weighted(x, weights)
    for some in torch.arange(4000).split(333):
        parts.update_weighted(x[some], weights[some])
    np.testing.assert_allclose(whole.histogram.counts, parts.histogram.counts, rtol=1e-9)
    np.testing.assert_allclose(whole.range(), parts.range(), rtol=1e-9)


def test_two_workers_are_one() -> None:
    x, weights = normal(4000), normal(4000, seed=1).square()
    whole, first, second = (WeightedMse(UINT8) for _ in range(3))
    whole.update_weighted(x, weights)
    first.update_weighted(x[:1000], weights[:1000])
    second.update_weighted(x[1000:], weights[1000:])
    first.merge(second)
    np.testing.assert_allclose(first.range(), whole.range(), rtol=1e-9)


def test_nothing_seen_is_no_range() -> None:
    with pytest.raises(CalibrationError, match="has not seen any values"):
        WeightedMse(UINT8).range()


def test_what_is_not_finite_is_refused() -> None:
    for bad in (float("nan"), float("inf")):
        x = normal(10)
        x[3] = bad
        with pytest.raises(CalibrationError, match="a value or a weight of 10 is not finite"):
            WeightedMse(UINT8).update_weighted(x, torch.ones(10))
    weights = torch.ones(10)
    weights[2] = float("inf")
    with pytest.raises(CalibrationError, match="a value or a weight of 10 is not finite"):
        WeightedMse(UINT8).update_weighted(normal(10), weights)


def test_channels_are_refused() -> None:
    with pytest.raises(CalibrationError, match="the weightedmse calibrator finds one range"):
        WeightedMse(UINT8, axis=0)
