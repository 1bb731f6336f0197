import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.graph.batchnorm import value_of
from halfstep.graph.edit import with_biases
from halfstep.ptq.adaround import adaround
from halfstep.ptq.layerwise import RoundingReport
from halfstep.ptq.round_weights import round_weights
from tests.models import Residual, normal, seeded

DATA = [normal(16, 3, 8, 8, seed=seed) for seed in (1, 2, 3, 4)]
TEST = normal(64, 3, 8, 8, seed=9)


def calibrated(module: nn.Module | None = None, **choices: object) -> hs.QuantizedModel:
    graph = with_biases(hs.capture(seeded(module or Residual(8)), DATA[0]))
    choices = {"weights": "int3", **choices}
    model = hs.prepare(graph, hs.make_plan(graph, **choices))  # type: ignore[arg-type]
    hs.calibrate(model, DATA)
    return model


def distance(model: hs.QuantizedModel) -> float:
    """The squared error of the outputs on unseen data, relative to their variance."""
    with torch.no_grad():
        wanted, found = model.graph.module(TEST)[0], model(TEST)
    return float((found - wanted).square().mean() / wanted.var())


def weights_of(model: hs.QuantizedModel) -> dict[str, tuple[hs.Affine, np.ndarray]]:
    return {
        unit.name: (
            model.quantizer(model.units.sites[unit.weight]).grid(),
            model.parameter_of(unit.weight).detach().numpy(),
        )
        for unit in model.units.units
        if unit.weight is not None
    }


def run_adaround(model: hs.QuantizedModel) -> RoundingReport:
    return adaround(model, DATA, iterations=400, batch=512)


@pytest.mark.parametrize("method", [lambda m: round_weights(m, DATA), run_adaround])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_on_their_grids_and_the_outputs_are_nearer(method, per_channel) -> None:  # type: ignore[no-untyped-def]
    model = calibrated(per_channel=per_channel)
    before = distance(model)
    report = method(model)
    assert distance(model) < 0.7 * before
    assert [layer.name for layer in report.layers] == ["stem", "conv", "fc"]
    assert all(layer.error <= layer.nearest for layer in report.layers)
    program = hs.lower(model)
    for name, (grid, weight) in weights_of(model).items():
        codes = grid.quantize(weight)
        np.testing.assert_array_equal(grid.dequantize(codes), weight)
        np.testing.assert_array_equal(program.constant(f"{name}:weight"), codes)


def test_adaround_goes_up_or_down_only_and_leaves_grids_and_biases() -> None:
    model, untouched = calibrated(), calibrated()
    run_adaround(model)
    for name, (grid, weight) in weights_of(model).items():
        old_grid, old = weights_of(untouched)[name]
        assert grid.same_as(old_grid)
        steps = old / grid.along(grid.scale, old.ndim)
        codes = grid.quantize(weight)
        assert np.all(
            (codes == np.clip(np.floor(steps), -4, 3))
            | (codes == np.clip(np.floor(steps) + 1, -4, 3))
        )
    for unit in model.units.units:
        if unit.bias is not None:
            assert torch.equal(model.parameter_of(unit.bias), untouched.parameter_of(unit.bias))


def test_the_fast_solver_is_not_worse_than_adaround_on_the_same_layers() -> None:
    fast, learned = calibrated(), calibrated(weight_calibrator="mse")
    mine, theirs = round_weights(fast, DATA), adaround(learned, DATA, iterations=1000, batch=512)
    assert sum(layer.error for layer in mine.layers) <= sum(layer.error for layer in theirs.layers)
    assert distance(fast) <= distance(learned)


def test_the_same_data_gives_the_same_codes_twice() -> None:
    for method in (lambda m: round_weights(m, DATA), run_adaround):
        first, second = calibrated(), calibrated()
        method(first)
        method(second)
        for a, b in zip(weights_of(first).values(), weights_of(second).values(), strict=True):
            np.testing.assert_array_equal(a[1], b[1])


def test_means_of_outputs_are_kept() -> None:
    model = calibrated()
    round_weights(model, DATA)
    stem = next(unit for unit in model.units.units if unit.name == "stem")
    assert stem.weight is not None and stem.bias is not None
    x = torch.cat(DATA)
    with torch.no_grad():
        exact, found = (
            nn.functional.conv2d(
                inputs, value_of(module, stem.weight), value_of(module, stem.bias), padding=1
            )
            for module, inputs in (
                (model.graph.module, x),
                (model.module, model.quantizer("x:in")(x)),
            )
        )
        shift = (found - exact).mean((0, 2, 3)).abs().max()
    assert float(shift) < 1e-5 * float(exact.std())


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x).relu())


def test_a_shared_weight_is_rounded_once_and_the_report_says_so() -> None:
    report = round_weights(calibrated(_Shared()), DATA)
    assert [layer.name for layer in report.layers] == ["conv"]
    ((name, reason),) = report.skipped
    assert (name, reason) == ("conv_1", "it shares its weight with conv, rounded before")
    assert re.search(r"1 layers rounded, 1 left to nearest rounding\n  conv: relative", str(report))


def test_a_power_of_two_scale_stays() -> None:
    model, untouched = calibrated(pow2=True), calibrated(pow2=True)
    round_weights(model, DATA)
    for name, (grid, _) in weights_of(model).items():
        assert grid.same_as(weights_of(untouched)[name][0])
    assert distance(model) < distance(untouched)


def test_a_dead_channel_and_a_dead_input_survive() -> None:
    module = seeded(Residual(8))
    graph = with_biases(hs.capture(module, DATA[0]))
    model = hs.prepare(graph, hs.make_plan(graph, weights="int4"))
    stem = next(unit for unit in model.units.units if unit.name == "stem")
    for place in (model.module, graph.module):
        place.get_parameter(str(stem.weight.target)).data[2] = 0  # type: ignore[union-attr]
        place.get_parameter(str(stem.bias.target)).data[2] = -1  # type: ignore[union-attr]
    hs.calibrate(model, DATA)
    round_weights(model, DATA)
    assert np.isfinite(distance(model))
    assert distance(model) < 0.1


def test_the_artifact_computes_the_rounded_model(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = calibrated()
    round_weights(model, DATA)
    program = hs.lower(model)
    hs.export(program, tmp_path / "model.onnx")
    assert hs.verify(program, tmp_path / "model.onnx", [TEST]).status is hs.Status.EXACT
