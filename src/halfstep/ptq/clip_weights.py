"""Clipping of weights at a level, for networks whose channels cannot be equalized.

Reference: Nagel et al. 2019 (arXiv 1906.04721), section 5.1.1 and table 5 ("Clip @ 15"): a few
channels of a folded weight are so large that one scale leaves nothing for the others; cutting
every weight at ``+-level`` loses the few, and bias correction repairs the shift that this makes.
The paper's level of 15 is for MobileNetV2; symbols: ``level``.

Deviations: none. Correct the biases afterwards: ``correct_bias`` measures the error of a weight
against the graph that it is given as ``reference``.
"""

from dataclasses import dataclass

from halfstep.errors import PlanError
from halfstep.graph.batchnorm import value_of
from halfstep.graph.capture import Graph
from halfstep.graph.edit import copied, layer_names, set_value, weighted_nodes
from halfstep.graph.ops import describe


@dataclass(frozen=True)
class ClippedLayer:
    """One layer: how many of its weights were clipped, and how large the largest had been."""

    layer: str
    clipped: int
    weights: int
    largest: float

    def __str__(self) -> str:
        share = f"{self.clipped} of {self.weights} weights"
        return f"{self.layer}: {share}, the largest was {self.largest:.3g}"


@dataclass(frozen=True)
class ClipReport:
    """What was clipped, in order of execution; layers within the level are not listed."""

    level: float
    layers: tuple[ClippedLayer, ...]

    def __str__(self) -> str:
        head = f"{len(self.layers)} layers clipped at {self.level:g}"
        return "\n".join([head, *(f"  {layer}" for layer in self.layers)])


def clip_weights(graph: Graph, level: float = 15.0) -> tuple[Graph, ClipReport]:
    """Cut every weight of a convolution or linear layer at ``+-level``.

    Args:
        graph: from ``capture``; left as it is.
        level: in units of the weights with the batch norms folded, positive.

    Raises:
        PlanError: ``level`` is not positive.
    """
    if not level > 0:
        raise PlanError(f"level: asked for a positive number, found {level}")
    new = copied(graph)
    names = layer_names(new)
    layers = []
    for node in weighted_nodes(new):
        source = describe(node).weight
        assert source is not None, "a weighted node"
        weight = value_of(new.module, source).detach()
        beyond = int((weight.abs() > level).sum())
        if beyond:
            largest = float(weight.abs().max())
            set_value(new.module, source, weight.clamp(-level, level))
            layers.append(ClippedLayer(names[node], beyond, weight.numel(), largest))
    return new, ClipReport(level, tuple(layers))
