"""The simulation is the engine: every output equals that of the numpy reference, bit for bit."""

import numpy as np
import torch
from torch import nn

import halfstep as hs


class TwoHeads(nn.Module):
    """(N, 3, 8, 8) -> a dict of (N, 4, 4, 4) and (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.linear = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = torch.relu(self.conv(x))
        return {"features": features, "logits": self.linear(features.flatten(1))}


def quantized() -> tuple[hs.QuantizedModel, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    graph = hs.capture(TwoHeads().eval(), x)
    model = hs.prepare(graph, hs.make_plan(graph))
    hs.calibrate(model, [x])
    return model, x


def test_it_gives_the_outputs_of_the_reference_in_the_structure_of_the_model() -> None:
    model, x = quantized()
    found = hs.simulate(model)(x)
    assert list(found) == ["features", "logits"]
    reference = hs.Engine(hs.lower(model), "numpy").run([x.numpy()])
    for output, expected in zip(found.values(), reference.outputs, strict=True):
        np.testing.assert_array_equal(output.numpy(), expected)


def test_it_keeps_the_program_that_it_was_made_from() -> None:
    model, x = quantized()
    simulation = hs.simulate(model)
    before = simulation(x)["logits"]
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(0.5)
    assert torch.equal(simulation(x)["logits"], before)
    assert not torch.equal(hs.simulate(model)(x)["logits"], before)
