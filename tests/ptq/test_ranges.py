import pytest
import torch
import torch.nn.functional as F
from torch import nn

import halfstep as hs
from halfstep.graph.batchnorm import value_of
from halfstep.ptq.cross_entropy_range import cross_entropy_range
from halfstep.ptq.sequential_mse import sequential_mse
from tests.models import Residual, normal, seeded

DATA = [normal(16, 3, 8, 8, seed=seed) for seed in (1, 2, 3)]


def calibrated(module: nn.Module, data: list[torch.Tensor], **choices: object) -> hs.QuantizedModel:
    graph = hs.capture(module, data[0])
    model = hs.prepare(graph, hs.make_plan(graph, **choices))  # type: ignore[arg-type]
    hs.calibrate(model, data)
    return model


class _OneBigLogit(nn.Module):
    """Passes its inputs on as logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(classes, classes, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def heavy_tailed(seed: int) -> torch.Tensor:
    """A few large logits that decide, and 99 small ones around zero with one far below."""
    x = normal(64, 100, seed=seed)
    x[torch.arange(64), torch.arange(64) % 100] += 6
    x[:, -1] = -60
    return x


def agreement(model: hs.QuantizedModel, data: list[torch.Tensor]) -> float:
    with torch.no_grad():
        same = [(model(x).argmax(1) == model.graph.module(x)[0].argmax(1)).float() for x in data]
    return float(torch.cat(same).mean())


def test_cross_entropy_keeps_decisions_that_the_squared_error_gives_up() -> None:
    data = [heavy_tailed(seed) for seed in range(4)]
    graph = hs.capture(_OneBigLogit(100).eval(), data[0])
    plan = hs.make_plan(graph, calibrator="mse").edit("fc:out", qtype="uint4")
    model = hs.prepare(graph, plan)
    hs.calibrate(model, data)
    by_range = agreement(model, data)
    report = cross_entropy_range(model, data)
    assert report.after < report.before
    assert report.entropy <= report.after
    assert agreement(model, data) > by_range
    assert str(report).startswith("fc:out: cross entropy ")


def test_cross_entropy_is_never_worse_than_what_was_calibrated() -> None:
    model = calibrated(seeded(Residual()), DATA)
    report = cross_entropy_range(model, DATA)
    assert report.after <= report.before


def test_an_output_that_is_no_logits_is_refused() -> None:
    model = calibrated(nn.Sequential(nn.Conv2d(3, 2, 3)).eval(), DATA)
    with pytest.raises(
        hs.HalfstepError, match=r"output: asked for logits, \(N, classes\), found 1"
    ):
        cross_entropy_range(model, DATA)


def test_sequential_mse_lowers_the_error_of_every_layer_and_moves_grids_alone() -> None:
    model, untouched = (
        calibrated(seeded(Residual(8)), DATA, weights="int3", weight_calibrator="minmax")
        for _ in range(2)
    )
    report = sequential_mse(model, DATA)
    assert all(layer.error <= layer.nearest for layer in report.layers)
    assert sum(a.error < a.nearest for a in report.layers) >= 2
    for name, value in model.module.named_parameters():
        assert torch.equal(value, untouched.module.get_parameter(name))
    errors = [stem_error(m) for m in (model, untouched)]
    assert errors[0] < errors[1]
    assert (
        not model.quantizer("stem:weight").grid().same_as(untouched.quantizer("stem:weight").grid())
    )


def stem_error(model: hs.QuantizedModel) -> float:
    """The squared error of the first layer's output on all data."""
    stem = next(unit for unit in model.units.units if unit.name == "stem")
    assert stem.weight is not None
    x = torch.cat(DATA)
    with torch.no_grad():
        exact, weight = (value_of(m, stem.weight) for m in (model.graph.module, model.module))
        rounded = model.quantizer("stem:weight")(weight)
        found = F.conv2d(model.quantizer("x:in")(x), rounded, padding=1)
        return float((found - F.conv2d(x, exact, padding=1)).square().mean())


def test_sequential_mse_leaves_powers_of_two() -> None:
    model = calibrated(seeded(Residual()), DATA, pow2=True)
    report = sequential_mse(model, DATA)
    assert not report.layers
    assert {reason for _, reason in report.skipped} == {"its scale is a power of two"}
