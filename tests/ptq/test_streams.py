import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import halfstep as hs
from halfstep.graph.edit import with_biases
from halfstep.graph.slices import segments, sliced
from halfstep.ptq.importance import importance
from halfstep.ptq.moments import moments, patches
from halfstep.ptq.round_weights import round_weights
from halfstep.ptq.streams import Streams
from tests.encoders import Encoder, sentences
from tests.models import Residual, normal, seeded

DATA = [normal(6, 3, 8, 8, seed=seed) for seed in (1, 2, 3)]


def calibrated(module: nn.Module, data: list[Tensor] = DATA, **choices: str) -> hs.QuantizedModel:
    graph = with_biases(hs.capture(seeded(module), data[0]))
    model = hs.prepare(graph, hs.make_plan(graph, **choices))
    hs.calibrate(model, data)
    return model


class _Wide(nn.Module):
    """Depthwise, grouped, strided, dilated and 1-d convolutions, padding of its own, a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.grouped = nn.Conv2d(8, 4, (1, 3), padding=(0, 1), groups=2)
        self.last = nn.Conv1d(4, 6, 3, padding=1)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.pad(x, (0, 1, 0, 1))).relu()
        x = self.grouped(self.depthwise(x).relu())
        y = self.last(x.flatten(2))
        return self.linear(y.transpose(1, 2))


@pytest.mark.parametrize("live_bytes", [1, 20_000, 1 << 30])
@pytest.mark.parametrize("module", [Residual(), _Wide()], ids=["residual", "wide"])
def test_layers_get_what_both_models_give_them(module: nn.Module, live_bytes: int) -> None:
    model = calibrated(module)
    streams = Streams(model, DATA, live_bytes=live_bytes)
    seen = 0
    for layer in streams.layers():
        node = layer.unit.inputs[0]
        theirs = streams.quantized((node,))
        inputs = [n for n in model.module.graph.nodes if n.op == "placeholder"]
        wanted = sliced(model.module, inputs, theirs)
        exact = sliced(
            model.graph.module, [n for n in node.graph.nodes if n.op == inputs[0].op], [node]
        )
        for batch, (x, z) in zip(DATA, layer.inputs(), strict=True):
            assert torch.equal(x, exact(batch)[0])
            assert torch.equal(z, wanted(batch)[0])
        seen += 1
    assert seen == len([u for u in model.units.units if u.weight is not None])


@pytest.mark.parametrize("live_bytes", [1, 3_000, 1 << 30])
@pytest.mark.parametrize("dropout", [0.0, 0.5], ids=["plain", "dropout"])
def test_layers_get_codes_where_float_operations_read_the_same_value(
    live_bytes: int, dropout: float
) -> None:
    """The sum is float and reads what the layer norm made; the layers read its codes."""
    module = _Normed(dropout)
    data = [normal(6, 4, 8, seed=seed) for seed in (1, 2)]
    graph = hs.capture(seeded(module), data[0])
    plan = hs.make_plan(graph).keep_float("*add*").keep_float("*tanh*")
    model = hs.prepare(graph, plan)
    hs.calibrate(model, data)
    recorded: dict[str, list[Tensor]] = {}

    class Recorder(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):  # type: ignore[no-untyped-def]
            if target == torch.ops.aten.linear.default:
                recorded.setdefault(args[1].shape[0], []).append(args[0])
            return super().call_function(target, args, kwargs)

    for batch in data:
        Recorder(model.module).run(batch)
    layers = list(Streams(model, data, live_bytes=live_bytes).layers())
    assert len(layers) == len(recorded) == 3
    for layer in Streams(model, data, live_bytes=live_bytes).layers():
        width = model.parameter_of(layer.unit.weight).shape[0]  # type: ignore[arg-type]
        for (x, z), wanted in zip(layer.inputs(), recorded[width], strict=True):
            assert torch.equal(z, wanted)
            assert not torch.equal(x, z)


class _Normed(nn.Module):
    """Layers of different widths behind a layer norm that residual additions read as well."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(8), nn.Dropout(dropout)
        self.up, self.down, self.last = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm(x))
        x = self.dropout(self.norm(x + self.down(self.up(x).tanh())))
        return self.last(x)


def test_a_change_of_a_layer_is_seen_behind_it() -> None:
    model = calibrated(Residual())
    layers = Streams(model, DATA).layers()
    first = next(layers)
    assert first.unit.weight is not None
    with torch.no_grad():
        model.parameter_of(first.unit.weight).zero_()
        assert first.unit.bias is not None
        model.parameter_of(first.unit.bias).zero_()
    _, z = next(next(layers).inputs())
    assert not z.any()


def test_segments_keep_no_more_than_allowed() -> None:
    model = calibrated(Residual())
    graph = model.graph.module.graph
    whole = segments(model.units, graph, largest=0)
    assert [(s.first, s.stop) for s in whole] == [(0, len(model.units.units))]
    cut = segments(model.units, graph, largest=4 * 64)
    assert [s.first for s in cut] == sorted({s.first for s in cut})
    assert cut[0].first == 0
    assert all(a.stop == b.first for a, b in itertools.pairwise(cut))
    assert len(cut) > len(whole)


