"""Random small networks as data: drawn by hypothesis, printed, read back and built.

A network is a list of steps over numbered values: its inputs come first, then what each step makes.
``repr(network)`` is an expression that makes it again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz.layers import LAYERS, Shape

PARAMETERS = ("normal", "powers", "large_bias", "dead", "constant", "zero")
GRIDS = ("found", "ties", "equal", "ends", "ratios", "mixed")
DATA = ("normal", "ties", "extreme", "constant")


@dataclass(frozen=True)
class Step:
    """One step: its kind, the numbers of the values that it reads, and its options."""

    kind: str
    reads: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Step({self.kind!r}, {self.reads!r}, {dict(self.options)!r})"


@dataclass(frozen=True)
class Network:
    """A network, how it is quantized, and on what it is compared.

    Attributes:
        inputs: shapes without the batch; those of indices start with "words".
        steps: in order of execution; the last value is the output.
        also: a second output, or ``None``.
        parameters: how weights and biases are drawn.
        grids: how scales and zero points are.
        data: how samples are drawn.
        weight_bits: of all weights.
        activation_bits: of all activations, where a target takes them; 8 elsewhere.
        per_channel: one scale an output channel of the weights.
        seed: of everything that is drawn.
    """

    inputs: tuple[Any, ...]
    steps: tuple[Step, ...]
    also: int | None = None
    parameters: str = "normal"
    grids: str = "found"
    data: str = "normal"
    weight_bits: int = 8
    activation_bits: int = 8
    per_channel: bool = True
    seed: int = 0

    def module(self) -> nn.Module:
        """The network in eval mode, with its parameters."""
        made = (_OneInput, _TwoInputs)[len(self.inputs) - 1](self)
        _fill(made, self.parameters, torch.Generator().manual_seed(self.seed))
        return made.eval()

    def example(self, n: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
        """Normally distributed inputs, or indices."""
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        found = []
        for shape in self.inputs:
            if shape[0] == "words":
                found.append(torch.randint(0, shape[1], (n, *shape[2:]), generator=generator))
            else:
                found.append(torch.randn((n, *shape), generator=generator))
        return tuple(found)


def result_shape(step: Step, shapes: list[Shape]) -> Shape:
    """The shape of what a step makes, without the batch."""
    if step.kind == "embedding":
        return (*shapes[0], step.options["columns"])
    with torch.device("meta"), torch.no_grad():
        layer = LAYERS[step.kind](shapes, **step.options).eval()
        out = layer(*(torch.empty((2, *shape)) for shape in shapes))
    return tuple(out.shape[1:])


def input_shape(shape: tuple[Any, ...]) -> Shape:
    """The shape of an input, without the mark and the number of words."""
    return shape[2:] if shape[0] == "words" else shape


class _Built(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.plan = network.steps
        self.also = network.also
        shapes = [input_shape(shape) for shape in network.inputs]
        self.steps = nn.ModuleList()
        for step in network.steps:
            read = [shapes[index] for index in step.reads]
            self.steps.append(LAYERS[step.kind](read, **step.options))
            shapes.append(result_shape(step, read))

    def _run(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for step, layer in zip(self.plan, self.steps, strict=True):
            values.append(layer(*(values[index] for index in step.reads)))
        return values[-1] if self.also is None else (values[self.also], values[-1])


class _OneInput(_Built):
    def forward(self, x: Tensor) -> Any:
        return self._run(x)


class _TwoInputs(_Built):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self._run(x, y)


def _fill(module: nn.Module, how: str, generator: torch.Generator) -> None:
    """Draw every parameter and statistic, those of layers with weights as ``how`` says."""
    with torch.no_grad():
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if not value.is_floating_point():
                continue
            value.normal_(0, 0.3, generator=generator)
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
            elif name.endswith("bias"):
                value.mul_({"large_bias": 300.0, "zero": 0.0}.get(how, 1.0))
            elif name.endswith("weight") and how == "powers":
                value.copy_(value.sign() * torch.exp2(value.abs().log2().round()))
            elif name.endswith("weight") and how == "dead":
                value[::2] *= 1e-9
            elif how in ("constant", "zero"):
                value.fill_(0.25 if how == "constant" else 0.0)
