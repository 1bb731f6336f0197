"""What is captured is what the model computes, and the model stays as it was."""

import copy

import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import CaptureError, DataError, UnknownNameError
from tests.models import Call, CallTwo, Residual, normal, seeded


class Heads(nn.Module):
    """Two inputs by name, outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        total = self.linear(left) + right
        return {"total": total, "positive": torch.relu(total)}


class Noise(nn.Module):
    """Random in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def run(graph: hs.Graph, *inputs: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(graph.module(*inputs))


def test_what_needs_no_rewrite_is_equal_bit_for_bit():
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
    graph = hs.capture(model, normal(2, 3, 8, 8))
    x = normal(5, 3, 8, 8, seed=1)
    (found,) = run(graph, x)
    with torch.no_grad():
        assert torch.equal(found, model(x))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_batch_is_dynamic(size):
    model = seeded(Residual())
    graph = hs.capture(model, normal(3, 3, 8, 8))
    x = normal(size, 3, 8, 8, seed=1)
    (found,) = run(graph, x)
    with torch.no_grad():
        torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)


def test_an_example_of_one_sample_is_enough():
    graph = hs.capture(seeded(nn.Linear(4, 3)), normal(1, 4))
    assert [len(value) for value in graph.example] == [2]
    (found,) = run(graph, normal(6, 4))
    assert found.shape == (6, 3)


def test_a_dict_names_the_inputs_and_the_output_keeps_its_structure():
    model = seeded(Heads())
    left, right = normal(4, 4), normal(4, 3, seed=1)
    graph = hs.capture(model, {"left": left, "right": right})
    assert graph.inputs == ("left", "right")
    quantized = hs.prepare(graph, hs.make_plan(graph))
    quantized.enable(False)
    expected = model(left, right)
    for found in (quantized(left, right), quantized(left=left, right=right)):
        assert list(found) == ["total", "positive"]
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_several_inputs_in_order():
    graph = hs.capture(CallTwo(lambda x, y: x - y), (normal(2, 3), normal(2, 3, seed=1)))
    x, y = normal(4, 3, seed=2), normal(4, 3, seed=3)
    assert graph.inputs == ("x", "y")
    assert torch.equal(run(graph, x, y)[0], x - y)


def test_only_captures_a_submodule():
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(16, 2))))
    x = normal(3, 4, 2, 2)
    graph = hs.capture(model, x, only="1")
    with torch.no_grad():
        assert torch.equal(run(graph, x)[0], model[1](x))


def test_only_names_the_nearest_submodules():
    with pytest.raises(UnknownNameError, match=r"^unknown submodule 'stam': did you mean 'stem'"):
        hs.capture(seeded(Residual()), normal(2, 3, 8, 8), only="stam")


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = seeded(Residual()).train(training)
    before, code = copy.deepcopy(model.state_dict()), str(model)
    graph = hs.capture(model, normal(2, 3, 8, 8))
    with torch.no_grad():
        for value in graph.module.parameters():
            assert value.isfinite().all()
    assert torch.backends.mha.get_fastpath_enabled()
    assert model.training is training
    assert all(part.training is training for part in model.modules())
    assert str(model) == code
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(not value._backward_hooks for value in model.parameters())


def test_the_mode_comes_back_after_a_refusal():
    model = seeded(Noise()).train()
    with pytest.raises(CaptureError):
        hs.capture(model, normal(2, 3))
    assert model.training


def test_training_a_capture_does_not_train_the_model():
    model = seeded(nn.Linear(4, 3))
    before = copy.deepcopy(model.state_dict())
    graph = hs.capture(model, normal(2, 4))
    quantized = hs.prepare(graph, hs.make_plan(graph))
    with torch.no_grad():
        for value in quantized.parameters():
            value.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_is_random_in_eval_mode_is_refused():
    text = r"^output 0: the captured graph differs from the model by .*random in eval mode\?$"
    with pytest.raises(CaptureError, match=text):
        hs.capture(Noise(), normal(2, 3))


def test_control_flow_on_data_is_refused_with_its_line():
    def forward(x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1

    text = r"(?s)^Call: torch\.export refuses the model at .*test_capture.*Replace control flow"
    with pytest.raises(CaptureError, match=text):
        hs.capture(Call(forward), normal(2, 3))


def test_a_refusal_is_all_that_is_said(capfd):
    with pytest.raises(CaptureError):
        hs.capture(Call(lambda x: x if x.mean() > 0 else -x), normal(2, 3))
    assert capfd.readouterr() == ("", "")


def test_examples_are_checked():
    model = seeded(nn.Linear(4, 3))
    text = r"^input:in: an example input must be a tensor with at least one sample on axis 0, found"
    with pytest.raises(CaptureError, match=text + r" \(0, 4\)$"):
        hs.capture(model, torch.zeros(0, 4))
    with pytest.raises(CaptureError, match=text + " list$"):
        hs.capture(model, ([1.0, 2.0],))
    with pytest.raises(DataError, match=r"^input:in: batch 0: it holds NaN or infinity"):
        hs.capture(model, torch.full((2, 4), torch.nan))


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "class"])
def test_a_name_that_a_graph_cannot_have_is_refused(name):
    model = nn.Sequential()
    model.add_module("first", nn.Sequential())
    model.first.add_module(name, nn.Conv2d(3, 4, 1))
    found = repr(f"first.{name}{'' if name != 'class' else '.weight'}")
    with pytest.raises(CaptureError) as raised:
        hs.capture(model, normal(2, 3, 4, 4))
    assert str(raised.value) == (
        f"{found}: torch writes the graph as Python, and {name!r} cannot be a name there: asked "
        "for one that is no keyword and has no double quote, backslash or line end; rename it"
    )


