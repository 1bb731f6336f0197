"""Bias correction takes back the shift of rounded weights, from batch norms or from data."""

import copy
import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import DataError
from halfstep.graph.edit import with_biases
from halfstep.graph.slices import sliced
from halfstep.ptq.batchnorm_ranges import set_batchnorm_ranges
from halfstep.ptq.blocks import blocks, of_constant
from halfstep.ptq.clip_weights import clip_weights
from halfstep.ptq.correct_bias import correct_bias, weight_error
from halfstep.ptq.correct_bias_from_data import correct_bias_from_data
from tests.broken import ptq as broken
from tests.models import Call, normal, seeded
from tests.ptq.networks import Mobile, block, settled

IMAGE = (3, 8, 8)


@pytest.fixture(scope="module")
def graph() -> hs.Graph:
    return with_biases(hs.capture(settled(Mobile(), IMAGE), normal(2, *IMAGE)))


def data(count: int = 4) -> list[Tensor]:
    return [normal(64, *IMAGE, seed=20 + seed) for seed in range(count)]


def calibrated(graph: hs.Graph, weights: str = "int4_narrow", **choices) -> hs.QuantizedModel:
    model = hs.prepare(graph, hs.make_plan(graph, "reference", weights=weights, **choices))
    set_batchnorm_ranges(model, input_range=(-5, 5))
    return model


def heads(model: hs.QuantizedModel) -> dict[str, torch.fx.Node]:
    return {unit.name: unit.head for unit in model.units.units if unit.weight is not None}


