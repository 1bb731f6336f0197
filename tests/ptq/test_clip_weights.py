"""Weights cut at a level, and nothing else."""

import pytest
import torch
from torch import nn

import halfstep as hs
from halfstep.errors import PlanError
from halfstep.graph.batchnorm import value_of
from halfstep.graph.edit import weighted_nodes
from halfstep.graph.ops import describe
from halfstep.ptq.clip_weights import clip_weights
from tests.models import normal, seeded


def network() -> hs.Graph:
    module = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1)))
    with torch.no_grad():
        module[0].weight[0, 0, 0] = torch.tensor([20.0, -30.0, 15.0])
    return hs.capture(module, normal(2, 3, 6, 6))


def test_only_what_is_beyond_the_level_changes():
    graph = network()
    new, report = clip_weights(graph)
    (layer,) = report.layers
    assert (layer.clipped, layer.weights, layer.largest) == (2, 4 * 27, 30.0)
    for before, after in zip(weighted_nodes(graph), weighted_nodes(new), strict=True):
        old, found = (
            value_of(g.module, describe(n).weight) for g, n in ((graph, before), (new, after))
        )
        assert torch.equal(found, old.clamp(-15, 15))
    assert str(report) == (
        f"1 layers clipped at 15\n  {layer.layer}: 2 of 108 weights, the largest was 30"
    )


def test_within_the_level_nothing_changes():
    graph = network()
    new, report = clip_weights(graph, 100)
    assert report.layers == ()
    x = normal(2, 3, 6, 6)
    assert torch.equal(new.module(x)[0], graph.module(x)[0])


def test_a_level_is_positive():
    with pytest.raises(PlanError, match=r"^level: asked for a positive number, found 0"):
        clip_weights(network(), 0)
