"""Absorption is exact above c, and says what it costs where taps lie on padding."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import DataError, PlanError
from halfstep.graph.slices import sliced
from halfstep.ptq.absorb_bias import absorb_bias
from halfstep.ptq.equalize import equalize
from halfstep.ptq.pairs import find_pairs
from tests.models import Call, normal, seeded

IMAGE = (4, 8, 8)
BIAS = torch.tensor([6.0, 0.1, 3.0, -2.0, 9.0, 0.0])


def network(activation: nn.Module, padding: int = 0, kernel: int = 3) -> nn.Module:
    """Convolution, batch norm, ``activation``, convolution; some biases are high."""
    first, norm = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
    second = nn.Conv2d(6, 5, kernel, padding=padding)
    module = seeded(nn.Sequential(first, norm, activation, second))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -0.5, 0.4, 0.7, -0.8, 0.3]))
        norm.bias.copy_(BIAS)
        # What normal inputs make of it, so that the statistics are true.
        norm.running_mean.zero_()
        norm.running_var.copy_(first.weight.square().sum((1, 2, 3)))
    return module


def captured(module: nn.Module) -> hs.Graph:
    return hs.capture(module, normal(2, *IMAGE))


def outputs(graph: hs.Graph, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = graph.module(x)[0]
    return found


def pre_activations(graph: hs.Graph, x: Tensor) -> Tensor:
    (pair, *_), _ = find_pairs(graph)
    inputs = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    with torch.no_grad():
        found: Tensor = sliced(graph.module, inputs, (pair.head,))(x)[0]
    return found


def test_the_constant_is_the_published_one():
    graph = captured(network(nn.ReLU()))
    new, report = absorb_bias(graph)
    gamma = torch.tensor([1.0, 0.5, 0.4, 0.7, 0.8, 0.3])
    wanted = (BIAS - 3 * gamma).clamp(min=0)
    torch.testing.assert_close(report.pairs[0].absorbed.float(), wanted)
    (node,) = [n for n in new.module.graph.nodes if "batchnorm" in n.meta]
    torch.testing.assert_close(node.meta["batchnorm"][1], BIAS - wanted)
    (original,) = [n for n in graph.module.graph.nodes if "batchnorm" in n.meta]
    assert torch.equal(original.meta["batchnorm"][1], BIAS)
    x = normal(4, *IMAGE, seed=5)
    lowered = pre_activations(graph, x) - pre_activations(new, x)
    torch.testing.assert_close(lowered.mean((0, 2, 3)), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.PReLU(6), nn.LeakyReLU(0.1)])
def test_it_is_exact_above_the_constant_and_bounded_by_the_violations(activation: nn.Module):
    graph = captured(network(activation))
    new, report = absorb_bias(graph)
    x = normal(64, *IMAGE, seed=1)
    constant = report.pairs[0].absorbed.float()[:, None, None]
    below = ((pre_activations(graph, x) < constant) & (constant > 0)).any(1)
    touched = F.max_pool2d(below.float()[:, None], 3, 1).bool()[:, 0]
    difference = (outputs(graph, x) - outputs(new, x)).abs()
    assert 0 < touched.float().mean() < 1, "the data shows both cases"
    assert difference.amax(1)[~touched].max() < 1e-5 * outputs(graph, x).abs().max()
    assert difference.amax(1)[touched].max() > 0.01


def test_with_data_it_is_exact_on_that_data():
    graph = captured(network(nn.ReLU()))
    data = [normal(16, *IMAGE, seed=seed) for seed in range(3)]
    new, report = absorb_bias(graph, data)
    least = pre_activations(graph, torch.cat(data)).amin((0, 2, 3))
    torch.testing.assert_close(report.pairs[0].absorbed.float(), least.clamp(min=0))
    assert report.pairs[0].absorbed.any()
    x = torch.cat(data)
    torch.testing.assert_close(outputs(new, x), outputs(graph, x), rtol=1e-5, atol=1e-5)


def test_nothing_to_absorb_is_nothing_done():
    module = network(nn.ReLU())
    with torch.no_grad():
        module[1].bias.zero_()
    graph = captured(module)
    new, report = absorb_bias(graph)
    assert report.pairs == ()
    x = normal(4, *IMAGE)
    assert torch.equal(outputs(new, x), outputs(graph, x))


def test_without_an_activation_the_whole_mean_goes():
    graph = captured(network(nn.Identity()))
    new, report = absorb_bias(graph)
    torch.testing.assert_close(report.pairs[0].absorbed.float(), BIAS)
    x = normal(8, *IMAGE)
    torch.testing.assert_close(outputs(new, x), outputs(graph, x), rtol=1e-5, atol=1e-5)


# Padding


def test_padding_is_refused_with_its_error():
    graph = captured(network(nn.ReLU(), padding=1))
    new, report = absorb_bias(graph)
    assert report.pairs == ()
    (refusal,) = report.refused
    assert refusal.site == "0 -> 3"
    assert "3 channels with a high bias, and padding makes an error of up to" in refusal.reason
    x = normal(4, *IMAGE)
    assert torch.equal(outputs(new, x), outputs(graph, x))


def test_accepted_padding_is_off_by_what_is_reported():
    """On inputs that never fall below c, the difference at the borders is the error, exactly."""
    graph = captured(network(nn.ReLU(), padding=1))
    data = [normal(16, *IMAGE, seed=seed) for seed in range(2)]
    new, report = absorb_bias(graph, data, borders="accept")
    difference = (outputs(graph, torch.cat(data)) - outputs(new, torch.cat(data))).abs()
    assert difference[..., 1:-1, 1:-1].max() < 1e-4
    assert float(difference.max()) == pytest.approx(report.pairs[0].error, rel=1e-4)
    assert "where taps lie on padding" in str(report)


def test_the_error_is_told_in_deviations_where_they_are_known():
    parts = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
    first = network(nn.ReLU())
    module = nn.Sequential(*first[:3], *(seeded(part) for part in parts))
    (pair,) = absorb_bias(captured(module), borders="accept")[1].pairs
    assert pair.deviations is not None
    assert pair.deviations * parts[1].weight.abs().max() >= pair.error


INEXACT = {
    "padding in front": lambda a, b, n, x: b(F.pad(n(a(x)).relu(), (1, 1, 1, 1))),
    "counted padding of an average": lambda a, b, n, x: b(F.avg_pool2d(n(a(x)).relu(), 3, 1, 1)),
    "a factor": lambda a, b, n, x: b(2 * n(a(x)).relu()),
    "a sum over space": lambda a, b, n, x: b(n(a(x)).relu().sum((2, 3), True)),
}
EXACT = {
    "a maximum": lambda a, b, n, x: b(F.max_pool2d(n(a(x)).relu(), 3, 2, 1)),
    "an average": lambda a, b, n, x: b(F.avg_pool2d(n(a(x)).relu(), 2)),
    "a global average": lambda a, b, n, x: b(n(a(x)).relu().mean((2, 3), True)),
    "repeated padding": lambda a, b, n, x: b(F.pad(n(a(x)).relu(), (1, 1, 1, 1), "replicate")),
    "nearest": lambda a, b, n, x: b(F.interpolate(n(a(x)).relu(), scale_factor=2)),
    "bilinear": lambda a, b, n, x: b(
        F.interpolate(n(a(x)).relu(), scale_factor=2, mode="bilinear")
    ),
}


def around(function) -> hs.Graph:
    whole = network(nn.ReLU(), kernel=1)
    return captured(Call(function, whole[0], whole[3], whole[1]))


@pytest.mark.parametrize("function", INEXACT.values(), ids=INEXACT)
def test_whatever_does_not_pass_the_constant_on_is_refused(function):
    new, report = absorb_bias(around(function))
    assert report.pairs == ()
    assert "an error of up to" in report.refused[0].reason
    del new


@pytest.mark.parametrize("function", EXACT.values(), ids=EXACT)
def test_whatever_passes_the_constant_on_is_exact(function):
    graph = around(function)
    data = [normal(16, *IMAGE, seed=seed) for seed in range(2)]
    new, report = absorb_bias(graph, data)
    assert len(report.pairs) == 1
    assert report.pairs[0].error == 0
    x = torch.cat(data)
    torch.testing.assert_close(outputs(new, x), outputs(graph, x), rtol=1e-5, atol=1e-5)


def test_a_transposed_convolution_is_refused():
    first = network(nn.ReLU())
    module = nn.Sequential(*first[:3], seeded(nn.ConvTranspose2d(6, 5, 3, stride=2)))
    assert "an error of up to" in absorb_bias(captured(module))[1].refused[0].reason


# Bounds and linear layers


def test_relu6_has_to_be_equalized_first():
    graph = captured(network(nn.ReLU6()))
    _, report = absorb_bias(graph)
    assert report.refused[0].reason.endswith("would have to move: run equalize first")


def test_caps_move_along():
    graph, _ = equalize(captured(network(nn.ReLU6())))
    data = [normal(16, *IMAGE, seed=seed) for seed in range(2)]
    new, report = absorb_bias(graph, data)
    assert report.pairs[0].absorbed.any()
    x = torch.cat(data)
    torch.testing.assert_close(outputs(new, x), outputs(graph, x), rtol=1e-5, atol=1e-5)


def test_a_linear_layer_behind_a_flatten():
    whole = network(nn.ReLU())
    module = Call(
        lambda a, n, fc, x: fc(n(a(x)).relu().flatten(1)), *whole[:2], seeded(nn.Linear(6 * 64, 3))
    )
    graph = captured(module)
    data = [normal(16, *IMAGE, seed=seed) for seed in range(2)]
    new, report = absorb_bias(graph, data)
    assert len(report.pairs) == 1
    x = torch.cat(data)
    torch.testing.assert_close(outputs(new, x), outputs(graph, x), rtol=1e-5, atol=1e-4)


def test_without_batch_norm_it_needs_data():
    module = seeded(nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 1)))
    _, report = absorb_bias(captured(module))
    assert report.refused[0].reason == "0 has no batch norm; give data"


def test_what_is_wrong_is_an_error():
    graph = captured(network(nn.ReLU()))
    with pytest.raises(PlanError, match=r"^borders: asked for refuse or accept, found 'ignore'"):
        absorb_bias(graph, borders="ignore")
    with pytest.raises(DataError, match=r"batch 0: asked for shape"):
        absorb_bias(graph, [normal(2, 4, 8, 6)])