def outputs(model: hs.QuantizedModel, name: str, batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pre-activations of a layer in the float and in the quantized model, (channels, values)."""
    head = heads(model)[name]
    found = []
    for module in (model.graph.module, model.module):
        nodes = {node.name: node for node in module.graph.nodes}
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        run = sliced(module, inputs, (nodes[head.name],))
        with torch.no_grad():
            found.append(torch.cat([run(x)[0] for x in batches]).double())
    exact, rounded = (value.movedim(1, 0).flatten(1) for value in found)
    return exact, rounded


def mean_shift(model: hs.QuantizedModel, name: str, batches: list[Tensor]) -> Tensor:
    exact, rounded = outputs(model, name, batches)
    return (rounded - exact).mean(1)


# Analytic


def test_the_shift_is_the_published_one(graph: hs.Graph):
    """``(sum over the taps of eps) E[x]`` with ``E[x]`` of a clipped normal value."""
    model = calibrated(graph)
    untouched = copy.deepcopy(model)
    report = correct_bias(model)
    shifts = {layer.layer: layer.shift for layer in report.layers}
    for unit in model.units.units:
        if unit.name != "depthwise.0":
            continue
        gamma, beta = heads(model)["expand.0"].meta["batchnorm"]
        drawn = beta + gamma * normal(200_000, len(beta), seed=3)
        mean = F.relu6(drawn).mean(0).detach().double()
        error = blocks(unit.kind, unit.attrs, weight_error(untouched, unit, model.graph))
        wanted = of_constant(error, mean)
        torch.testing.assert_close(shifts[unit.name], wanted, atol=0.01, rtol=0.02)
        before, after = (m.parameter_of(unit.bias).double() for m in (untouched, model))
        torch.testing.assert_close(before - after, shifts[unit.name], atol=1e-6, rtol=0)
    assert [layer.layer for layer in report.layers] == list(heads(model))
    assert shifts["stem.0"].abs().max() == 0, "the input has mean 0"
    assert report.skipped == ()


def test_it_brings_the_means_closer_to_those_of_the_float_model(graph: hs.Graph):
    model = calibrated(graph)
    before = [mean_shift(model, name, data()) for name in heads(model)]
    correct_bias(model)
    after = [mean_shift(model, name, data()) for name in heads(model)]
    sizes = [float(torch.cat(shifts).abs().mean()) for shifts in (before, after)]
    assert sizes[1] < sizes[0] / 2


def test_a_sign_that_is_wrong_is_rejected(graph: hs.Graph, monkeypatch):
    module = importlib.import_module("halfstep.ptq.correct_bias")
    monkeypatch.setattr(module, "shift_bias", broken.shift_bias_twice)
    with pytest.raises(AssertionError):
        test_it_brings_the_means_closer_to_those_of_the_float_model(graph)


def test_unrounded_weights_have_nothing_to_correct(graph: hs.Graph):
    report = correct_bias(calibrated(graph, "int16_narrow", per_channel=True))
    largest = max(float(layer.shift.abs().max()) for layer in report.layers)
    assert largest < 1e-3


def test_clipped_weights_are_corrected_towards_those_before(graph: hs.Graph):
    clipped, report = clip_weights(graph, 0.3)
    assert report.layers
    model = calibrated(clipped, "int8_narrow")
    name = report.layers[-1].layer
    before, after = (correct_bias(copy.deepcopy(model), reference=g) for g in (clipped, graph))
    shifts = [next(c.shift for c in r.layers if c.layer == name) for r in (before, after)]
    assert shifts[1].abs().max() > 3 * shifts[0].abs().max()


def test_layers_that_cannot_be_corrected_are_named():
    module = Call(lambda a, b, x: b(F.layer_norm(a(x), (4, 8, 8))), block(3, 4), nn.Conv2d(4, 5, 1))
    plain = hs.capture(seeded(module), normal(2, *IMAGE))
    model = hs.prepare(plain, hs.make_plan(plain))
    hs.calibrate(model, data(1))
    report = correct_bias(model)
    (refusal,) = report.skipped
    assert str(refusal) == "part.1: no batch norm says what the mean of its input is"
    without = seeded(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False)))
    plain = hs.capture(without, normal(2, *IMAGE))
    model = hs.prepare(plain, hs.make_plan(plain))
    hs.calibrate(model, data(1))
    for report in (correct_bias(model), correct_bias_from_data(model, data(1))):
        assert "has no bias; prepare it from halfstep.graph.edit.with_biases" in str(report)


# From data


def test_the_means_are_equal_on_the_same_data(graph: hs.Graph):
    model = calibrated(graph)
    with torch.no_grad():
        for module in model.modules():  # a bias on its grid is off by up to half a step
            if type(module).__name__ == "BiasQuantizer":
                module.enabled = False
    report = correct_bias_from_data(model, data())
    assert [layer.layer for layer in report.layers] == list(heads(model))
    for name in heads(model):
        exact, _ = outputs(model, name, data())
        assert mean_shift(model, name, data()).abs().max() < 1e-6 * max(1, exact.abs().max())


def test_with_biases_on_their_grid_the_means_are_half_a_step_apart(graph: hs.Graph):
    model = calibrated(graph)
    correct_bias_from_data(model, data())
    for unit in model.units.units:
        if unit.weight is None:
            continue
        source = model.quantizer(model.units.sites[unit.inputs[0]]).grid()
        weight = model.quantizer(model.units.sites[unit.weight]).grid()
        step = torch.as_tensor(source.scale * weight.scale).double()
        assert (mean_shift(model, unit.name, data()).abs() <= step * 0.51 + 1e-6).all()


def test_both_kinds_agree_where_values_are_normal():
    """A batch norm whose output is normal, ReLU, and a layer to correct."""
    first, norm, second = nn.Conv2d(4, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Conv2d(16, 24, 1)
    module = seeded(nn.Sequential(first, norm, nn.ReLU(), second))
    with torch.no_grad():
        norm.running_mean.zero_()
        norm.running_var.copy_(first.weight.square().sum((1, 2, 3)))
        norm.bias.copy_(normal(16, seed=5))
        norm.weight.copy_(normal(16, seed=6))
    graph = with_biases(hs.capture(module, normal(2, 4, 8, 8)))
    batches = [normal(128, 4, 8, 8, seed=seed) for seed in range(4)]
    plan = hs.make_plan(graph, "reference", weights="int4_narrow", activations="uint16")
    model = hs.prepare(graph, plan.edit("0:weight", qtype="int16_narrow"))
    set_batchnorm_ranges(model)
    other = copy.deepcopy(model)
    analytic = correct_bias(model).layers[-1].shift
    measured = correct_bias_from_data(other, batches).layers[-1].shift
    assert torch.corrcoef(torch.stack([analytic, measured]))[0, 1] > 0.99


def test_the_order_of_execution_matters_and_is_kept(graph: hs.Graph):
    """A layer's shift is measured behind corrected layers, so a second pass finds little left."""
    model = calibrated(graph)
    first = correct_bias_from_data(model, data())
    second = correct_bias_from_data(model, data())
    for one, two in zip(first.layers[1:], second.layers[1:], strict=True):
        assert two.shift.abs().max() < 0.1 * one.shift.abs().max()


def test_little_memory_gives_the_same_means(graph: hs.Graph):
    wide, narrow = calibrated(graph), calibrated(graph)
    correct_bias_from_data(wide, data(2))
    correct_bias_from_data(narrow, data(2), live_bytes=1)
    for unit in wide.units.units:
        if unit.bias is not None:
            torch.testing.assert_close(wide.parameter_of(unit.bias), narrow.parameter_of(unit.bias))


def test_no_data_is_an_error(graph: hs.Graph):
    with pytest.raises(DataError, match="the data has no batch"):
        correct_bias_from_data(calibrated(graph), [])
