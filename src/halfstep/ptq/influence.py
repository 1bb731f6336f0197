"""How much the output of a model depends on each of the values inside, sample by sample.

For an output ``y`` and a value ``x`` of the graph, the expected squared change of the output when
small independent errors ``e_i`` are added to ``x`` is, to first order,

    E |dy|^2 = sum over i of h_i e_i^2,     h_i = sum over k of (dy_k / dx_i)^2

with ``h`` the diagonal of the Gauss-Newton matrix. It is estimated without bias by one backward
pass, ``h_i ~ (d(r.y) / dx_i)^2`` with random signs ``r`` (Hutchinson). The outputs are divided by
the norm of their sample first: an error then counts as a share of the output.

A value that the output does not depend on, such as the activations of a padded token behind a
mask, has an influence of exactly zero.

Reference: the weights are those of the "Hessian guided metric" of PTQ4ViT (Yuan et al. 2022, arXiv
2111.12293, section 3.2), and of BRECQ (Li et al. 2021, arXiv 2102.05426, equation 10). Deviation:
both square the gradient of the task's loss, which needs a loss; here it is any output that counts.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from halfstep.data import batches
from halfstep.graph.capture import Graph
from halfstep.graph.insert import check_batch
from halfstep.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class Influence:
    """The values of one node on one batch, and how much the output depends on them.

    Attributes:
        value: what the node made.
        weight: for each element the squared derivative, in the shape of ``value``.
    """

    value: Tensor
    weight: Tensor


def influences(
    module: fx.GraphModule,
    graph: Graph,
    nodes: Collection[fx.Node],
    data: Iterable[Any],
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Iterator[tuple[int, Mapping[fx.Node, Influence]]]:
    """For each batch its size, and the influence of each of ``nodes`` that has float values.

    Nothing is kept from one batch to the next. A batch takes the memory of a training step
    without gradients of parameters.

    Args:
        module: what is run: the module of ``graph``, or that of a quantized model.
        graph: for the names and shapes of the inputs.
        nodes: nodes of ``module``.
        data: batches, with or without labels.
        seed: of the random signs.
        progress: wraps the batches.
    """
    generator = torch.Generator().manual_seed(seed)
    prepared = batches(data, graph.inputs, torch.as_tensor)
    for index, (inputs, _) in enumerate(progress(prepared, "influence")):
        check_batch(graph, inputs, index)
        run = _Run(module, nodes)
        with torch.enable_grad():
            outputs = run.run(*inputs)
            projected = _projected(outputs, generator)
        kept = run.kept
        if projected.requires_grad:
            projected.backward()  # type: ignore[no-untyped-call]
        found = {node: Influence(value.detach(), _square(value)) for node, value in kept.items()}
        yield len(inputs[0]), found


class _Run(fx.Interpreter):
    """Runs a graph whose parameters are constants, and keeps the values of some nodes."""

    def __init__(self, module: fx.GraphModule, nodes: Collection[fx.Node]) -> None:
        super().__init__(module)
        self.nodes = frozenset(nodes)
        self.kept: dict[fx.Node, Tensor] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A parameter, without a gradient of its own."""
        return super().get_attr(target, args, kwargs).detach()

    def run_node(self, n: fx.Node) -> Any:
        """As ever; a value that is asked for begins to carry a gradient here."""
        value = super().run_node(n)
        if n in self.nodes and isinstance(value, Tensor) and value.is_floating_point():
            value = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
            value.retain_grad()
            self.kept[n] = value
        return value


def _projected(outputs: Any, generator: torch.Generator) -> Tensor:
    """The outputs, each sample divided by its norm, times random signs."""
    total = torch.zeros(())
    for output in outputs if isinstance(outputs, tuple | list) else (outputs,):
        if not output.is_floating_point():
            continue
        flat = output.reshape(len(output), -1)
        norm = flat.detach().norm(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
        signs = torch.randint(0, 2, flat.shape, generator=generator).to(flat) * 2 - 1
        total = total + (flat * (signs / norm)).sum()
    return total


def _square(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad.square()
