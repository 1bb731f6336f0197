"""Wu's workflow: the paper's grids, its four calibrators in one pass, and layers left in float."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.core.qtype import INT8_NARROW, UINT8, QType
from halfstep.errors import PlanError
from halfstep.journal import Journal
from halfstep.progress import silent
from halfstep.quant.calibrators.entropy import Entropy
from halfstep.quant.calibrators.percentile import Percentile
from halfstep.recipes.wu_int8 import CALIBRATORS, scale_grid, wu_int8
from tests.models import Residual, normal, seeded
from tests.search.specimens import batches
from tests.search.test_partial import Fragile


def run(
    model: nn.Module, data: Any, **options: Any
) -> tuple[hs.QuantizedModel, dict[str, dict[str, Any]]]:
    journal = Journal()
    example = (next(iter(data))[0],) if isinstance(data, list) else (normal(2, 3, 6, 6),)
    quantized = wu_int8(
        model, example, data, target="onnxruntime", journal=journal, progress=silent, **options
    )
    return quantized, {record.verb: record.facts for record in journal.records}


# The grid


@pytest.mark.parametrize("alpha", [1.0, 0.37, 100.0])
def test_codes_are_the_papers_plus_128(alpha):
    """``clip(round(x 127 / alpha), -127, 127)``, equations 5 to 7."""
    grid = scale_grid(-alpha / 2, alpha, UINT8)
    x = np.linspace(-1.5 * alpha, 1.5 * alpha, 1001, dtype=np.float32)
    paper = np.clip(np.rint(x / np.float32(alpha / 127)), -127, 127)
    codes = grid.quantize(x).astype(int) - 128
    inside = np.abs(x) <= alpha
    np.testing.assert_array_equal(codes[inside], paper[inside])
    assert codes.max() == 127
    assert codes.min() == -128  # the one code that the paper does not use
    assert grid.high == np.float32(alpha / 127) * 127


def test_values_that_are_never_negative_have_all_codes():
    grid = scale_grid(0.0, 2.55, UINT8)
    assert (int(grid.zero_point), float(grid.scale)) == (0, pytest.approx(0.01))
    assert scale_grid(0.0, 0.0, UINT8).scale == 1
    assert scale_grid(-1e-30, 1e-30, UINT8).scale > 0
    assert scale_grid(-1.0, 0.5, QType(4, signed=False)).zero_point == 8


def test_activations_are_symmetric_and_weights_are_the_maximum():
    quantized, _ = run(seeded(Residual()), batches())
    for quantizer in quantized.quantizers():
        grid = quantizer.grid()
        if quantizer.site.endswith(":weight"):
            assert grid.qtype == INT8_NARROW
            assert not grid.zero_point.any()
        else:
            assert grid.qtype == UINT8
            assert int(grid.zero_point) in (0, 128)
    zero_points = {
        q.site: int(q.grid().zero_point) for q in quantized.quantizers() if ":out" in q.site
    }
    assert zero_points == {
        "stem:out": 0,
        "conv:out": 128,
        "add:out": 0,
        "global_avg_pool:out": 0,
        "fc:out": 128,
    }
    unit = next(unit for unit in quantized.units.units if unit.name == "conv")
    largest = quantized.parameter_of(unit.weight).detach().abs().amax((1, 2, 3)).double().numpy()
    np.testing.assert_array_equal(
        quantized.quantizer("conv:weight").grid().scale, (largest / 127).astype(np.float32)
    )


# The calibrators


def test_ranges_are_those_of_four_passes():
    """One histogram answers for all; so would each calibrator that watched on its own."""
    model = seeded(Residual())
    data = batches()
    for name, wanted in (
        ("entropy", Entropy(UINT8, symmetric=True)),
        ("99.99 %", Percentile(UINT8, percentile=99.99)),
        ("99.999 %", Percentile(UINT8, percentile=99.999)),
    ):
        for x, _ in data:
            wanted.update(x)
        low, high = wanted.range()
        found = scale_grid(float(low), float(high), UINT8)
        only = {name: CALIBRATORS[name]}
        quantized, facts = _with(only, model, data)
        assert list(facts["compare"])[1:] == [name]
        assert quantized.quantizer("x:in").grid().same_as(found), name


def _with(calibrators: Any, model: nn.Module, data: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("halfstep.recipes.wu_int8.CALIBRATORS", calibrators)
        return run(model, data)


def test_the_best_calibrator_is_kept_and_named_in_the_plan():
    model = seeded(Residual())
    quantized, facts = run(model, batches(), metric="cosine")
    compared = {k: v for k, v in facts["compare"].items() if k != "samples"}
    assert list(compared) == list(CALIBRATORS)
    best = facts["partial"]["calibrator"]
    assert float(compared[best]) == max(map(float, compared.values()))
    method, options = CALIBRATORS[best]
    for site, spec in quantized.plan.specs.items():
        if not site.endswith(":weight"):
            assert (spec.calibrator, dict(spec.options)) == (method, dict(options))
        else:
            assert spec.calibrator == "minmax"


def test_the_data_is_read_once_and_the_first_samples_judge():
    read = []

    def stream():
        for index, batch in enumerate(batches(n_batches=4)):
            read.append(index)
            yield batch

    _, facts = run(seeded(Residual()), stream(), judged=7)
    assert read == [0, 1, 2, 3]
    assert facts["calibrate"] == {"samples": 24}
    assert facts["compare"]["samples"] == 7


def test_a_softmax_keeps_the_grid_of_its_kernel():
    from tests.search.specimens import Branching

    quantized, _ = run(seeded(Branching()), batches())
    assert quantized.quantizer("softmax:out").grid().scale == np.float32(1 / 256)
    assert quantized.plan.specs["softmax:out"].calibrator == "unit_interval"


# Partial quantization


def fragile_data(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(x := normal(32, 8, seed=s), model(x).argmax(1)) for s in (1, 2)]


def test_layers_that_int8_ruins_are_left_in_float(tmp_path: Path):
    """The scale of each output channel is that of one huge weight, which never matters."""
    model = seeded(Fragile())
    with torch.no_grad():
        model.second.weight[:, 0] = 3000.0
        model.first.weight[0] = 0
        model.first.bias[0] = 0
    quantized, facts = run(model, fragile_data(model))
    assert list(quantized.plan.floats) == ["second"]
    assert "number 1 in sensitivity" in quantized.plan.floats["second"]
    assert facts["partial"]["in float"] == 1
    assert quantized.quantizer("first:weight").grid().scale.shape == (8,)
    with torch.no_grad():
        right = sum(int((quantized(x).argmax(1) == y).sum()) for x, y in fragile_data(model))
    assert right >= 0.99 * 64


@pytest.mark.runtime
def test_the_artifact_is_exact():
    result = hs.quantize(seeded(Residual()), batches(), recipe="wu_int8", metric="agreement")
    assert result.verdict is not None
    assert result.verdict.status is hs.Status.EXACT
    assert result.program.grid("conv:out").zero_point == 128


def test_the_paper_leaves_no_choice():
    with pytest.raises(PlanError, match=r"wu_int8: asked for weights='int4', the publication has"):
        run(seeded(Residual()), batches(), weights="int4")
    with pytest.raises(PlanError, match=r"wu_int8: asked for calibrator='mse'"):
        run(seeded(Residual()), batches(), calibrator="mse")
