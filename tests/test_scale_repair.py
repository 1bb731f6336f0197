"""Scales that XNNPACK does not take: which ranges are widened, by how much, and what is float."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.catalog import family, find
from halfstep.core.execution import Execution
from halfstep.errors import LowerError
from tests.models import Call, CallTwo, normal, seeded

SHAPE = (3, 4, 4)


def calibrated(
    module: nn.Module, scales: Mapping[str, float], n: int = 2, **choices: Any
) -> hs.QuantizedModel:
    """A model for XNNPACK on these scales, with ``n`` inputs."""
    inputs = [tuple(normal(4, *SHAPE, seed=10 * seed + i) for i in range(n)) for seed in (1, 2)]
    graph = hs.capture(seeded(module), inputs[0])
    model = hs.prepare(graph, hs.make_plan(graph, "litert_xnnpack", **choices))
    hs.calibrate(model, inputs)
    for site, scale in scales.items():
        quantizer = model.quantizer(site)
        quantizer.set_grid(replace(quantizer.grid(), scale=np.float32(scale)))
    return model


def scales_of(model: hs.QuantizedModel) -> dict[str, float]:
    return {site: float(model.quantizer(site).grid().scale.max()) for site in model.site_quantizer}


def prove(model: hs.QuantizedModel, folder: Path, n: int = 2) -> hs.Verdict:
    pytest.importorskip("ai_edge_litert")
    program = hs.lower(model)
    hs.export(program, folder / "model.tflite")
    samples = [tuple(normal(5, *SHAPE, seed=90 + i).numpy() for i in range(n))]
    return hs.verify(program, folder / "model.tflite", samples)


def add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def mul(x: Tensor, y: Tensor) -> Tensor:
    return x * y


# What is computed, the scales that it has, and how many times each range is as wide afterwards.
REPAIRED = {
    "a fine sum": (add, {"x:in": 1.0, "y:in": 0.5, "add:out": 2.0**-9}, {"add:out": 4}),
    "a fine addend": (add, {"x:in": 2.0**-13, "y:in": 1, "add:out": 1}, {"x:in": 8}),
    "two fine addends": (
        add,
        {"x:in": 2.0**-12, "y:in": 2.0**-11, "add:out": 1},
        {"x:in": 4, "y:in": 2},
    ),
    "a coarse and a fine addend": (
        lambda x, y: x - y,
        {"x:in": 2.0**9, "y:in": 2.0**-12, "sub:out": 1},
        {"y:in": 2**13, "sub:out": 2**2},
    ),
    "a fine product": (mul, {"x:in": 4.0, "y:in": 4.0, "mul:out": 2.0**-5}, {"mul:out": 4}),
    "fine factors": (
        mul,
        {"x:in": 2.0**-10, "y:in": 2.0**-9, "mul:out": 1},
        {"x:in": 4, "y:in": 2},
    ),
    "at the limits": (add, {"x:in": 2.0**-10, "y:in": 2.0**7, "add:out": 1}, {}),
    "one after the other": (
        lambda x, y: (x + y) * 2 + y,
        {"x:in": 1.0, "y:in": 1.0, "add:out": 2.0**-10},
        {"add:out": 8},
    ),
}


@pytest.mark.runtime
@pytest.mark.parametrize("case", REPAIRED)
def test_ranges_are_widened_as_little_as_it_takes(case: str, tmp_path: Path) -> None:
    function, scales, factors = REPAIRED[case]
    model = calibrated(CallTwo(function), scales)
    before = scales_of(model)
    if factors:
        with pytest.raises(LowerError, match=r"Run halfstep\.repair_scales\(model\) behind all"):
            hs.lower(model)
    report = hs.repair_scales(model)
    assert report.widened == factors
    assert report.floats == {}
    assert scales_of(model) == {s: scale * factors.get(s, 1) for s, scale in before.items()}
    assert not hs.repair_scales(model).widened
    assert prove(model, tmp_path).status is hs.Status.EXACT


@pytest.mark.runtime
def test_a_range_that_others_read_stays_and_the_sum_is_float(tmp_path: Path) -> None:
    model = calibrated(
        CallTwo(lambda x, y: (x + y, torch.sigmoid(x))), {"x:in": 2.0**-13, "y:in": 1, "add:out": 1}
    )
    before = scales_of(model)
    report = hs.repair_scales(model)
    assert report.widened == {}
    assert scales_of(model) == before
    (reason,) = report.floats.values()
    assert reason.startswith("an input's scale is 0.000122 times the output's, and XNNPACK takes")
    assert model.plan.executions["add"] is Execution.FLOAT
    assert model.plan.floats["add"] == reason
    assert f"add: in float: {reason}" in str(report)
    verdict = prove(model, tmp_path)
    assert verdict.status is hs.Status.EXACT
    assert verdict.floats["add"] == reason


@pytest.mark.runtime
def test_a_range_that_others_make_stays_but_for_layers(tmp_path: Path) -> None:
    """Joined with other values, on one grid."""
    fine = {"x:in": 100.0, "concat:out": 1.0}
    module = Call(lambda conv, x: torch.cat([conv(x), x[:, :1].sigmoid()], 1), nn.Conv2d(3, 4, 1))
    model = calibrated(module, {**fine, "part.0:weight": 10.0}, 1, per_channel=False)
    report = hs.repair_scales(model)
    assert (report.widened, report.floats) == ({"part.0:out": 4}, {})
    assert prove(model, tmp_path, 1).status is hs.Status.EXACT
    module = Call(lambda x: torch.cat([x * x, x[:, :1].sigmoid()], 1))
    model = calibrated(module, fine, 1)
    before = scales_of(model)
    assert list(hs.repair_scales(model).floats) == ["mul"]
    assert scales_of(model) == before
    assert prove(model, tmp_path, 1).status is hs.Status.EXACT


def test_a_layer_on_a_dictated_range_is_refused_by_lower() -> None:
    def joined(conv: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([conv(x), x.softmax(-1)], 1)

    scales = {"x:in": 1.0, "part.0:weight": 10.0}
    model = calibrated(Call(joined, nn.Conv2d(3, 4, 1)), scales, 1, per_channel=False)
    assert model.quantizer("part.0:out").spec.dictated
    report = hs.repair_scales(model)
    assert (report.widened, report.floats) == ({}, {})
    with pytest.raises(LowerError, match=r"part\.0:out: conv: the product of its scales of input"):
        hs.lower(model)


def test_powers_of_two_stay_so() -> None:
    model = calibrated(CallTwo(mul), {"x:in": 4.0, "y:in": 2.0, "mul:out": 2.0**-9}, pow2=True)
    hs.repair_scales(model)
    assert {np.frexp(scale)[0] for scale in scales_of(model).values()} == {0.5}
    assert hs.lower(model)


@pytest.mark.runtime
def test_quantize_repairs_and_says_so() -> None:
    """A constant far smaller than what it is added to, as calibration finds it."""
    pytest.importorskip("ai_edge_litert")
    data = [normal(8, *SHAPE, seed=seed) for seed in (1, 2)]
    model = Call(lambda x: x + 1e-3)
    result = hs.quantize(model, data, target="litert_xnnpack")
    assert result.verdict is not None
    assert result.verdict.status is hs.Status.EXACT
    (record,) = [record for record in result.journal.records if record.verb == "scales"]
    assert record.facts["to float"] == "none"
    site, _, factor = record.facts["widened"].partition(" x")
    assert site.endswith(":constant")
    assert int(factor) in (2**n for n in range(1, 10))
    again = hs.quantize(Call(lambda x: x + 1), data, target="litert_xnnpack")
    (record,) = [record for record in again.journal.records if record.verb == "scales"]
    assert record.facts == {"widened": "none", "to float": "none"}


def test_targets_that_take_all_scales_have_no_such_step() -> None:
    limited = {name: find("target", name).limits_scales for name in family("target")}
    assert {name for name in limited if not limited[name]} == {"c99", "c99_fixed", "tensorrt"}
    result = hs.quantize(
        Call(lambda x: x + 1e-3), [normal(4, *SHAPE)], target="c99", verify_samples=0
    )
    assert "scales" not in {record.verb for record in result.journal.records}
