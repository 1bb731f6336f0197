"""Ranges by the error of the output: what they find is better, and the model stays as it was."""

import numpy as np
import pytest
import torch

import halfstep as hs
from halfstep.core.grid import Affine
from halfstep.errors import DataError, UnknownNameError
from halfstep.search import output_ranges
from halfstep.search.metrics import METRICS, Meter
from halfstep.search.samples import kept
from halfstep.search.states import applied
from tests.search.specimens import assert_unchanged, batches, calibrated, snapshot


def measured(model: hs.QuantizedModel, grids: dict[str, Affine], metric: str = "mse") -> float:
    meter = Meter(METRICS[metric])
    with torch.no_grad(), applied(model, grids):
        for batch in kept(model, batches(labelled=False)):
            meter.add(model.module(*batch.inputs)[0], batch.reference, None)
    return meter.value


def spoiled(site: str, factor: float) -> hs.QuantizedModel:
    """A calibrated network in which one range is so many times too wide."""
    model = calibrated("residual")
    grid = model.quantizer(site).grid()
    low, high = (np.asarray(factor * end) for end in (grid.low, grid.high))
    model.quantizer(site).set_grid(Affine.from_range(low, high, grid.qtype))
    return model


@pytest.mark.parametrize("metric", ["mse", "sqnr", "cosine"])
def test_the_values_are_those_of_the_model_with_these_grids(metric: str) -> None:
    model = spoiled("conv:out", 8)
    before = snapshot(model)
    found = output_ranges(model, batches(labelled=False), metric=metric)
    assert_unchanged(model, before)
    assert found.before == pytest.approx(measured(model, {}, metric))
    assert found.after == pytest.approx(measured(model, dict(found.grids), metric))
    assert METRICS[metric].worse(found.before, found.after)


def test_a_range_that_is_too_wide_is_narrowed() -> None:
    model = spoiled("conv:out", 8)
    found = output_ranges(model, batches(labelled=False), sites=["conv:out"], rounds=3)
    (row,) = found.rows
    assert row.site == "conv:out" and row.gain > 0
    assert row.after[1] - row.after[0] < (row.before[1] - row.before[0]) / 2
    assert found.after < found.before


def test_more_rounds_are_never_worse() -> None:
    model = spoiled("conv:out", 8)
    values = [output_ranges(model, batches(labelled=False), rounds=n).after for n in (1, 2, 3)]
    assert values == sorted(values, reverse=True)


def test_no_candidate_is_no_change() -> None:
    found = output_ranges(calibrated("residual"), batches(labelled=False), factors=[1.0])
    assert not found.grids and found.after == found.before
    assert str(found).startswith("0 ranges changed: mse ")


def test_a_grid_that_the_kernel_dictates_is_not_moved() -> None:
    model = calibrated("branching")
    (fixed,) = [
        site for site in model.activation_sites()
        if model.quantizer(site).spec.calibrator == "unit_interval"
    ]  # fmt: skip
    assert fixed not in output_ranges(model, batches(labelled=False)).grids
    assert not output_ranges(model, batches(labelled=False), sites=[fixed]).grids


def test_shared_grids_stay_shared() -> None:
    model = calibrated("branching")
    found = output_ranges(model, batches(labelled=False))
    assert set(found.grids) <= set(model.activation_sites())
    for site, grid in found.grids.items():
        model.quantizer(site).set_grid(grid)
    hs.lower(model)


def test_the_report_names_the_ranges() -> None:
    found = output_ranges(spoiled("conv:out", 8), batches(labelled=False), sites=["conv:out"])
    assert "\n  conv:out: [" in str(found)


def test_errors() -> None:
    model = calibrated("residual")
    with pytest.raises(UnknownNameError, match=r"unknown metric 'msq': did you mean 'mse'"):
        output_ranges(model, batches(), metric="msq")
    with pytest.raises(UnknownNameError, match=r"unknown quantizer of an activation 'conv:weight'"):
        output_ranges(model, batches(), sites=["conv:weight"])
    with pytest.raises(DataError, match="the data has no batch"):
        output_ranges(model, [])
