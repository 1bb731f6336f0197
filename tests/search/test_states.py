"""States of quantizers: what is on for which layers, and that it is put back."""

import pytest
import torch

import halfstep as hs
from halfstep.core.grid import Affine
from halfstep.core.qtype import QType
from halfstep.errors import UnknownNameError
from halfstep.graph.placement import QUANTIZED
from halfstep.quant.bias import BiasQuantizer
from halfstep.search.states import (
    applied,
    only,
    quantized_units,
    real_biases,
    sites_of,
)
from tests.search.specimens import (
    assert_unchanged,
    batches,
    calibrated,
    prepared,
    snapshot,
)

FINE = Affine(QType(16), torch.tensor(2.0**-10).numpy(), torch.tensor(3).int().numpy())


def test_a_state_is_put_back_with_the_grid_and_the_type():
    model = calibrated()
    before = snapshot(model)
    with applied(model, {"x:in": FINE, "conv:out": False}):
        assert model.quantizer("x:in").grid().same_as(FINE)
        assert model.quantizer("x:in").spec.qtype == QType(16)
        assert not model.quantizer("conv:out").enabled
    assert_unchanged(model, before)


def test_a_state_is_put_back_after_an_error():
    model = calibrated()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="here"), applied(model, {"x:in": FINE}):
        raise RuntimeError("here")
    with (
        pytest.raises(UnknownNameError, match="did you mean 'conv:out'"),
        applied(model, {"x:in": FINE, "convv:out": False}),
    ):
        pytest.fail("the state has an unknown site")
    assert_unchanged(model, before)


def test_a_quantizer_without_a_grid_can_be_given_one_for_a_while():
    model = prepared()
    with applied(model, {"x:in": FINE}):
        assert model.quantizer("x:in").grid().same_as(FINE)
    with pytest.raises(hs.HalfstepError, match="x:in: it has no range yet"):
        model.quantizer("x:in").grid()


def test_real_biases_are_put_back():
    model = calibrated()
    biases = [m for m in model.module.modules() if isinstance(m, BiasQuantizer)]
    assert biases
    with pytest.raises(RuntimeError), real_biases(model):
        assert not any(bias.enabled for bias in biases)
        raise RuntimeError
    assert all(bias.enabled for bias in biases)


@pytest.mark.parametrize("network", ["residual", "branching"])
def test_a_state_is_the_model_that_the_plan_would_prepare(network):
    """``sites_of`` and ``Plan.keep_float`` agree about every single layer, and all but it."""
    model = calibrated(network)
    names = {unit.name for unit in quantized_units(model)}
    choices = [{name} for name in names] + [names - {name} for name in names] + [set(), names]
    for quantized in choices:
        plan = model.plan
        for name in sorted(names - quantized):
            plan = plan.keep_float(name)
        expected = {q.site for q in hs.prepare(model.graph, plan).quantizers()}
        assert sites_of(model, quantized) == expected, quantized


@pytest.mark.parametrize("kept", ["stem", "head", "add", "matmul"])
def test_a_state_computes_what_the_planned_model_computes(kept):
    model = calibrated("branching")
    names = {unit.name for unit in quantized_units(model)}
    assert kept in names
    smaller = hs.prepare(model.graph, model.plan.keep_float(kept))
    for quantizer in smaller.quantizers():
        quantizer.set_grid(model.quantizer(quantizer.site).grid())
    (x, _), *_ = batches()
    with torch.no_grad(), applied(model, only(model, sites_of(model, names - {kept}))):
        assert torch.equal(model(x), smaller(x))


def test_sites_are_weights_or_activations_and_units_compute():
    model = calibrated("branching")
    weights, activations = model.weight_sites(), model.activation_sites()
    assert sorted(weights + activations) == sorted(q.site for q in model.quantizers())
    assert weights == tuple(f"{name}:weight" for name in ("stem", "left", "right", "twice", "head"))
    executions = model.plan.executions
    assert {u.name for u in quantized_units(model)} == {
        name for name, how in executions.items() if how in QUANTIZED
    }
