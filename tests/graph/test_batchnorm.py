"""Batch norms are folded in front, or become a product and a sum; the function stays."""

import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import CaptureError
from tests.models import Call, Residual, normal, seeded

aten = torch.ops.aten


class Shared(nn.Module):
    """One convolution, two batch norms behind its one output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.left = nn.BatchNorm2d(4)
        self.right = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.left(x) - self.right(x)


class CalledTwice(Shared):
    """One convolution that is called twice, each time with another batch norm behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.conv(x)) - self.right(self.conv(x + 1.0))


def captured(model: nn.Module, shape: tuple[int, ...]) -> hs.Graph:
    """The graph, after it was compared with the model on other data."""
    graph = hs.capture(model, normal(2, *shape))
    x = normal(5, *shape, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(graph.module(x)[0], model(x), rtol=2e-5, atol=2e-5)
    assert aten.batch_norm.default not in targets_of(graph)
    return graph


def targets_of(graph: hs.Graph) -> list[object]:
    return [n.target for n in graph.module.graph.nodes if n.op == "call_function"]


FOLDED = {
    "conv1d": ((nn.Conv1d(3, 4, 3, padding=1, bias=False), nn.BatchNorm1d(4)), (3, 8)),
    "conv1d same": ((nn.Conv1d(3, 4, 3, padding="same"), nn.BatchNorm1d(4)), (3, 8)),
    "conv2d": ((nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), (3, 6, 6)),
    "conv2d same": ((nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4)), (3, 6, 6)),
    "with bias": ((nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4)), (3, 6, 6)),
    "grouped": ((nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)), (4, 6, 6)),
    "depthwise": ((nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4)), (4, 6, 6)),
    "linear": ((nn.Linear(6, 4), nn.BatchNorm1d(4)), (6,)),
    "no affine": ((nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), (3, 6, 6)),
    "large eps": ((nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.5)), (3, 6, 6)),
}


@pytest.mark.parametrize("case", FOLDED.values(), ids=FOLDED)
def test_it_is_folded(case):
    parts, shape = case
    graph = captured(seeded(nn.Sequential(*parts)), shape)
    assert len(targets_of(graph)) == 1, "nothing is left but the operation in front"


def test_gamma_may_be_negative():
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-1.5, 0.7, -0.01, 0.0]))
    graph = captured(model, (3, 6, 6))
    assert targets_of(graph) == [aten.conv2d.default, aten.relu.default]


def test_the_folded_weight_is_the_published_one():
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    graph = captured(model, (3, 6, 6))
    conv, norm = model
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    parameters = dict(graph.module.named_parameters())
    assert len(parameters) == 2, "the parameters before folding are gone"
    weight, bias = sorted(parameters.values(), key=lambda value: -value.ndim)
    torch.testing.assert_close(weight.detach(), conv.weight.detach() * scale[:, None, None, None])
    expected = norm.bias + (conv.bias - norm.running_mean) * scale
    torch.testing.assert_close(bias.detach(), expected.detach())


def test_the_statistics_stay_with_the_node():
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    graph = captured(model, (3, 6, 6))
    (node,) = [n for n in graph.module.graph.nodes if "batchnorm" in n.meta]
    gamma, beta = node.meta["batchnorm"]
    assert torch.equal(gamma, model[1].weight)
    assert torch.equal(beta, model[1].bias)


STANDALONE = {
    "first": (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), (3, 6, 6)),
    "behind a relu": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), (3, 6, 6)),
    "1d": (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), (3, 6)),
    "features": (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), (3,)),
}


@pytest.mark.parametrize("case", STANDALONE.values(), ids=STANDALONE)
def test_alone_it_is_a_product_and_a_sum(case):
    model, shape = case
    targets = targets_of(captured(seeded(model), shape))
    assert targets.count(aten.mul.Tensor) == targets.count(aten.add.Tensor) == 1


def test_linear_on_tokens_keeps_its_batch_norm_on_axis_one():
    model = seeded(Call(lambda fc, bn, x: bn(fc(x)), nn.Linear(6, 5), nn.BatchNorm1d(4)))
    captured(model, (4, 6))


def test_a_linear_on_as_many_tokens_as_features_keeps_its_batch_norm_on_axis_one():
    model = seeded(Call(lambda fc, bn, x: bn(fc(x)), nn.Linear(6, 4), nn.BatchNorm1d(4)))
    captured(model, (4, 6))


def test_two_batch_norms_behind_one_output_are_not_folded():
    targets = targets_of(captured(seeded(Shared()), (3, 6, 6)))
    assert targets.count(aten.mul.Tensor) == targets.count(aten.add.Tensor) == 2


def test_a_convolution_that_is_called_twice_gets_two_weights():
    graph = captured(seeded(CalledTwice()), (3, 6, 6))
    convs = [n for n in graph.module.graph.nodes if n.target == aten.conv2d.default]
    assert len({conv.args[1] for conv in convs}) == 2
    assert aten.mul.Tensor not in targets_of(graph)


def test_the_residual_model_has_none_left():
    captured(seeded(Residual()), (3, 8, 8))


def test_a_batch_norm_without_statistics_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    text = r"^batch_norm: a batch norm without running statistics makes each sample depend on the"
    with pytest.raises(CaptureError, match=text):
        hs.capture(model, normal(4, 3, 5, 5))