@pytest.mark.parametrize("name", ["it's", "a b", "a-b", "a{b}", "a:b", "a/b", "3", "größe"])
def test_other_odd_names_are_kept(name):
    model = nn.Sequential()
    model.add_module(name, nn.Conv2d(3, 4, 1))
    model.add_module("class", nn.ReLU())
    model.add_module("last", nn.Conv2d(4, 2, 1))
    result = hs.quantize(seeded(model), [normal(4, 3, 4, 4)], verify_samples=2)
    assert result.verdict.status == "exact"
    assert f"{name}:out" in result.program.sites


@pytest.mark.parametrize(
    ("tensor", "value", "found"),
    [
        ("1.conv.weight", float("nan"), "weight of 1.conv (Conv2d) holds 2 of 12 values"),
        ("1.conv.bias", float("-inf"), "bias of 1.conv (Conv2d) holds 2 of 4 values"),
        ("1.bn.running_var", float("nan"), "running_var of 1.bn (BatchNorm2d) holds 2 of 4 values"),
    ],
)
def test_weights_that_are_no_numbers_are_named(tensor, value, found):
    model = nn.Sequential(nn.Identity(), nn.Sequential())
    model[1].add_module("conv", nn.Conv2d(3, 4, 1))
    model[1].add_module("bn", nn.BatchNorm2d(4))
    model.eval().state_dict()[tensor].view(-1)[1:3] = value
    infinity = "" if "running" in tensor else " or infinity"
    with pytest.raises(CaptureError) as raised:
        hs.capture(model, normal(2, 3, 4, 4))
    assert str(raised.value) == (
        f"{tensor}: {found} that are NaN{infinity}: asked for numbers; load other weights, or "
        "train again"
    )


def test_a_parameter_that_nothing_reads_may_be_anything():
    model = Residual().eval()
    model.spare = nn.Parameter(torch.full((3,), float("nan")))
    model.register_buffer("mask", torch.full((1,), float("-inf")))
    hs.capture(model, normal(2, 3, 4, 4))


def test_outputs_that_are_no_numbers_are_not_blamed_on_the_capture():
    model = Call(lambda conv, x: conv(x) / 0.0, nn.Conv2d(3, 2, 1)).eval()
    text = r"^output 0: the model itself gives 64 of 64 values that are NaN or infinity, of weights"
    with pytest.raises(CaptureError, match=text):
        hs.capture(model, normal(2, 3, 4, 4))


class AnyNumber(nn.Module):
    """As many inputs as there are, after one that has a name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return self.linear(x + sum(others))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_model_may_take_any_number_of_inputs(count):
    model = seeded(AnyNumber())
    graph = hs.capture(model, tuple(normal(2, 3, seed=seed) for seed in range(count)))
    inputs = [normal(5, 3, seed=9 + seed) for seed in range(count)]
    assert graph.inputs == ("x", "others_0", "others_1")[:count]
    assert torch.equal(graph.module(*inputs)[0], model(*inputs))


def without_clamps(module: torch.fx.GraphModule) -> None:
    """A rewrite that forgets every bound."""
    for node in module.graph.nodes:
        if node.target == torch.ops.aten.clamp.default:
            node.replace_all_uses_with(node.args[0])
    module.graph.eliminate_dead_code()
    module.recompile()


def test_what_the_example_does_not_show_is_seen_on_other_values(monkeypatch):
    model, x = Call(lambda x: x.clamp(min=-9.0)), normal(2, 3, 8) + 4.0
    assert hs.capture(model, x)
    monkeypatch.setattr("halfstep.graph.capture.canonicalize", without_clamps)
    with pytest.raises(CaptureError, match=r"^output 0: .* not on its values times -3: \d+%"):
        hs.capture(model, x)


@pytest.mark.parametrize("function", [torch.sqrt, lambda x: 1 / (x + 3 * x.abs().detach() - 2 * x)])
def test_where_other_values_give_no_numbers_nothing_is_said(function):
    hs.capture(Call(function), normal(2, 3).abs() + 1.0)
