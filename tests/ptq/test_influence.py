"""How much the output depends on each value: derivatives, signs, and what does not count."""

import pytest
import torch
from torch import nn

import halfstep as hs
from halfstep.errors import DataError
from halfstep.ptq.influence import influences
from tests.encoders import TOKENS, Encoder, sentences
from tests.models import Call, normal, seeded


def nodes_of(graph: hs.Graph, kind: str) -> list[torch.fx.Node]:
    return [node for node in graph.module.graph.nodes if node.name.startswith(kind)]


def test_one_output_is_its_squared_derivative() -> None:
    """With one output there is nothing random: r is a sign, and its square is 1."""
    module = seeded(Call(lambda a, b, x: b(a(x).tanh()), nn.Linear(5, 4), nn.Linear(4, 1)))
    x = normal(6, 5)
    graph = hs.capture(module, x)
    (tanh,) = nodes_of(graph, "tanh")
    ((size, found),) = influences(graph.module, graph, [tanh], [x])
    assert size == 6
    weight = module.part[1].weight.detach()
    with torch.no_grad():
        wanted = (weight / module(x).abs()).square()
        value = module.part[0](x).tanh()
    torch.testing.assert_close(found[tanh].weight, wanted)
    torch.testing.assert_close(found[tanh].value, value)


def test_the_mean_over_signs_is_the_diagonal_of_gauss_newton() -> None:
    module = seeded(Call(lambda a, b, x: b(a(x).tanh()), nn.Linear(5, 4), nn.Linear(4, 3)))
    x = normal(1, 5)
    graph = hs.capture(module, x)
    (tanh,) = nodes_of(graph, "tanh")
    runs = [x] * 400
    weights = [found[tanh].weight for _, found in influences(graph.module, graph, [tanh], runs)]
    with torch.no_grad():
        norm = module(x).norm()
    wanted = (module.part[1].weight.detach() / norm).square().sum(0)
    torch.testing.assert_close(torch.cat(weights).mean(0), wanted, rtol=0.15, atol=0)


def test_what_a_mask_hides_has_exactly_none() -> None:
    graph = hs.capture(Encoder(), sentences(2))
    norms = nodes_of(graph, "layer_norm")
    ids, mask = sentences(8, 1)
    ((_, found),) = influences(graph.module, graph, norms, [(ids, mask)])
    hidden = mask == 0
    assert hidden.any() and len(found) == len(norms)
    for influence in found.values():
        assert influence.weight.shape[:2] == (8, TOKENS)
        assert not influence.weight[hidden].any()
        assert influence.weight[~hidden].amax(-1).min() > 0


def test_nothing_of_the_model_gets_a_gradient_and_nothing_changes() -> None:
    graph = hs.capture(Encoder(), sentences(2))
    before = {name: value.clone() for name, value in graph.module.state_dict().items()}
    list(influences(graph.module, graph, nodes_of(graph, "linear"), [sentences(4, 1)]))
    assert all(parameter.grad is None for parameter in graph.module.parameters())
    for name, value in graph.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_same_seed_gives_the_same_weights() -> None:
    graph = hs.capture(Encoder(), sentences(2))
    nodes = nodes_of(graph, "gelu")
    first, second, other = (
        [found[nodes[0]].weight for _, found in influences(
            graph.module, graph, nodes, [sentences(4, 1)] * 2, seed=seed)]
        for seed in (3, 3, 4)
    )  # fmt: skip
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_integers_are_left_out() -> None:
    graph = hs.capture(Encoder(), sentences(2))
    ids = next(node for node in graph.module.graph.nodes if node.op == "placeholder")
    ((_, found),) = influences(graph.module, graph, [ids], [sentences(2, 1)])
    assert not found


def test_data_that_does_not_fit_is_refused() -> None:
    graph = hs.capture(Encoder(), sentences(2))
    with pytest.raises(DataError, match="ids:in: batch 0: asked for shape"):
        list(influences(graph.module, graph, [], [tuple(v[:, 1:] for v in sentences(2))]))
    with pytest.raises(DataError, match="the data has no batch"):
        list(influences(graph.module, graph, [], []))
