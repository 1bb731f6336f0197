"""The means behind every layer norm are the float ones, as far as the output sees them."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

import halfstep as hs
from halfstep.core.execution import Execution
from halfstep.errors import DataError
from halfstep.graph.edit import with_biases
from halfstep.ptq.correct_layer_norms import correct_layer_norms
from halfstep.ptq.importance import importance
from tests.encoders import WIDTH, Encoder, sentences
from tests.models import normal, seeded

DATA = [sentences(40, 1), sentences(40, 2)]


def quantized(model: nn.Module | None = None, data: list[tuple[Tensor, ...]] | None = None):
    """A calibrated model with weights of 4 bits."""
    data = data or DATA
    graph = with_biases(hs.capture(model or Encoder(), data[0]))
    quantized = hs.prepare(graph, hs.make_plan(graph, weights="int4_narrow"))
    hs.calibrate(quantized, data)
    return quantized


class _Kept(fx.Interpreter):
    """The values of the nodes of one name."""

    def __init__(self, module: fx.GraphModule, name: str) -> None:
        super().__init__(module)
        self.name = name

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name == self.name:
            self.found = value
        return value


def shifts(
    model: hs.QuantizedModel,
    weighted: bool = True,
    data: list[tuple[Tensor, ...]] = DATA,
    width: int = WIDTH,
) -> list[Tensor]:
    """For each layer norm, the mean of its error over the positions."""
    found = []
    counts = importance(model, data)
    for unit in model.units.units:
        if unit.kind != "layer_norm":
            continue
        total, count = torch.zeros(width, dtype=torch.float64), 0.0
        for index, batch in enumerate(data):
            runs = [_Kept(m, unit.head.name) for m in (model.graph.module, model.module)]
            with torch.inference_mode():
                for run in runs:
                    run.run(*batch)
            weights = counts[unit.name][index] if weighted else torch.ones(batch[0].shape[:2])
            error = (runs[1].found - runs[0].found).double() * weights[..., None]
            total, count = total + error.sum((0, 1)), count + float(weights.sum())
        found.append(total / count)
    return found


def test_the_means_are_those_of_the_float_model_on_the_same_data() -> None:
    model = quantized()
    before = shifts(model)
    report = correct_layer_norms(model, DATA)
    after = shifts(model)
    assert len(report.layers) == len(after) == 5 and report.skipped == ()
    assert min(float(shift.norm()) for shift in before) > 0.01
    assert max(float(shift.abs().max()) for shift in after) < 1e-5
    torch.testing.assert_close(report.layers[0].shift, before[0], rtol=1e-4, atol=1e-6)


def test_padding_does_not_count() -> None:
    """The means over all positions stay wrong, for most padded ones are in another place."""
    model = quantized()
    correct_layer_norms(model, DATA)
    assert max(float(shift.abs().max()) for shift in shifts(model, weighted=False)) > 1e-3


def test_the_output_comes_closer_on_other_data() -> None:
    model = quantized()
    other = sentences(60, 3)
    with torch.inference_mode():
        wanted = model.graph.module(*other)[0]
        before = (model.module(*other)[0] - wanted).square().mean()
        correct_layer_norms(model, DATA)
        after = (model.module(*other)[0] - wanted).square().mean()
    assert after < 0.95 * before


def test_only_biases_of_layer_norms_move_and_a_second_time_moves_nothing() -> None:
    model = quantized()
    before = copy.deepcopy(dict(model.module.named_parameters()))
    correct_layer_norms(model, DATA)
    moved = {n for n, p in model.module.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "norm" in n and n.endswith("bias")}
    again = correct_layer_norms(model, DATA)
    assert max(float(layer.shift.abs().max()) for layer in again.layers) < 1e-5


class _OnIntegers(nn.Module):
    """A layer norm whose errors are far larger than its biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


def test_on_integers_the_grid_of_a_bias_follows_it() -> None:
    """What is left of the means is the rounding of the biases; clipped, they could not move."""
    data = [(normal(64, 5, 16, seed=seed) * torch.linspace(0, 1, 16) + 0.3,) for seed in (1, 2)]
    module = seeded(_OnIntegers())
    nn.init.uniform_(module.norm.bias, -0.01, 0.01)
    graph = with_biases(hs.capture(module, data[0]))
    model = hs.prepare(graph, hs.make_plan(graph, "c99", weights="int3_narrow"))
    hs.calibrate(model, data)
    (unit,) = [unit for unit in model.units.units if unit.kind == "layer_norm"]
    assert model.plan.executions[unit.name] is Execution.INTEGER
    before = shifts(model, data=data, width=16)[0]
    (layer,) = correct_layer_norms(model, data).layers
    after = shifts(model, data=data, width=16)[0]
    step = float(model.quantizer("norm.bias:constant").grid().scale)
    assert float(before.abs().max()) > 0.05 > 10 * step
    assert float(after.abs().max()) <= step  # half of one, and as much at the ends of the grid
    assert float((layer.shift - before).abs().max()) <= 0.01 / 127
    assert hs.lower(model)


class _Plain(nn.Module):
    """A layer norm without a bias, one over two axes, and two that share theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.bare = nn.LayerNorm(6, bias=False)
        self.wide = nn.LayerNorm((5, 6))
        self.shared = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.bare(self.linear(x)))
        return self.shared(self.linear(self.shared(x)))


def test_what_cannot_be_corrected_is_named() -> None:
    data = [(normal(4, 5, 6),)]
    report = correct_layer_norms(quantized(seeded(_Plain()), data), data)
    assert report.layers == ()
    assert [str(refusal) for refusal in report.skipped] == [
        "bare: it has no bias",
        "wide: it normalizes over 2 axes together, so it has no channels",
        "shared: its bias is shared with another layer",
        "shared_1: its bias is shared with another layer",
    ]


def test_a_model_without_layer_norms_is_left_alone() -> None:
    data = [(normal(4, 6),)]
    assert correct_layer_norms(quantized(nn.Linear(6, 6), data), data).layers == ()


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(DataError, match="the data has no batch"):
        correct_layer_norms(quantized(), [])
