"""Calibration: every site gets a grid that holds zero, and nothing stays behind."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import CalibrationError, DataError
from halfstep.graph.calibrate import grid_of, observe
from halfstep.quant.bias import LARGEST_BIAS_CODE
from tests.models import Call, Residual, normal, seeded

DATA = [normal(8, 3, 8, 8, seed=seed) for seed in (1, 2)]


def prepared(model: nn.Module, *shape: int, redraw: bool = True) -> hs.QuantizedModel:
    graph = hs.capture(seeded(model) if redraw else model.eval(), normal(2, *shape))
    return hs.prepare(graph, hs.make_plan(graph, calibrator="minmax"))


def assert_nothing_stays(model: hs.QuantizedModel) -> None:
    for quantizer in model.quantizers():
        assert quantizer.calibrator is None
        assert quantizer.enabled


def test_every_grid_holds_zero():
    model = prepared(Residual(), 3, 8, 8)
    hs.calibrate(model, [batch.abs() + 5 for batch in DATA])
    assert_nothing_stays(model)
    for quantizer in model.quantizers():
        grid = quantizer.grid()
        zero = grid.quantize(np.zeros(grid.scale.shape or 1, np.float32))
        assert not grid.dequantize(zero).any()
        assert (grid.low <= 0).all()
        assert (grid.high >= 0).all()


def test_minmax_covers_what_was_seen():
    model = prepared(Residual(), 3, 8, 8)
    hs.calibrate(model, DATA)
    grid, seen = model.quantizer("x:in").grid(), torch.cat(DATA)
    assert abs(grid.low - seen.min().item()) <= grid.scale
    assert abs(grid.high - seen.max().item()) <= grid.scale


def test_weights_have_a_scale_a_channel_from_themselves():
    model = prepared(Residual(), 3, 8, 8)
    hs.calibrate(model, DATA)
    unit = next(unit for unit in model.units.units if unit.name == "conv")
    weight = model.parameter_of(unit.weight).detach().numpy()
    grid = model.quantizer("conv:weight").grid()
    largest = np.abs(weight).reshape(4, -1).max(axis=1)
    np.testing.assert_array_equal(grid.scale, (largest.astype(np.float64) / 127).astype("f4"))
    assert not grid.zero_point.any()


def test_constants_are_calibrated():
    model = prepared(Call(lambda x: x + torch.tensor([1.0, -3.0, 2.0])), 3)
    hs.calibrate(model, [normal(4, 3)])
    (site,) = [site for site in model.site_quantizer if site.endswith(":constant")]
    grid = model.quantizer(site).grid()
    assert abs(grid.low + 3) <= grid.scale
    assert abs(grid.high - 2) <= grid.scale


def test_the_bias_of_a_dead_channel_raises_its_weight_scale():
    linear = nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.copy_(normal(3, 4))
        linear.weight[1] = 1e-12
        linear.bias.copy_(torch.tensor([0.5, 7.0, -0.5]))
    model = prepared(linear, 4, redraw=False)
    hs.calibrate(model, [normal(8, 4)])
    weight = model.quantizer("linear:weight").grid().scale
    scale = model.quantizer("input_1:in").grid().scale * weight.astype(np.float64)
    codes = np.abs([0.5, 7.0, -0.5] / scale)
    assert (codes <= LARGEST_BIAS_CODE).all()
    assert codes[1] > LARGEST_BIAS_CODE * 0.999, "no larger than it needs to be"
    plain = np.abs(linear.weight.detach().numpy()).max(axis=1) / np.float32(127)
    np.testing.assert_allclose(weight[[0, 2]], plain[[0, 2]], rtol=1e-6)


def test_it_counts_samples():
    model = prepared(Residual(), 3, 8, 8)
    assert hs.calibrate(model, [*DATA, normal(3, 3, 8, 8)]) == 19


def test_it_watches_the_float_model_and_keeps_the_mode():
    model = prepared(Residual(), 3, 8, 8).train()
    hs.calibrate(model, DATA)
    first = {site: model.quantizer(site).grid() for site in model.site_quantizer}
    hs.calibrate(model, DATA)
    assert model.training
    assert all(model.quantizer(site).grid().same_as(grid) for site, grid in first.items())


BAD = {
    "shape": (normal(8, 3, 8, 9), DataError, r"^x:in: batch 1: asked for shape \(N, 3, 8, 8\)"),
    "dtype": (DATA[0].double(), DataError, r"^x:in: batch 1: asked for torch\.float32"),
    "nan": (DATA[0] * torch.nan, DataError, r"^x:in: batch 1: it holds NaN or infinity"),
    "overflow": (DATA[0] * 5e37, DataError, r"^.*:out: non-finite value .*, in batch 1$"),
    "no samples": (DATA[0][:0], DataError, r"^x:in: batch 1: asked for shape"),
}


@pytest.mark.parametrize(("batch", "error", "text"), BAD.values(), ids=BAD)
def test_a_bad_batch_is_named_and_no_observer_stays(batch: Tensor, error, text):
    model = prepared(Residual(), 3, 8, 8).train()
    with pytest.raises(error, match=text):
        hs.calibrate(model, [DATA[0], batch])
    assert_nothing_stays(model)
    assert model.training
    hs.calibrate(model, DATA)


def test_an_empty_loader_is_refused():
    model = prepared(Residual(), 3, 8, 8)
    with pytest.raises(DataError, match=r"^the data has no batch"):
        hs.calibrate(model, [])
    assert_nothing_stays(model)


def test_a_weight_with_nan_is_refused_with_its_site():
    model = prepared(Residual(), 3, 8, 8)
    unit = next(unit for unit in model.units.units if unit.name == "conv")
    with torch.no_grad():
        model.parameter_of(unit.weight)[0, 0, 0, 0] = torch.nan
    with pytest.raises(CalibrationError, match=r"^conv:weight: non-finite value \(nan\)"):
        hs.calibrate(model, DATA)


def test_observing_changes_nothing_and_sees_what_calibration_sees():
    model = prepared(Residual(), 3, 8, 8)
    model.quantizer("conv:weight").enabled = False
    watched = observe(model, DATA, calibrator="mse")
    assert watched.samples == 16
    assert not model.quantizer("conv:weight").enabled
    model.quantizer("conv:weight").enabled = True
    assert_nothing_stays(model)
    with pytest.raises(CalibrationError, match=r"x:in: it has no range yet"):
        model.quantizer("x:in").grid()
    hs.calibrate(model, DATA, calibrator="mse")
    for site, calibrator in watched.calibrators.items():
        quantizer = model.quantizer(site)
        assert grid_of(calibrator, quantizer.spec, site).same_as(quantizer.grid())
