"""Costs of bits: what each site alone makes of the output, measured and to second order."""

import numpy as np
import pytest
import torch

import halfstep as hs
from halfstep.core.grid import Affine
from halfstep.errors import DataError, PlanError, UnknownNameError
from halfstep.search import bit_costs, candidate_grids, fisher_costs, observe
from halfstep.search.bit_costs import BitCosts
from halfstep.search.candidates import EVERY_WIDTH, Grids
from halfstep.search.metrics import METRICS, Meter
from halfstep.search.states import applied, only
from tests.search.specimens import assert_unchanged, batches, prepared, snapshot

NETWORKS = pytest.mark.parametrize("network", ["residual", "branching"])


def candidates(model: hs.QuantizedModel, **bits: tuple[int, ...]) -> Grids:
    return candidate_grids(model, observe(model, batches()), **bits)


@NETWORKS
def test_candidates_are_what_calibration_finds_for_each_width(network):
    model = prepared(network)
    grids = candidates(model)
    assert set(grids) == {q.site for q in model.quantizers()}
    for bits in (3, 6):
        plan = hs.make_plan(model.graph, weights=f"int{bits}_narrow", activations=f"uint{bits}")
        other = hs.prepare(model.graph, plan)
        hs.calibrate(other, batches())
        for quantizer in other.quantizers():
            if quantizer.spec.calibrator == "unit_interval":
                continue
            found = grids[quantizer.site][bits]
            assert found.qtype == quantizer.grid().qtype
            # A calibrated weight may have a larger scale, for its bias.
            assert (found.scale <= quantizer.grid().scale).all()
            if quantizer.site in model.activation_sites():
                assert found.same_as(quantizer.grid()), quantizer.site


def test_a_grid_that_the_kernel_dictates_is_the_only_candidate():
    grids = candidates(prepared("branching"))
    (dictated,) = (site for site, found in grids.items() if len(found) == 1)
    assert dictated == "softmax:out"
    assert list(grids[dictated]) == [8]
    assert grids[dictated][8].scale == np.float32(1 / 256)
    assert all(tuple(f) == EVERY_WIDTH for site, f in grids.items() if site != dictated)


def test_widths_that_the_target_does_not_take_are_refused():
    model = prepared()
    watched = observe(model, batches())
    with pytest.raises(PlanError, match="activations: asked for candidates of 4, 16 bits; target"):
        candidate_grids(model, watched, activation_bits=(4, 16))
    with pytest.raises(PlanError, match="weights: asked for candidates of no bits"):
        candidate_grids(model, watched, weight_bits=())


@NETWORKS
@pytest.mark.parametrize("metric", ["kl", "mse"])
def test_costs_are_the_error_of_one_site_alone(network, metric):
    model = prepared(network)
    grids = candidates(model, weight_bits=(3, 8), activation_bits=(2, 4))
    before = snapshot(model)
    costs = bit_costs(model, grids, batches(), metric=metric)
    assert_unchanged(model, before)
    assert costs.measure == metric
    assert tuple(costs.weights) == model.weight_sites()
    assert tuple(costs.activations) == model.activation_sites()
    for site, table in {**costs.weights, **costs.activations}.items():
        for bits, cost in table.items():
            meter = Meter(METRICS[metric])
            state = {**only(model, ()), site: grids[site][bits]}
            with torch.inference_mode(), applied(model, state):
                for x, _ in batches():
                    meter.add(model(x), model.graph.module(x)[0], None)
            assert cost == meter.value


def test_only_errors_can_be_summed():
    model = prepared()
    grids = candidates(model)
    for costs_of in (bit_costs, fisher_costs):
        with pytest.raises(UnknownNameError, match="unknown error that can be summed 'accuracy'"):
            costs_of(model, grids, batches(), metric="accuracy")


def test_weights_that_lose_less():
    costs = BitCosts("kl", {"a:weight": {2: 1.0, 4: 0.5}}, {"a:out": {8: 0.1}})
    less = costs.scaled(weights=0.5)
    assert less.weights["a:weight"] == {2: 0.5, 4: 0.25}
    assert less.activations == costs.activations
    assert less.measure == "kl"


def test_costs_read_as_text():
    model = prepared()
    grids = candidates(model, weight_bits=(3, 8), activation_bits=(4,))
    lines = str(bit_costs(model, grids, batches())).splitlines()
    assert lines[0] == "kl of one site alone, by its bits"
    assert lines[1].split()[:2] == ["stem:weight", "3:"]
    assert len(lines) == 1 + len(grids)


# To second order


@NETWORKS
@pytest.mark.parametrize("metric", ["kl", "mse"])
def test_the_fisher_information_foretells_small_errors(network, metric):
    model = prepared(network)
    grids = candidates(model, weight_bits=(7,), activation_bits=(8,))
    before = snapshot(model)
    fisher = fisher_costs(model, grids, batches(), metric=metric, probes=150)
    assert_unchanged(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())
    measured = bit_costs(model, grids, batches(), metric=metric)
    for side in ("weights", "activations"):
        for site, table in getattr(measured, side).items():
            for bits, cost in table.items():
                found = getattr(fisher, side)[site][bits]
                assert found == pytest.approx(cost, rel=0.4), (site, bits)


def test_an_error_that_the_network_does_not_see_costs_nothing():
    """A shift of all logits: the distribution, and so KL, stays the same; the squares do not."""
    model = prepared()
    fine = Affine(hs.QType(8), np.asarray(2.0**-4), np.asarray(0))
    grids = {**{q.site: {} for q in model.quantizers()}, "fc:out": {8: fine}}

    class Shifted(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0.25

    quantizer = model.quantizer("fc:out")
    quantizer.fake_quantize = Shifted().forward
    assert fisher_costs(model, grids, batches()).activations["fc:out"][8] < 1e-10
    assert fisher_costs(model, grids, batches(), metric="mse").activations["fc:out"][8] > 1e-3


def test_the_fisher_information_is_repeatable_and_streams():
    model = prepared()
    grids = candidates(model, weight_bits=(4,), activation_bits=(4,))
    first = fisher_costs(model, grids, iter(batches()), probes=2)
    assert fisher_costs(model, grids, iter(batches()), probes=2) == first
    assert first.measure == "fisher kl"


def test_outputs_that_are_no_classes_are_refused():
    from halfstep.search.fisher import _labels

    with pytest.raises(DataError, match=r"kl: asked for outputs of shape \(samples, classes\)"):
        _labels(torch.zeros(2, 3, 4))
