"""Signal to noise of every site, by definition, and what must hold between sites."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from halfstep.search import sqnr
from halfstep.search.states import applied, only
from tests.search.specimens import assert_unchanged, batches, calibrated, snapshot


def decibels(real: np.ndarray, other: np.ndarray) -> float:
    real, other = real.astype(np.float64), other.astype(np.float64)
    noise = np.square(real - other).sum()
    return math.inf if noise == 0 else 10 * math.log10(np.square(real).sum() / noise)


@pytest.mark.parametrize("network", ["residual", "branching"])
def test_the_noise_of_weights_is_that_of_their_grids(network):
    model = calibrated(network, weights="int4_narrow")
    report = sqnr(model, batches())
    assert [row.site for row in report.weights] == list(model.weight_sites())
    for row in report.weights:
        unit = next(u for u in model.units.units if f"{u.name}:weight" == row.site)
        weight = model.parameter_of(unit.weight).detach().numpy()
        grid = model.quantizer(row.site).grid()
        assert row.own == pytest.approx(decibels(weight, grid.dequantize(grid.quantize(weight))))
        assert row.total == row.own


def test_the_noise_of_the_input_is_that_of_its_grid():
    model = calibrated(activations="uint4")
    report = sqnr(model, batches())
    first = report.activations[0]
    assert first.site == "x:in"
    x = torch.cat([x for x, _ in batches()]).numpy()
    grid = model.quantizer("x:in").grid()
    assert first.own == pytest.approx(decibels(x, grid.dequantize(grid.quantize(x))))
    assert first.total == first.own


def test_the_total_of_the_last_site_is_the_noise_of_the_output():
    model = calibrated(weights="int4_narrow", activations="uint4")
    last = sqnr(model, batches()).activations[-1]
    assert last.site == "fc:out"
    x = torch.cat([x for x, _ in batches()])
    with torch.inference_mode():
        total = decibels(model.graph.module(x)[0].numpy(), model(x).numpy())
        with applied(model, only(model, {"fc:out"})):
            own = decibels(model.graph.module(x)[0].numpy(), model(x).numpy())
    assert (last.own, last.total) == (pytest.approx(own), pytest.approx(total))


@pytest.mark.parametrize("network", ["residual", "branching"])
def test_every_value_with_a_quantizer_of_its_own_is_seen(network):
    model = calibrated(network)
    before = snapshot(model)
    report = sqnr(model, iter(batches()))
    assert_unchanged(model, before)
    seen = {row.site for row in report.activations}
    assert seen <= model.site_quantizer.keys() - set(model.weight_sites())
    assert {model.quantizer(site).site for site in seen} == {
        q.site for q in model.quantizers()
    } - set(model.weight_sites())


def test_it_does_not_matter_which_quantizers_are_on():
    model = calibrated("branching")
    report = sqnr(model, batches())
    model.quantizer("x:in").enabled = False
    assert sqnr(model, batches()) == report
    assert not model.quantizer("x:in").enabled


def test_more_bits_are_less_noise_by_six_decibels_each():
    reports = [sqnr(calibrated(activations=f"uint{b}"), batches()) for b in (4, 6, 8)]
    for few, more in pairwise(reports):
        for a, b in zip(few.activations, more.activations, strict=True):
            assert 6 < b.own - a.own < 18, a.site


def test_the_report_has_a_line_a_site():
    report = sqnr(calibrated(), batches())
    lines = str(report).splitlines()
    assert len(lines) == len(report.weights) + len(report.activations)
    assert lines[0].split()[:3] == ["stem:weight", "own", f"{report.weights[0].own:.1f}"]
