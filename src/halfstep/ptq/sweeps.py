"""The scales of equalized layers while they are swept; see ``equalize.py`` for the equations."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from halfstep.graph.batchnorm import value_of
from halfstep.graph.capture import Graph
from halfstep.graph.edit import set_value
from halfstep.graph.ops import describe
from halfstep.ptq.blocks import along_inputs, along_outputs, blocks
from halfstep.ptq.channel_statistics import channel_statistics
from halfstep.ptq.channels import Channels
from halfstep.ptq.pairs import Pair


class Sweeper:
    """Scales of layers on both sides while they are swept; the weights are changed at the end.

    Attributes:
        graph: whose layers are equalized.
        pairs: in order of execution.
        sides: for each layer, what its outputs and its inputs are multiplied by.
    """

    def __init__(self, graph: Graph, pairs: Sequence[Pair], headroom: float | None = None) -> None:
        self.graph = graph
        self.pairs = pairs
        self.headroom = headroom
        layers = dict.fromkeys(node for pair in pairs for node in (pair.head, pair.tail))
        self.sides = {node: Sides(graph, node) for node in layers}
        statistics = channel_statistics(graph) if headroom is not None else {}
        self._activations = {
            pair.head: _largest(statistics.get(pair.steps[-1].node if pair.steps else pair.head))
            for pair in pairs
        }

    def ranges(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """``r1`` and ``r2``, (channels,)."""
        second = self.sides[pair.tail].input_ranges()
        return self.sides[pair.head].output_ranges(), second.reshape(-1, pair.repeat).amax(1)

    def scales(self, pair: Pair) -> Tensor:
        """What the values between the two layers are divided by, (channels,)."""
        return 1 / self.sides[pair.head].outputs

    def update(self, pair: Pair) -> float:
        """Equalize one pair; ``max |log s|`` of this step."""
        first, second = self.ranges(pair)
        alive = (first > 0) & (second > 0)
        step = torch.where(alive, torch.sqrt(first / second), 1.0)
        old = self.scales(pair)
        step = torch.maximum(step, self._least(pair, old * step) / old)
        self.sides[pair.head].outputs /= step
        self.sides[pair.tail].inputs *= step.repeat_interleave(pair.repeat)
        return float(step.log().abs().max())

    def _least(self, pair: Pair, scales: Tensor) -> Tensor:
        """The smallest scales that the headroom leaves, given those that are wanted."""
        activation = self._activations[pair.head]
        if self.headroom is None or activation is None:
            return torch.zeros_like(scales)
        activation = activation[:: pair.repeat]
        usual = (activation / scales).median()
        return activation / (self.headroom * usual) if usual > 0 else torch.zeros_like(scales)

    def held(self, pair: Pair) -> Tensor:
        """Whether the headroom keeps a scale from getting smaller, (channels,)."""
        scales = self.scales(pair)
        return self._least(pair, scales) >= scales * (1 - 1e-9)

    def write(self) -> None:
        """Put weights, biases and statistics into the graph, each rounded once."""
        for sides in self.sides.values():
            sides.write()


class Sides:
    """One layer: its largest weights, and what its outputs and inputs are multiplied by."""

    def __init__(self, graph: Graph, node: fx.Node) -> None:
        self.module, self.node = graph.module, node
        info = describe(node)
        assert info.weight is not None, "a pair is made of layers"
        self.weight = info.weight
        parts = blocks(info.kind, info.attrs, value_of(self.module, info.weight).detach())
        self.largest = parts.abs().flatten(3).amax(3).double()
        groups, outputs, inputs = self.largest.shape
        self.outputs = torch.ones(groups * outputs).to(self.largest)
        self.inputs = torch.ones(groups * inputs).to(self.largest)

    def output_ranges(self) -> Tensor:
        """``max |W_i|`` of each output channel, (O,)."""
        scaled = self.largest * along_inputs(self.inputs, self.largest)
        return scaled.amax(2).flatten() * self.outputs

    def input_ranges(self) -> Tensor:
        """``max |W_:i|`` of each input channel, (I,)."""
        scaled = self.largest * along_outputs(self.outputs, self.largest)
        return scaled.amax(1).flatten() * self.inputs

    def write(self) -> None:
        """Multiply the parameters and the statistics of the layer."""
        info = describe(self.node)
        weight = value_of(self.module, self.weight).detach().double()
        parts = blocks(info.kind, info.attrs, weight)
        parts.mul_(along_outputs(self.outputs, parts)).mul_(along_inputs(self.inputs, parts))
        set_value(self.module, self.weight, weight)
        if info.bias is not None:
            bias = value_of(self.module, info.bias).detach().double()
            set_value(self.module, info.bias, bias * self.outputs)
        if "batchnorm" in self.node.meta:
            gamma, beta = self.node.meta["batchnorm"]
            factor = self.outputs.float()
            self.node.meta["batchnorm"] = (
                factor if gamma is None else gamma.detach() * factor,
                torch.zeros_like(factor) if beta is None else beta.detach() * factor,
            )


def _largest(statistics: Channels | None) -> Tensor | None:
    """The largest absolute value of each channel, as far as it is known."""
    if statistics is None:
        return None
    return torch.maximum(statistics.low.abs(), statistics.high.abs())
