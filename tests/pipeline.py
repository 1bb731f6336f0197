"""From a module to a program and its file, on random data: what most tests start from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import halfstep as hs
from tests.models import normal, seeded

Arrays = list[NDArray[Any]]
# (samples, seed) -> inputs
Inputs = Callable[[int, int], tuple[Tensor, ...]]


def normal_inputs(*shapes: tuple[int, ...]) -> Inputs:
    """Normally distributed inputs of these shapes, without the batch."""
    return lambda n, seed: tuple(
        normal(n, *shape, seed=100 * seed + i) for i, shape in enumerate(shapes)
    )


def arrays(inputs: Sequence[Tensor]) -> Arrays:
    """What the engine and the runtimes take."""
    return [value.numpy() for value in inputs]


@dataclass(frozen=True, eq=False)
class Lowered:
    """A module, and everything that was made from it."""

    module: nn.Module
    plan: hs.Plan
    quantized: hs.QuantizedModel
    program: hs.IntProgram
    inputs: Inputs

    @property
    def graph(self) -> hs.Graph:
        """What was captured."""
        return self.quantized.graph

    def export(self, folder: Path) -> Path:
        """Write the model for ONNX Runtime."""
        path = folder / "model.onnx"
        hs.export(self.program, path)
        return path

    def samples(self, n_batches: int = 2) -> list[tuple[NDArray[Any], ...]]:
        """Batches that were not seen before, of another size than the example's."""
        return [tuple(arrays(self.inputs(3, 50 + i))) for i in range(n_batches)]

    def prove(self, folder: Path, **how: Any) -> hs.Verdict:
        """Export and verify."""
        return hs.verify(self.program, self.export(folder), self.samples(), **how)


def lowered(
    module: nn.Module,
    inputs: Inputs,
    *,
    graph: hs.Graph | None = None,
    target: str = "onnxruntime",
    edit: Callable[[hs.Plan], hs.Plan] = lambda plan: plan,
    redraw: bool = True,
    **choices: Any,
) -> Lowered:
    """Capture, plan, calibrate on random data and lower.

    Args:
        module: any module that can be captured.
        inputs: draws the data.
        graph: of ``module``, if it was captured before.
        target: a name in the catalog.
        edit: changes the plan.
        redraw: give the module random parameters first.
        **choices: of ``make_plan``.
    """
    if graph is None:
        module = seeded(module) if redraw else module
        graph = hs.capture(module, inputs(2, 0))
    plan = edit(hs.make_plan(graph, target, **choices))
    quantized = hs.prepare(graph, plan)
    hs.calibrate(quantized, [inputs(8, seed) for seed in (1, 2, 3)])
    return Lowered(module, plan, quantized, hs.lower(quantized), inputs)


def kept_codes(program: hs.IntProgram, inputs: Arrays, backend: str) -> dict[str, NDArray[Any]]:
    """The codes of every site, and the outputs by name."""
    run = hs.Engine(program, backend).run(inputs, keep=program.sites)
    return {**run.kept, **dict(zip(program.outputs, run.outputs, strict=True))}


def assert_backends_agree(program: hs.IntProgram, inputs: Arrays) -> None:
    """Numpy, the reference, and torch give the same codes and outputs."""
    mine, other = (kept_codes(program, inputs, backend) for backend in ("numpy", "torch"))
    assert mine.keys() == other.keys()
    for name, codes in mine.items():
        np.testing.assert_array_equal(codes, other[name], name)


def real_outputs(model: nn.Module, inputs: Sequence[Tensor]) -> Arrays:
    """The outputs of a module as arrays."""
    with torch.no_grad():
        outputs = model(*inputs)
    return [out.numpy() for out in (outputs if isinstance(outputs, tuple | list) else [outputs])]
