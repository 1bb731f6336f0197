"""Partial quantization: as few layers in float as keep the metric, and the curve that led there."""

import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.core.execution import Execution
from halfstep.errors import DataError, PlanError, UnknownNameError
from halfstep.search import partially_quantize, sensitivity
from tests.models import normal, seeded
from tests.search.specimens import CLASSES, assert_unchanged, batches, calibrated, snapshot

LOW_BITS = {"weights": "int2_narrow", "activations": "uint2"}


class Fragile(nn.Module):
    """Two layers of which the second has one weight that ruins the scale of all others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x).relu())
        return result


def fragile(**choices: object) -> tuple[hs.QuantizedModel, list[tuple[Tensor, Tensor]]]:
    model = seeded(Fragile())
    with torch.no_grad():
        model.second.weight[:, 0] = 300.0
        model.first.weight[0] = 0
        model.first.bias[0] = 0
    graph = hs.capture(model, normal(2, 8))
    quantized = hs.prepare(graph, hs.make_plan(graph, per_channel=False, **choices))
    data = [(x := normal(32, 8, seed=s), model(x).detach().argmax(1)) for s in (1, 2)]
    hs.calibrate(quantized, data)
    return quantized, data


def test_the_one_fragile_layer_is_left_in_float():
    model, data = fragile()
    before = snapshot(model)
    found = partially_quantize(model, data)
    assert_unchanged(model, before)
    assert list(found.skipped) == ["second"]
    assert "number 1 in sensitivity: accuracy " in found.skipped["second"]
    assert found.real == 1
    assert found.wanted == 0.99
    assert found.value >= found.wanted
    assert [step.skipped for step in found.curve] == [(), ("second",)]
    assert found.curve[0].value < found.wanted
    assert found.plan.executions["second"] is Execution.FLOAT
    assert found.plan.floats["second"] == found.skipped["second"]
    assert found.plan.executions["first"] is Execution.INTEGER


def test_the_new_plan_does_what_was_promised():
    model, data = fragile()
    found = partially_quantize(model, data)
    smaller = hs.prepare(model.graph, found.plan)
    hs.calibrate(smaller, data)
    with torch.no_grad():
        right = sum(int((smaller(x).argmax(1) == labels).sum()) for x, labels in data)
    assert right / 64 == found.value


def test_nothing_is_left_in_float_where_nothing_is_lost():
    model = calibrated()
    found = partially_quantize(model, batches(labelled=False))
    assert found.metric == "agreement"
    assert found.skipped == {}
    assert len(found.curve) == 1
    assert found.plan.diff(model.plan) == []


@pytest.mark.parametrize("network", ["residual", "branching"])
def test_all_in_float_is_the_float_model(network):
    """No loss at all can always be reached, at the latest with nothing quantized."""
    found = partially_quantize(
        calibrated(network, **LOW_BITS), batches(labelled=False), metric="cosine", share=1e-9
    )
    assert found.value == pytest.approx(1, abs=1e-9)
    assert found.value >= found.wanted


def test_layers_are_skipped_in_the_order_of_their_sensitivity():
    model = calibrated("branching", **LOW_BITS)
    found = partially_quantize(model, batches(labelled=False), metric="cosine", share=1e-9)
    report = sensitivity(model, batches(labelled=False), metric="cosine", complement=False)
    ranked = [row.name for row in report.ranked()]
    grown = [step.skipped for step in found.curve]
    longest = max(grown, key=len)
    assert longest == tuple(ranked[: len(longest)])
    assert grown[: len(longest) + 1] == [longest[:n] for n in range(len(longest) + 1)]


def test_what_the_metric_holds_without_is_quantized_again():
    model, data = fragile()
    found = partially_quantize(
        model, data, order={"first": "the first reason", "second": "the second reason"}
    )
    assert list(found.skipped) == ["second"]
    assert [step.skipped for step in found.curve] == [
        (),
        ("first",),
        ("first", "second"),
        ("second",),
    ]
    assert found.skipped["second"] == "the second reason"


def test_an_order_that_is_not_enough_says_what_was_reached():
    model, data = fragile()
    with pytest.raises(
        PlanError, match=r"accuracy: .*% with all 1 operations of the order in float"
    ):
        partially_quantize(model, data, order={"first": "asked for"})


def test_a_larger_share_needs_fewer_layers():
    model = calibrated("branching", **LOW_BITS)
    counts = [
        len(partially_quantize(model, batches(), metric="cosine", share=share).skipped)
        for share in (1e-6, 0.01, 1.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


def test_clear_errors():
    model = calibrated()
    with pytest.raises(
        UnknownNameError, match="unknown metric of which a share can be kept 'sqnr'"
    ):
        partially_quantize(model, batches(), metric="sqnr")
    with pytest.raises(UnknownNameError, match="unknown quantized operation 'cnv': did you mean"):
        partially_quantize(model, batches(), order={"cnv": "asked for"})
    with pytest.raises(DataError, match="the data has no batch"):
        partially_quantize(model, [])
    with pytest.raises(DataError, match="accuracy: asked for one class index a sample"):
        partially_quantize(model, batches(labelled=False), metric="accuracy")


def test_it_reads_as_text():
    model, data = fragile()
    lines = str(partially_quantize(model, data)).splitlines()
    assert lines[0].startswith("accuracy 100.00% with 1 operations in float; float 100.00%, wanted")
    assert lines[1].startswith("  second: number 1 in sensitivity")
    assert lines[-1] == "  1 in float: 100.00%"
