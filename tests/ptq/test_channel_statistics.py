"""What batch norms know: true where the values are normal, carried on through operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import halfstep as hs
from halfstep.graph.batchnorm import value_of
from halfstep.graph.slices import sliced
from halfstep.ptq.channel_statistics import channel_statistics
from halfstep.ptq.channels import Channels
from halfstep.ptq.equalize import equalize
from tests.models import Call, normal, seeded

IMAGE = (4, 6, 6)
BETA = torch.tensor([0.5, -1.0, 2.0, 0.1])
GAMMA = torch.tensor([1.0, -0.5, 1.5, 0.3])


def normalized(function, *parts: nn.Module) -> hs.Graph:
    """``function(y, *parts)`` of a batch norm's output, which is normal for normal inputs."""
    conv, norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(conv: nn.Module, norm: nn.Module, *rest: nn.Module) -> Tensor:
        *others, x = rest
        return function(norm(conv(x)), *others)

    module = seeded(Call(forward, conv, norm, *parts))
    with torch.no_grad():
        norm.weight.copy_(GAMMA)
        norm.bias.copy_(BETA)
        norm.running_mean.zero_()
        norm.running_var.copy_(conv.weight.square().sum((1, 2, 3)))
    return hs.capture(module, normal(2, *IMAGE))


def last(graph: hs.Graph) -> fx.Node:
    output = next(node for node in graph.module.graph.nodes if node.op == "output")
    return output.args[0][0]


def of_output(graph: hs.Graph, **options) -> Channels:
    return channel_statistics(graph, **options)[last(graph)]


def seen(graph: hs.Graph, samples: int = 3000) -> Tensor:
    """The output of many normal inputs, (channels, values)."""
    with torch.no_grad():
        out = graph.module(normal(samples, *IMAGE, seed=4))[0].double()
    return out.movedim(1, 0).flatten(1)


TRUE = {
    "a batch norm": lambda y: y,
    "relu": torch.relu,
    "relu6": F.relu6,
    "a clamp": lambda y: y.clamp(-0.2, 0.7),
    "open below": lambda y: y.clamp(max=0.5),
    "leaky relu": lambda y: F.leaky_relu(y, 0.3),
    "caps": lambda y: torch.minimum(y.relu(), torch.tensor([0.3, 1.0, 2.0, 9.0])[:, None, None]),
    "a bound alone": lambda y: torch.minimum(y, torch.tensor([0.3])),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "dropout": lambda y: F.dropout(y.relu(), 0.3, training=False),
    "plus a constant": lambda y: y + torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None],
    "minus": lambda y: 1.5 - y,
    "times a constant": lambda y: y.relu() * torch.tensor([1.0, -2.0, 3.0, 4.0])[:, None, None],
    "some channels": lambda y: y.relu()[:, 1:3],
    "some positions": lambda y: y.relu()[:, :, 1:3],
    "joined": lambda y: torch.cat([y.relu(), y.sigmoid()], 1),
    "nearest": lambda y: F.interpolate(y.relu(), scale_factor=2),
}


def assert_statistics(found: Channels, values: Tensor) -> None:
    """Law: mean and deviation to sampling error; nearly all values within the range."""
    error = values.std(1) / values.shape[1] ** 0.5
    for mine, theirs in ((found.mean, values.mean(1)), (found.deviation, values.std(1))):
        assert ((mine - theirs).abs() <= 10 * error + 1e-6).all()
    outside = (values < found.low[:, None] - 1e-4) | (values > found.high[:, None] + 1e-4)
    assert outside.double().mean() < 1e-6


@pytest.mark.parametrize("function", TRUE.values(), ids=TRUE)
def test_it_is_what_normal_inputs_show(function):
    graph = normalized(function)
    found = of_output(graph)
    assert_statistics(found, seen(graph))
    assert not found.estimated


def test_prelu_has_slopes_along_the_channels():
    slopes = nn.PReLU(4)
    graph = normalized(lambda y, prelu: prelu(y), slopes)
    assert_statistics(of_output(graph), seen(graph))


def test_statistics_that_are_nearly_right_are_rejected():
    graph = normalized(torch.relu)
    found, values = of_output(graph), seen(graph)
    assert_statistics(found, values)
    signed = Channels.normal(BETA.double(), GAMMA.double(), 6.0).clip(0.0, None)
    for wrong in (signed, of_output(normalized(lambda y: y)), of_output(graph, deviations=2.0)):
        with pytest.raises(AssertionError):
            assert_statistics(wrong, values)


def test_the_range_of_a_batch_norm_is_the_published_one():
    found = of_output(normalized(lambda y: y))
    torch.testing.assert_close(found.low.float(), BETA - 6 * GAMMA.abs())
    torch.testing.assert_close(found.high.float(), BETA + 6 * GAMMA.abs())
    behind = of_output(normalized(torch.relu))
    torch.testing.assert_close(behind.low.float(), torch.zeros(4))
    torch.testing.assert_close(behind.high.float(), BETA + 6 * GAMMA.abs())
    narrow = of_output(normalized(torch.relu), deviations=3.0)
    torch.testing.assert_close(narrow.high.float(), BETA + 3 * GAMMA.abs())


