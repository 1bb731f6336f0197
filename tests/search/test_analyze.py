"""The debugging flow: no drop without quantization, the cause on each side, and what is advised."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import UnknownNameError
from halfstep.search import range_health, sensitivity, sqnr
from halfstep.search.advice import advice, loss
from halfstep.search.analyze import Analysis
from halfstep.search.sensitivity import Sensitivity, SensitivityReport
from tests.models import normal
from tests.search.specimens import assert_unchanged, batches, calibrated, snapshot

NETWORKS = pytest.mark.parametrize("network", ["residual", "branching"])


@NETWORKS
@pytest.mark.parametrize("metric", [None, "kl"])
def test_without_quantization_nothing_is_lost(network, metric):
    found = hs.analyze(calibrated(network, activations="uint3"), batches(), metric=metric)
    assert found.sanity.difference == 0
    assert found.sanity.bypassed == found.sanity.real
    assert found.sanity.wide_difference < 1e-5
    assert found.sanity.wide == pytest.approx(found.sanity.real, abs=1e-6)
    assert found.sanity.holds


@NETWORKS
def test_it_is_the_sum_of_its_parts(network):
    model = calibrated(network, weights="int4_narrow", activations="uint4")
    before = snapshot(model)
    found = hs.analyze(model, batches())
    assert_unchanged(model, before)
    assert found.layers == sensitivity(model, batches())
    assert found.noise == sqnr(model, batches())
    assert found.ranges == range_health(model, batches())
    assert found.advice == advice(found.layers, found.ranges, True)
    assert found.sanity.real == found.layers.real


def test_changed_weights_are_found():
    """The simulation is then another model: no bits can mend that."""
    model = calibrated()
    with torch.no_grad():
        next(iter(model.module.parameters())).mul_(1.5)
    found = hs.analyze(model, batches())
    assert not found.sanity.holds
    assert found.sanity.difference > 0
    assert len(found.advice) == 1
    assert "differs from the float model while nothing is quantized" in found.advice[0]


def test_a_group_of_weights_can_be_analyzed():
    model = calibrated("branching", target="reference", group_size=4, weights="int3_narrow")
    assert hs.analyze(model, batches()).sanity.holds


def test_clear_errors():
    with pytest.raises(UnknownNameError, match="unknown metric 'accurcy': did you mean 'accuracy'"):
        hs.analyze(calibrated(), batches(), metric="accurcy")


def test_it_reads_as_text():
    found = hs.analyze(calibrated(activations="uint2"), batches(), metric="kl")
    text = str(found)
    assert text.startswith("float 0, quantizers off 0, 32 bits ")
    assert all(f"- {line}" in text for line in found.advice)
    assert all(site.site in text for site in found.ranges)


# Networks that are ill on purpose: each cure is advised where its illness is


class Spread(nn.Module):
    """Two layers; the first one's channels may differ widely, without changing the function."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)
        factors = torch.tensor([factor, *[1.0] * 7])
        with torch.no_grad():
            self.first.weight.copy_(normal(8, 6) * factors[:, None])
            self.first.bias.copy_(normal(8, seed=1) * factors)
            self.second.weight.copy_(normal(5, 8, seed=2) / factors)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x).relu())
        return result


def analyzed(model: nn.Module, data: list[tuple[Tensor, ...]], **choices: object) -> Analysis:
    graph = hs.capture(model.eval(), data[0][0][:2])
    quantized = hs.prepare(graph, hs.make_plan(graph, **choices))
    hs.calibrate(quantized, data)
    return hs.analyze(quantized, data, metric="kl")


def text_of(found: Analysis) -> str:
    return "\n".join(found.advice)


ROWS = [(normal(64, 6, seed=3),)]


def test_weights_that_share_a_scale_across_uneven_channels():
    found = analyzed(
        Spread(200.0), ROWS, weights="int4_narrow", per_channel=False, activations="uint8"
    )
    sick = {site.site for site in found.unhealthy}
    assert "first:weight" in sick
    assert found.advice[0].startswith("Weights ")
    assert "channels of first:weight differ widely and share a scale" in text_of(found)
    assert "per_channel=True" in text_of(found)
    assert "ptq.equalize" in text_of(found)


def test_weights_of_few_bits():
    found = analyzed(Spread(1.0), ROWS, weights="int2_narrow")
    assert found.advice[0] == "Weights are the cause: alone they lose more than all activations."
    assert "round them together" in text_of(found)
    assert "Activations" not in text_of(found)


def test_activations_with_an_outlier():
    x = normal(4000, 6, seed=3)
    x[0] = 300.0
    found = analyzed(Spread(1.0), [(x,)], activations="uint4", calibrator="minmax")
    assert found.advice[0] == "Activations are the cause: alone they lose more than all weights."
    assert "x:in" in {site.site for site in found.unhealthy}
    assert "have far outliers" in text_of(found)
    assert "calibrator='percentile'" in text_of(found)


def test_activations_that_were_calibrated_on_other_data():
    model = Spread(1.0).eval()
    graph = hs.capture(model, ROWS[0][0][:2])
    quantized = hs.prepare(graph, hs.make_plan(graph))
    hs.calibrate(quantized, [(ROWS[0][0] / 10,)])
    found = hs.analyze(quantized, ROWS, metric="kl")
    assert "is clipped. Calibrate on data like that of the deployment" in text_of(found)


def test_a_healthy_model_needs_no_cure():
    found = analyzed(Spread(1.0), ROWS)
    assert found.advice == ("The loss is small: nothing needs a cure.",)


# The decisions, on made-up measurements


def report(
    metric: str, real: float, both: float, weights: float, activations: float, **alone: float
):
    rows = tuple(Sensitivity(name, "conv", value, value) for name, value in alone.items())
    return SensitivityReport(metric, 10, real, both, weights, activations, rows)


def test_losses_have_one_direction():
    assert loss(report("accuracy", 0.9, 0.7, 1, 1), 0.7) == pytest.approx(0.2)
    assert loss(report("accuracy", 0.9, 0.95, 1, 1), 0.95) == 0
    assert loss(report("kl", 0, 0.3, 1, 1), 0.3) == 0.3
    assert loss(report("sqnr", float("inf"), 20, 1, 1), 20) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("weights", "activations", "first"),
    [
        (0.3, 0.89, "Weights are the cause"),
        (0.89, 0.3, "Activations are the cause"),
        (0.6, 0.5, "Weights and activations both lose"),
    ],
)
def test_the_larger_loss_is_the_cause(weights, activations, first):
    lines = advice(report("accuracy", 0.9, 0.2, weights, activations), (), True)
    assert lines[0].startswith(first)
    assert lines[-1] == "If none of this is enough: train with quantizers on."


def test_few_layers_that_make_the_loss_are_named():
    alone = {f"l{i}": 0.9 for i in range(19)}
    lines = advice(report("accuracy", 0.9, 0.2, 0.4, 0.4, **alone, bad=0.3, worse=0.1), (), True)
    (named,) = (line for line in lines if "of 21 layers" in line)
    assert named.startswith("worse, bad: 2 of 21 layers make 100% of what all lose alone.")
    assert "keep_float" in named
    even = advice(report("accuracy", 0.9, 0.2, 0.4, 0.4, **dict.fromkeys("abcdef", 0.5)), (), True)
    assert not any("layers make" in line for line in even)


def test_a_broken_simulation_is_rejected():
    """Each of the two checks can fail on its own."""
    sanity = hs.analyze(calibrated(), batches()).sanity
    assert sanity.holds
    assert not replace(sanity, difference=1e-3).holds
    assert not replace(sanity, wide_difference=0.1).holds
