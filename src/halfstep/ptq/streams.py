"""The float and the quantized model side by side, one layer after the other, in bounded memory.

Reconstruction methods fix a layer on the inputs that it will really get: those that the layers in
front of it, quantized already, make ("asymmetric reconstruction", Nagel et al. 2020, arXiv
2004.10568, equation 25). Running both models from the start for every layer costs time that grows
with the square of the depth; keeping every value costs memory. Here the values of one cut of the
graph are kept at a time (``graph.slices``), and the layers behind it are computed from them: the
float values as they are, the quantized ones as their codes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from halfstep.data import batches
from halfstep.errors import CalibrationError
from halfstep.graph.insert import QuantizedModel, check_batch
from halfstep.graph.match import Unit
from halfstep.graph.placement import is_weighted
from halfstep.graph.slices import Segment, segments, sliced
from halfstep.progress import Progress, silent
from halfstep.quant.quantizer import Quantizer

Values = tuple[Tensor, ...]
LIVE_BYTES = 256 << 20
"""How much of the two models' values is kept at a time, unless the inputs alone are more."""

BYTES_A_VALUE = 5  # a float32 of the float model, and a code of the quantized one


@dataclass(frozen=True, eq=False)
class Layer:
    """A weighted unit, with what it gets in the float and in the quantized model.

    Attributes:
        unit: the unit.
        source: where its inputs come from.
    """

    unit: Unit
    source: "Streams"

    def inputs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch, the input in the float and in the quantized model as it is now."""
        return self.source.values(self.unit.inputs[0])

    def outputs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch, what it gives in both models, in front of activation and quantizer."""
        return self.source.values(self.unit.head, rounded=False)


class Streams:
    """Walks a calibrated model; what is changed in a layer is seen by all layers behind it.

    Args:
        model: calibrated; its quantizers are on.
        data: batches to run; read once, kept as far as ``live_bytes`` allows.
        live_bytes: how much to keep of the values at a cut.
        progress: wraps the layers.
    """

    def __init__(
        self,
        model: QuantizedModel,
        data: Iterable[Any],
        *,
        live_bytes: float = LIVE_BYTES,
        progress: Progress = silent,
    ) -> None:
        self.model = model
        self.progress = progress
        self._by_name = {node.name: node for node in model.module.graph.nodes}
        given: list[Values] = []
        for index, (inputs, _) in enumerate(batches(data, model.graph.inputs, torch.as_tensor)):
            check_batch(model.graph, inputs, index)
            given.append(inputs)
        self.samples = sum(len(inputs[0]) for inputs in given)
        largest = live_bytes / BYTES_A_VALUE / self.samples
        self._segments = segments(model.units, model.graph.module.graph, largest)
        self._live: tuple[fx.Node, ...] = self._segments[0].live
        self._float: list[Values] = given
        self._codes: list[Values] = []
        self._quantize_inputs()

    def layers(self) -> Iterator[Layer]:
        """Every unit with a quantized weight, in order of execution."""
        executions = self.model.plan.executions
        weighted = [unit for unit in self.model.units.units if is_weighted(unit, executions)]
        return (self._at(unit) for unit in self.progress(weighted, "layers"))

    def blocks(self) -> Iterator[tuple[Segment, tuple[fx.Node, ...]]]:
        """Every segment with the values that it hands on; all units of it can be changed."""
        outputs = next(node for node in self.model.graph.module.graph.nodes if node.op == "output")
        for index, segment in enumerate(self.progress(self._segments, "blocks")):
            self._advance(segment)
            last = index + 1 == len(self._segments)
            ends = outputs.all_input_nodes if last else self._segments[index + 1].live
            yield segment, tuple(ends)

    def values(self, node: fx.Node, *, rounded: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch, the value of a node behind the cut in both models.

        ``rounded`` is whether the quantizer behind the node, if there is one, has seen it.
        """
        mine = sliced(self.model.graph.module, self._live, (node,))
        theirs = self.quantized((node,)) if rounded else (self._by_name[node.name],)
        other = sliced(self.model.module, self.quantized(self._live), theirs)
        with torch.inference_mode():
            for exact, codes in zip(self._float, self._codes, strict=True):
                yield mine(*exact)[0], other(*self._dequantized(codes))[0]

    def live(self) -> Iterator[tuple[Values, Values]]:
        """For each batch, the values at the cut in both models."""
        for exact, codes in zip(self._float, self._codes, strict=True):
            yield exact, self._dequantized(codes)

    def quantized(self, nodes: tuple[fx.Node, ...]) -> tuple[fx.Node, ...]:
        """The nodes of the quantized graph that hold the values of ``nodes``, on their grids."""
        return tuple(self._behind_quantizer(self._by_name[node.name]) for node in nodes)

    def _at(self, unit: Unit) -> Layer:
        index = self.model.units.units.index(unit)
        segment = next(s for s in self._segments if s.first <= index < s.stop)
        self._advance(segment)
        return Layer(unit, self)

    def _advance(self, segment: Segment) -> None:
        """Move the cut to the beginning of ``segment``."""
        if segment.live == self._live:
            return
        mine = sliced(self.model.graph.module, self._live, segment.live)
        theirs = self.quantized(segment.live)
        other = sliced(self.model.module, self.quantized(self._live), theirs)
        with torch.inference_mode():
            for index, exact in enumerate(self._float):
                real = other(*self._dequantized(self._codes[index]))
                self._float[index] = mine(*exact)
                self._codes[index] = self._coded(theirs, real)
        self._live = segment.live

    def _quantize_inputs(self) -> None:
        theirs = self.quantized(self._live)
        raw = tuple(self._by_name[node.name] for node in self._live)
        run = sliced(self.model.module, raw, theirs)
        with torch.inference_mode():
            self._codes = [self._coded(theirs, run(*inputs)) for inputs in self._float]

    def _behind_quantizer(self, node: fx.Node) -> fx.Node:
        users = list(node.users)
        if len(users) == 1 and self._quantizer(users[0]) is not None:
            return users[0]
        return node

    def _quantizer(self, node: fx.Node) -> Quantizer | None:
        if node.op != "call_module":
            return None
        found = self.model.module.get_submodule(str(node.target))
        return found if isinstance(found, Quantizer) else None

    def _coded(self, nodes: tuple[fx.Node, ...], values: Values) -> Values:
        """Codes of the values that are on a grid; the others as they are."""
        return tuple(
            value if quantizer is None else _codes(value, quantizer)
            for value, quantizer in zip(values, map(self._quantizer, nodes), strict=True)
        )

    def _dequantized(self, values: Values) -> Values:
        nodes = self.quantized(self._live)
        return tuple(
            value if quantizer is None else _real(value, quantizer)
            for value, quantizer in zip(values, map(self._quantizer, nodes), strict=True)
        )


def _codes(real: Tensor, quantizer: Quantizer) -> Tensor:
    if not quantizer.enabled:
        raise CalibrationError(f"{quantizer.site}: its quantizer is off; turn it on first")
    grid = quantizer.grid()
    steps = torch.round(real / float(grid.scale)) + float(grid.zero_point)
    return steps.to(getattr(torch, grid.qtype.storage.name))


def _real(codes: Tensor, quantizer: Quantizer) -> Tensor:
    grid = quantizer.grid()
    return (codes.float() - float(grid.zero_point)) * float(grid.scale)
