"""The repair of sums of pairs: only what is unsafe changes, at little cost, and lowering agrees."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.core.target import Target
from halfstep.errors import PlanError, ProgramError
from halfstep.lower import draft
from halfstep.program.saturation import prove_sums
from halfstep.saved import model_stages, open_saved
from halfstep.targets import onnxruntime_any
from tests.models import Call, Residual, seeded
from tests.pipeline import normal_inputs

ANY = "onnxruntime_any"
DATA = normal_inputs((3, 8, 8))
BATCHES = [DATA(8, 1), DATA(8, 2)]


def calibrated(module: nn.Module, target: str = ANY, **choices: Any) -> hs.QuantizedModel:
    graph = hs.capture(module, DATA(2, 0))
    model = hs.prepare(graph, hs.make_plan(graph, target, **choices))
    hs.calibrate(model, BATCHES)
    return model


def small() -> nn.Module:
    return seeded(Residual(8))


def codes_of(program: hs.IntProgram) -> dict[str, np.ndarray]:
    return {
        name: program.constant(name) * program.grid(name).along(program.grid(name).scale, 4)
        if program.tensor(name).data.ndim == 4
        else program.constant(name) * program.grid(name).scale[:, None]
        for name in ("stem:weight", "conv:weight", "fc:weight")
    }


def test_lowering_refuses_what_may_saturate_and_takes_what_was_repaired() -> None:
    model = calibrated(small())
    message = (
        r"stem:out: conv breaks the rule 'pairs': .* may overflow: .*So may those of conv:out, "
        r"fc:out\. Run halfstep\.repair_pair_sums\(model\) behind all that changes weights"
    )
    with pytest.raises(ProgramError, match=message):
        hs.lower(model)
    assert not prove_sums(draft(model), "int16_pairs").safe
    hs.repair_pair_sums(model)
    program = hs.lower(model)
    assert program.pair_sum_bits == 16
    assert prove_sums(program, "int16_pairs").safe


def test_only_unsafe_channels_change_and_the_report_counts_them() -> None:
    model = calibrated(small())
    before = draft(model)
    unsafe = {op.site.removesuffix(":out"): op for op in prove_sums(before, "int16_pairs").ops}
    report = hs.repair_pair_sums(model)
    after = hs.lower(model)
    values = codes_of(before), codes_of(after)
    for weight in report.weights:
        found = unsafe[weight.site.removesuffix(":weight")]
        assert (weight.repaired, weight.channels) == (len(found.unsafe), found.channels)
        others = np.setdiff1d(np.arange(found.channels), found.unsafe)
        old, new = (each[weight.site] for each in values)
        assert np.array_equal(old[others], new[others])
        assert all(not np.array_equal(old[c], new[c]) for c in found.unsafe)
        # Halving the range of a channel would make its squared error about four times as large.
        assert 1 <= weight.after / weight.before < 3.5
        assert weight.clipped + weight.rescaled > 0
    assert report.repaired == sum(len(op.unsafe) for op in unsafe.values())
    assert report.channels == sum(op.channels for op in unsafe.values())
    first = report.weights[0]
    means = [
        np.average(
            [getattr(w, side) for w in report.weights], weights=[w.repaired for w in report.weights]
        )
        for side in ("before", "after")
    ]
    assert report.error == f"{means[0]:.3g} -> {means[1]:.3g}"
    head = f"{report.repaired} of {report.channels} channels repaired, squared error"
    assert str(report).startswith(f"{head} {report.error}\n  ")
    assert f"stem:weight: {first.repaired} of 8 channels repaired, {first.rescaled} on" in str(
        report
    )


def test_a_second_repair_finds_nothing() -> None:
    model = calibrated(small())
    hs.repair_pair_sums(model)
    program = hs.lower(model)
    report = hs.repair_pair_sums(model)
    assert not report.weights
    assert str(report) == f"0 of {report.channels} channels repaired, squared error 0 -> 0"
    assert str(hs.lower(model)) == str(program)


@pytest.mark.parametrize(
    "choices",
    [{"per_channel": False}, {"pow2": True}, {"weight_calibrator": "mse"}, {"weights": "int8"}],
    ids=str,
)
def test_every_form_of_weights_is_repaired(choices: dict[str, Any]) -> None:
    model = calibrated(small(), **choices)
    report = hs.repair_pair_sums(model)
    assert report.repaired
    assert prove_sums(hs.lower(model), "int16_pairs").safe
    for quantizer in model.quantizers():
        if quantizer.spec.pow2:
            assert np.all(np.frexp(quantizer.grid().scale)[0] == 0.5)


@pytest.mark.parametrize("choices", [{"weights": "int7_narrow"}, {"activations": "uint7"}], ids=str)
def test_fewer_bits_need_no_repair(choices: dict[str, Any]) -> None:
    model = calibrated(small(), **choices)
    assert not hs.repair_pair_sums(model).weights
    assert hs.lower(model).pair_sum_bits == 16


@pytest.mark.parametrize("method", ["round_weights", "adaround", "sequential_mse"])
def test_weights_that_are_rounded_are_repaired_behind_it(method: str) -> None:
    model = calibrated(small())
    hs.repair_pair_sums(model)
    options = {"iterations": 20} if method == "adaround" else {}
    getattr(hs.ptq, method)(model, BATCHES, **options)
    hs.repair_pair_sums(model)
    assert prove_sums(hs.lower(model), "int16_pairs").safe


def test_a_larger_scale_keeps_pairs_safe() -> None:
    """As the bias guard may raise one behind the repair."""
    model = calibrated(small())
    hs.repair_pair_sums(model)
    for site in model.weight_sites():
        quantizer, grid = model.quantizer(site), model.quantizer(site).grid()
        for factor in (1.003, 1.02, 1.11):
            scale = grid.scale * np.float32(factor)
            quantizer.set_grid(hs.Affine(grid.qtype, scale, grid.zero_point, grid.axis))
            assert hs.lower(model)


def test_a_shared_weight_is_repaired_once() -> None:
    def twice(conv: nn.Module, x: Tensor) -> Tensor:
        return conv(conv(x).relu())

    model = calibrated(seeded(Call(twice, nn.Conv2d(3, 3, 3, padding=1))))
    report = hs.repair_pair_sums(model)
    assert [weight.site for weight in report.weights] == ["part.0:weight"]
    assert report.channels == 3
    assert hs.lower(model)


def test_quantize_repairs_last_and_says_so() -> None:
    result = hs.quantize(small(), BATCHES, target=ANY, recipe="low_bit", weights="int8_narrow")
    assert result.verdict is not None
    assert result.verdict.status is hs.Status.EXACT
    verbs = [record.verb for record in result.journal.records]
    assert verbs[verbs.index("lower") - 1] == "pair sums"
    (record,) = [record for record in result.journal.records if record.verb == "pair sums"]
    assert record.facts.keys() == {"channels", "rescaled", "clipped", "squared error"}
    assert prove_sums(result.program, "int16_pairs").safe


def test_a_saved_result_with_clipped_weights_is_verified_again(tmp_path: Path) -> None:
    """The model itself, on the saved grids, would saturate: it is another program, and no error."""
    result = hs.quantize(small(), BATCHES, target=ANY, verify_samples=8)
    (record,) = [record for record in result.journal.records if record.verb == "pair sums"]
    assert record.facts["clipped"] != "0 pairs"
    result.save(tmp_path / "out")
    saved = open_saved(tmp_path / "out")
    assert model_stages(saved, small(), DATA(2, 0)).keys() == {"float"}
    assert hs.verify(saved.program, saved.artifact, BATCHES).status is hs.Status.EXACT


def test_trials_are_judged_repaired() -> None:
    generator = torch.Generator().manual_seed(0)
    data = [(batch[0], torch.randint(5, (8,), generator=generator)) for batch in BATCHES]
    result = hs.quantize(small(), data, target=ANY, recipe="best", max_drop=1.0, samples=16)
    assert prove_sums(result.program, "int16_pairs").safe


def test_products_of_activations_cannot_be_repaired() -> None:
    def scores(query: nn.Module, key: nn.Module, x: Tensor) -> Tensor:
        result: Tensor = query(x) @ key(x).transpose(-1, -2)
        return result

    graph = hs.capture(seeded(Call(scores, nn.Linear(8, 8), nn.Linear(8, 8))), DATA(2, 0))
    plan = hs.make_plan(graph, ANY).edit("part.1:out", qtype="int8")
    model = hs.prepare(graph, plan)
    hs.calibrate(model, BATCHES)
    hs.repair_pair_sums(model)
    with pytest.raises(ProgramError, match=r"matmul .*'pairs'.* Plan both of its inputs as uint8"):
        hs.lower(model)


def test_other_bits_of_pairs_are_refused() -> None:
    fields = {**vars(onnxruntime_any.TARGET), "pair_sum_bits": 17}
    with pytest.raises(PlanError, match=r"pair_sum_bits=17: kernels add pairs of products in 16"):
        Target(**fields)
