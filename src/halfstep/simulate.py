"""A quantized model as an ``nn.Module`` that computes what the target will: the integer program.

The fake-quantized model is differentiable, and its float32 sums are close to what a runtime
computes, not equal. This one runs the program on the torch engine, so that accuracy measured on it
is the accuracy of the artifact.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from halfstep.graph.insert import QuantizedModel
from halfstep.lower import lower
from halfstep.program.engine import Engine


class Simulation(nn.Module):
    """Takes and gives what the model does, without gradients.

    The program is lowered once: a model that is trained or calibrated further needs a new one.
    """

    def __init__(self, model: QuantizedModel, device: str = "cpu") -> None:
        super().__init__()
        self.graph = model.graph
        self.engine = Engine(lower(model), f"torch:{device}")

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Exact outputs in the model's own structure, on the CPU."""
        given = self.graph.in_order(args, kwargs)
        run = self.engine.run([value.detach().cpu().numpy() for value in given])
        return tree_unflatten([torch.from_numpy(o) for o in run.outputs], self.graph.output_spec)


def simulate(model: QuantizedModel, device: str = "cpu") -> Simulation:
    """The exact simulation of a calibrated model.

    Args:
        model: from ``prepare`` and ``calibrate``, or ``Result.model``.
        device: where the engine computes: "cpu" or "cuda".

    Raises:
        HalfstepError: as ``lower`` does.

    Example:
        top1 = accuracy(halfstep.simulate(result.model), loader)
    """
    return Simulation(model, device).eval()
