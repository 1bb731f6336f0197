"""Calibrated models that the tests of the search share."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import halfstep as hs
from tests.models import Residual, normal, seeded

CLASSES = 5


class Branching(nn.Module):
    """A network with everything that makes sites differ from layers.

    Values that several operations read, grids that copies tie together, an addition, a product of
    two activations, a softmax whose grid the kernel dictates, and a shared weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 1)
        self.right = nn.Conv2d(4, 4, 1)
        self.norm = nn.LayerNorm(8)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)."""
        x = self.stem(x).relu()
        x = torch.cat([self.left(x), self.right(x) + x], dim=1)
        tokens = x.flatten(2).transpose(1, 2)
        weights = torch.softmax(tokens @ tokens.transpose(1, 2), dim=-1)
        mixed = self.norm(weights @ tokens).mean(dim=1)
        result: Tensor = self.head(self.twice(self.twice(mixed).relu()))
        return result


def batches(
    n_batches: int = 2, samples: int = 6, labelled: bool = True, size: int = 6
) -> list[tuple[Tensor, ...]]:
    """Images of ``size`` squared, with or without labels, the same each time."""
    found: list[tuple[Tensor, ...]] = []
    for seed in range(n_batches):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, CLASSES, (samples,), generator=generator)
        images = normal(samples, 3, size, size, seed=seed)
        found.append((images, labels) if labelled else (images,))
    return found


@cache
def captured(network: str) -> hs.Graph:
    """The graph of "residual" or "branching": captured once, and never changed."""
    model = {"residual": Residual, "branching": Branching}[network]()
    return hs.capture(seeded(model), normal(2, 3, 6, 6))


def prepared(network: str = "residual", **choices: Any) -> hs.QuantizedModel:
    """A model with quantizers, not calibrated."""
    graph = captured(network)
    return hs.prepare(graph, hs.make_plan(graph, **choices))


def calibrated(network: str = "residual", **choices: Any) -> hs.QuantizedModel:
    """A model that was calibrated on ``batches()``."""
    quantized = prepared(network, **choices)
    hs.calibrate(quantized, batches())
    return quantized


def snapshot(model: hs.QuantizedModel) -> dict[str, tuple[bool, str, dict[str, Tensor]]]:
    """Everything about the quantizers of ``model`` that a method might leave changed."""
    return {
        q.site: (q.enabled, str(q.spec), {k: v.clone() for k, v in q.state_dict().items()})
        for q in model.quantizers()
    }


def assert_unchanged(
    model: hs.QuantizedModel, before: dict[str, tuple[bool, str, dict[str, Tensor]]]
) -> None:
    """``model`` is as it was when ``before`` was taken."""
    after = snapshot(model)
    assert after.keys() == before.keys()
    for site, (enabled, spec, values) in before.items():
        assert after[site][:2] == (enabled, spec), site
        for name, value in values.items():
            assert torch.equal(after[site][2][name], value), (site, name)
