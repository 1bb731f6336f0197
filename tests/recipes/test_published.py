"""Published recipes: what the papers fix is fixed, and what contradicts them is refused by name."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import halfstep as hs
from halfstep.catalog import find
from halfstep.errors import CalibrationError, PlanError, UnknownNameError
from halfstep.journal import Journal
from halfstep.progress import silent
from halfstep.quant.calibrators.ema import Ema
from halfstep.recipes.published import Published
from tests.models import Residual, normal, seeded

MODEL = seeded(Residual(8))
BATCHES = [normal(6, 3, 8, 8, seed=seed) * (1 + seed) for seed in range(3)]


@cache
def made(recipe: str, **choices: Any) -> hs.QuantizedModel:
    return run_recipe(recipe, Journal(), **choices)


def run_recipe(recipe: str, journal: Journal, **choices: Any) -> hs.QuantizedModel:
    run: Callable[..., hs.QuantizedModel] = find("recipe", recipe)
    return run(
        MODEL,
        BATCHES[0],
        iter(BATCHES),
        target=choices.pop("target", "onnxruntime"),
        journal=journal,
        progress=silent,
        **choices,
    )


def same_grids(one: hs.QuantizedModel, other: hs.QuantizedModel) -> bool:
    sites = one.site_quantizer
    return sites == other.site_quantizer and all(
        one.quantizer(site).grid().same_as(other.quantizer(site).grid()) for site in sites
    )


def test_krishnamoorthi_is_ptq_with_averaged_ranges() -> None:
    assert same_grids(made("krishnamoorthi_ptq"), made("ptq", calibrator="ema"))
    assert not same_grids(made("krishnamoorthi_ptq"), made("ptq"))
    assert same_grids(
        made("krishnamoorthi_ptq", weights="int4_narrow", activations="uint8", per_channel=False),
        made("ptq", weights="int4_narrow", per_channel=False, calibrator="ema"),
    )


def test_jacob_is_ptq_with_one_scale_a_layer_and_averaged_ranges() -> None:
    plain = made("ptq", per_channel=False, calibrator="ema")
    assert same_grids(made("jacob_int8"), plain)
    assert not same_grids(made("jacob_int8"), made("krishnamoorthi_ptq"))
    assert not same_grids(made("jacob_int8", momentum=0.99), plain)


def test_jacob_averages_with_its_momentum() -> None:
    for momentum in (0.9, 0.99):
        ema = Ema(find("target", "onnxruntime").activation, momentum=momentum)
        for batch in BATCHES:
            ema.update(batch)
        low, high = ema.range()
        grid = made("jacob_int8", momentum=momentum).quantizer("x:in").grid()
        assert abs(grid.low - low) <= grid.scale
        assert grid.scale == pytest.approx((high - low) / 255)


def test_jacob_has_the_arithmetic_of_the_paper() -> None:
    """Section 6.7, check 4: no weight is -128, and the sum of two products fits an int16."""
    program = hs.lower(made("jacob_int8"))
    for op in program.ops:
        if op.macs:
            weight, x = program.grid(op.inputs[1]), program.grid(op.inputs[0])
            assert weight.axis is None
            assert str(x.qtype) == "uint8"
            codes = program.constant(op.inputs[1]).astype(int)
            assert codes.min() >= -127
            # An int8 activation times such a weight: below 2^14, so that two fit an int16.
            assert np.abs(codes).max() * 128 < 2**14
            if len(op.inputs) > 2:
                bias = program.grid(op.inputs[2])
                assert str(bias.qtype) == "int32"
                assert bias.scale == x.scale * weight.scale


class Separable(nn.Module):
    """A block of MobileNet: its batch norms, once folded, spread the channels of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.point = nn.Conv2d(12, 16, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 12, H, W) to (N, 16, H, W)."""
        return self.bn2(self.point(self.bn1(self.depthwise(x)).relu())).relu()


def test_channels_of_folded_weights_need_scales_of_their_own() -> None:
    """Section 4.6, check 4: SQNR = 10 log10(sum W^2 / sum (W - Q(W))^2), in dB."""
    model = seeded(Separable())
    with torch.no_grad():
        for norm in (model.bn1, model.bn2):
            norm.weight.copy_(4.0 ** normal(len(norm.weight)))
    graph = hs.capture(model, normal(2, 12, 6, 6))
    found: dict[bool, list[float]] = {}
    for per_channel in (True, False):
        plan = hs.make_plan(graph, per_channel=per_channel)
        quantized = hs.prepare(graph, plan)
        hs.calibrate(quantized, [normal(2, 12, 6, 6)])
        for unit in quantized.units.units:
            weight = quantized.parameter_of(unit.weight).detach().numpy()
            grid = quantized.quantizer(quantized.units.sites[unit.weight]).grid()
            noise = grid.dequantize(grid.quantize(weight)) - weight
            ratio = np.square(weight).sum() / np.square(noise).sum()
            found.setdefault(per_channel, []).append(10 * float(np.log10(ratio)))
    assert len(found[True]) == 2
    for channel, layer in zip(found[True], found[False], strict=True):
        assert channel > layer + 3


def test_four_bits_are_in_the_papers() -> None:
    for recipe in ("jacob_int8", "krishnamoorthi_ptq"):
        model = made(recipe, weights="int4_narrow", activations="uint4")
        bits = {q.grid().qtype.bits for q in model.quantizers()}
        assert bits == {4}


def test_the_steps_are_recorded() -> None:
    for recipe in ("jacob_int8", "krishnamoorthi_ptq"):
        journal = Journal()
        run_recipe(recipe, journal)
        assert [record.verb for record in journal.records] == [
            "capture",
            "plan",
            "prepare",
            "calibrate",
        ]
        assert journal.records[-1].facts["samples"] == 18


def test_the_artifact_is_exact() -> None:
    for recipe in ("jacob_int8", "krishnamoorthi_ptq"):
        result = hs.quantize(MODEL, BATCHES, recipe=recipe, verify_samples=6)
        assert result.verdict is not None
        assert result.verdict.status is hs.Status.EXACT, str(result.verdict)


REFUSED = [
    (
        "jacob_int8",
        {"per_channel": True},
        (
            r"^jacob_int8: asked for per_channel=True, the publication has False; leave it out, or "
            r"take recipe 'ptq', which leaves it open$"
        ),
    ),
    ("jacob_int8", {"calibrator": "mse"}, r"asked for calibrator='mse', the publication has 'ema'"),
    ("jacob_int8", {"weights": "int8"}, r"weights='int8', the publication has 'int8_narrow' or"),
    ("jacob_int8", {"weights": "int3_narrow"}, r"weights='int3_narrow', the publication has"),
    ("jacob_int8", {"activations": "int8"}, r"activations='int8', the publication has 'uint8' or"),
    ("jacob_int8", {"group_size": 32}, r"group_size=32, the publication has None"),
    ("jacob_int8", {"first_last": "int8_narrow"}, r"first_last='int8_narrow', the publication has"),
    ("krishnamoorthi_ptq", {"pow2": True}, r"^krishnamoorthi_ptq: asked for pow2=True, the"),
    ("krishnamoorthi_ptq", {"weight_calibrator": "mse"}, r"weight_calibrator='mse', the public"),
    ("krishnamoorthi_ptq", {"weights": "int5_narrow"}, r"has 'int8_narrow' or 'int4_narrow';"),
    ("krishnamoorthi_ptq", {"activations": "uint16"}, r"has 'uint8' or 'uint4';"),
]


@pytest.mark.parametrize(("recipe", "choices", "text"), REFUSED)
def test_what_contradicts_the_paper_is_refused(
    recipe: str, choices: dict[str, Any], text: str
) -> None:
    with pytest.raises(PlanError, match=text):
        made(recipe, **choices)


def test_what_agrees_with_the_paper_may_be_said() -> None:
    assert same_grids(
        made("jacob_int8", per_channel=False, calibrator="ema", weights=None), made("jacob_int8")
    )


def test_a_choice_that_the_publication_does_not_speak_of() -> None:
    paper = Published("of_some_paper", {"weights": ("int8", "int4")})
    assert paper.settle({}) == {"weights": "int8"}
    assert paper.settle({"weights": "int4"}) == {"weights": "int4"}
    with pytest.raises(PlanError, match=r"asked for pow2=True, the publication has no such choice"):
        paper.settle({"pow2": True})


def test_an_unknown_option_is_refused_before_anything_is_done() -> None:
    with pytest.raises(UnknownNameError, match="momentom"):
        hs.quantize(MODEL, BATCHES, recipe="jacob_int8", momentom=0.9)
    with pytest.raises(CalibrationError, match=r"^momentum=1\.0: give at least 0"):
        hs.quantize(MODEL, BATCHES, recipe="jacob_int8", momentum=1.0)


def test_they_run_on_the_reference_target() -> None:
    for recipe in ("jacob_int8", "krishnamoorthi_ptq"):
        model = made(recipe, target="reference")
        assert model.plan.target == "reference"
        with torch.no_grad():
            assert model(BATCHES[0]).shape == (6, 5)