@pytest.mark.parametrize("every", [1, 3])
def test_moments_are_those_of_the_patches(every: int) -> None:
    model = calibrated(_Wide())
    for layer in Streams(model, DATA).layers():
        unit = layer.unit
        assert unit.weight is not None and unit.bias is not None
        weight, bias = (
            model.graph.module.get_parameter(str(n.target)) for n in (unit.weight, unit.bias)
        )
        for x, _ in layer.inputs():
            rows = patches(unit, x)
            by_group = weight.reshape(len(rows), -1, rows.shape[-1])
            found = rows @ by_group.mT + bias.reshape(len(rows), 1, -1)
            wanted = next(streamed(unit, model, x))
            torch.testing.assert_close(found.mean(1).flatten(), wanted, rtol=1e-4, atol=1e-5)
            some = patches(unit, x, 0, every)
            assert 0 < some.shape[1] <= rows.shape[1]
        found = moments(unit, layer.inputs(), samples=18)
        assert torch.linalg.eigvalsh(found.gram).min() > 0


def streamed(unit, model, x):  # type: ignore[no-untyped-def]
    """The mean of each output channel of a layer, computed by the layer itself."""
    outputs = sliced(model.graph.module, [unit.inputs[0]], [unit.head])(x)[0]
    axes = [
        a for a in range(outputs.ndim) if a != (outputs.ndim - 1 if unit.kind == "linear" else 1)
    ]
    yield outputs.detach().mean(axes)


def test_noise_between_samples_is_shrunk_and_a_known_covariance_is_not() -> None:
    model = calibrated(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    unit = next(u for u in model.units.units if u.kind == "linear")

    def pairs(n: int, mixed: Tensor):  # type: ignore[no-untyped-def]
        for seed in range(n // 16):
            x = normal(16, 192, seed=seed) @ mixed
            yield x, x

    independent, mixed = torch.eye(192), normal(192, 192, seed=7)
    few = moments(unit, pairs(64, independent), 64)
    assert few.shrinkage > 0.9, "what lies beside the diagonal is nothing but noise"
    many = moments(unit, pairs(4096, mixed), 4096)
    assert many.shrinkage < 0.1
    torch.testing.assert_close(few.target(normal(1, 5, 192).double()), normal(1, 5, 192).double())
    truth = mixed.T @ mixed
    errors = [
        float((found.gram[0] - truth).norm() / truth.norm())
        for found in (moments(unit, pairs(64, mixed), 64), many)
    ]
    assert errors[1] < errors[0]
    raw = torch.cat([x for x, _ in pairs(64, mixed)])
    plain = float(((raw - raw.mean(0)).T @ (raw - raw.mean(0)) / 64 - truth).norm() / truth.norm())
    assert errors[0] < plain


def test_a_position_that_counts_twice_is_one_that_is_there_twice() -> None:
    model = calibrated(nn.Linear(6, 5), [normal(4, 7, 6, seed=1)])
    (unit,) = model.weighted_units()
    x, z = normal(4, 7, 6, seed=2), normal(4, 7, 6, seed=3)
    counts = torch.tensor([0.0, 1, 2, 1, 0, 1, 3]).expand(4, 7)
    times = counts[0].long()
    found = moments(unit, [(x, z)], 4, [counts])
    repeated = [value.repeat_interleave(times, 1) for value in (x, z)]
    wanted = moments(unit, [(repeated[0], repeated[1])], 4)
    for name in ("mean", "mean_quantized", "gram", "drift"):
        torch.testing.assert_close(
            getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-6
        )
    assert found.shrinkage == pytest.approx(wanted.shrinkage)


def test_what_a_mask_hides_counts_nothing_and_the_rest_counts_by_its_influence() -> None:
    data = [sentences(6, 1), sentences(6, 2)]
    graph = hs.capture(Encoder(), data[0])
    model = hs.prepare(graph, hs.make_plan(graph))
    hs.calibrate(model, data)
    found = importance(model, data)
    counted = [unit.name for unit in model.units.units if unit.kind in ("linear", "layer_norm")]
    assert sorted(found) == sorted(counted) and len(counted) == 12 + 5
    for weights in found.values():
        assert torch.cat(weights).mean() == pytest.approx(1)
        for (_, mask), weight in zip(data, weights, strict=True):
            assert not weight[mask == 0].any()
            assert weight[mask == 1].min() > 0


def test_layers_over_images_and_vectors_count_all_positions_alike() -> None:
    assert importance(calibrated(Residual()), [(DATA[0],)]) == {}


@pytest.mark.parametrize(("noise", "low", "high"), [(0.0, 0.95, 1.0), (3.0, 0.0, 0.4)])
def test_a_correction_is_believed_as_far_as_it_holds_on_other_samples(
    noise: float, low: float, high: float
) -> None:
    """What quantized inputs lack is linear in them, or it is noise."""
    model = calibrated(nn.Linear(24, 5), [normal(8, 24, seed=1)])
    (unit,) = model.weighted_units()
    n = 96 if noise else 2048
    z = normal(n, 24, seed=2)
    x = z + noise * normal(n, 24, seed=4) + (0 if noise else 0.3 * z @ normal(24, 24, seed=3))
    found = moments(unit, [(x, z)], n)
    share = found.confirmed(normal(1, 5, 24, seed=5).double())
    assert low <= share <= high


def test_without_the_inputs_of_the_float_model_only_the_rounding_counts() -> None:
    """Weights that lie on their grid stay there, whatever happened in front of them."""
    errors = []
    for asymmetric in (False, True):
        model = calibrated(Residual())
        report = round_weights(model, DATA, asymmetric=asymmetric)
        again = round_weights(model, DATA, asymmetric=False)
        assert len(again.layers) == len(report.layers)
        errors.append(max(layer.nearest for layer in report.layers))
    assert errors[0] < errors[1]