def test_a_flatten_repeats_each_channel():
    flat = of_output(normalized(lambda y: y.relu().flatten(1)))
    one = of_output(normalized(torch.relu))
    for mine, other in ((flat.mean, one.mean), (flat.deviation, one.deviation)):
        assert torch.equal(mine, other.repeat_interleave(36))


# Independence


def test_a_sum_of_independent_values():
    one, two = normalized(torch.relu), normalized(lambda y: y)
    found = of_output(one).plus(of_output(two), 6.0)
    values = seen(one) + seen(two).roll(1, 1)
    assert_statistics(found, values)
    assert found.estimated
    assert (found.low >= of_output(two).low).all(), "a ReLU adds nothing below"


def test_a_residual_is_a_sum():
    parts = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    graph = normalized(lambda y, conv, norm: y + norm(conv(y.relu())), *parts)
    known = channel_statistics(graph)
    means = [known[node].mean for node in graph.module.graph.nodes if "batchnorm" in node.meta]
    torch.testing.assert_close(of_output(graph).mean, means[0] + means[1])
    assert of_output(graph).estimated


def test_a_product_of_independent_values():
    one, two = normalized(torch.relu), normalized(torch.sigmoid)
    found = of_output(one).times(of_output(two))
    assert_statistics(found, seen(one) * seen(two).roll(1, 1))
    assert found.estimated


def test_a_layer_without_batch_norm_has_an_exact_mean():
    graph = normalized(lambda y, conv: conv(y.relu()), nn.Conv2d(4, 6, 1))
    found, values = of_output(graph), seen(graph)
    assert found.estimated
    assert (found.mean - values.mean(1)).abs().max() < 0.02
    assert (values < found.low[:, None]).sum() + (values > found.high[:, None]).sum() == 0


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_and_grouped_layers_have_the_mean_of_a_constant(groups: int):
    conv = nn.ConvTranspose2d(4, 8, 1, groups=groups)
    graph = normalized(lambda y, conv: conv(y.relu()), conv)
    assert (of_output(graph).mean - seen(graph).mean(1)).abs().max() < 0.02


# Positions


def test_pooling_keeps_the_mean_and_bounds_the_range():
    for pool in (lambda y: F.avg_pool2d(y.relu(), 2), lambda y: y.relu().mean((2, 3))):
        graph = normalized(pool)
        found, values = of_output(graph), seen(graph)
        assert (found.mean - values.mean(1)).abs().max() < 0.02
        assert (values <= found.high[:, None]).all()
        assert (found.deviation >= values.std(1)).all()


def test_padding_widens_the_range_to_zero():
    graph = normalized(lambda y: F.pad(y.clamp(min=0.5), (1, 1)))
    assert (of_output(graph).low == 0).all()


def test_channels_of_zeros_are_known():
    """The shortcut of the first ResNets: every second position, and zeros for new channels."""
    graph = normalized(lambda y: F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)))
    found, values = of_output(graph), seen(graph)
    assert len(found.mean) == 7
    assert_statistics(found, values)
    for end in (found.low, found.high):
        assert end[[0, 5, 6]].tolist() == [0, 0, 0]
    assert (found.low[1:5] < 0).all()


# What is not known


UNKNOWN = {
    "a softmax": lambda y: y.softmax(1),
    "a matrix product": lambda y: y @ y,
    "a mean over channels": lambda y: y.mean(1, keepdim=True),
    "channels on another axis": lambda y: y.permute(0, 2, 3, 1),
    "channels in groups": lambda y: y.reshape(-1, 2, 2 * 36),
    "a sum over batch norms of unknown": lambda y: y.relu() + y.softmax(1),
    "a concatenation in space": lambda y: torch.cat([y, y], 2),
    "padding with ones": lambda y: F.pad(y, (1, 1), value=1.0),
    "a layer norm": lambda y: F.layer_norm(y, y.shape[1:]),
}


@pytest.mark.parametrize("function", UNKNOWN.values(), ids=UNKNOWN)
def test_nothing_is_said_of_what_is_not_known(function):
    graph = normalized(function)
    assert last(graph) not in channel_statistics(graph)


def test_inputs_are_normal_within_the_given_range():
    graph = normalized(torch.relu)
    source = next(node for node in graph.module.graph.nodes if node.op == "placeholder")
    found = channel_statistics(graph, input_range=(-2.0, 3.0))[source]
    assert (found.mean == 0).all()
    assert (found.deviation == 1).all()
    assert (found.low.unique().tolist(), found.high.unique().tolist()) == ([-2], [3])


def test_equalized_statistics_are_those_of_the_equalized_graph():
    graph = normalized(lambda y, conv: conv(F.relu6(y)), nn.Conv2d(4, 3, 1))
    after, _ = equalize(graph)
    (caps,) = [n for n in after.module.graph.nodes if n.target == torch.ops.aten.minimum.default]
    found = channel_statistics(after)[caps]
    inputs = [node for node in after.module.graph.nodes if node.op == "placeholder"]
    with torch.no_grad():
        values = sliced(after.module, inputs, (caps,))(normal(3000, *IMAGE, seed=4))[0]
    values = values.double().movedim(1, 0).flatten(1)
    scale = found.high[:, None]
    scaled = Channels(
        *(v / found.high for v in (found.mean, found.deviation, found.low, found.high))
    )
    assert_statistics(scaled, values / scale)
    bound = value_of(after.module, caps.args[1]).flatten().double()
    assert (found.high <= bound).all()
