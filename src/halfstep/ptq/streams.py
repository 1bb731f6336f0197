"""The float and the quantized model side by side, one layer after the other, in bounded memory.

Reconstruction methods fix a layer on the inputs that it will really get: those that the layers in
front of it, quantized already, make ("asymmetric reconstruction", Nagel et al. 2020, arXiv
2004.10568, equation 25). Running both models from the start for every layer costs time that grows
with the square of the depth; keeping every value costs memory. Here the values of one cut of the
graph are kept at a time (``graph.slices``), and the layers behind it are computed from them: the
float values as they are, the quantized ones as their codes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from halfstep.core.grid import Affine
from halfstep.data import batches
from halfstep.errors import CalibrationError
from halfstep.graph.insert import QuantizedModel, check_batch
from halfstep.graph.match import Unit
from halfstep.graph.slices import Segment, segments, sliced
from halfstep.progress import Progress, silent
from halfstep.ptq.importance import importance

Values = tuple[Tensor, ...]
LIVE_BYTES = 256 << 20
"""How much of the two models' values is kept at a time, unless the inputs alone are more."""

BYTES_A_VALUE = 5  # a float32 of the float model, and a code of the quantized one


@dataclass(frozen=True, eq=False)
class Layer:
    """A unit, with what it gets in the float and in the quantized model.

    Attributes:
        unit: the unit.
        source: where its inputs come from.
        importance: for each batch, how much the positions of a sequence count (``ptq.importance``),
            (N, *positions); ``None`` if all count alike.
    """

    unit: Unit
    source: "Streams"
    importance: Sequence[Tensor] | None = None

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
        self._calls = model.calls()
        given: list[Values] = []
        for index, (inputs, _) in enumerate(batches(data, model.graph.inputs, torch.as_tensor)):
            check_batch(model.graph, inputs, index)
            given.append(inputs)
        self.samples = sum(len(inputs[0]) for inputs in given)
        largest = live_bytes / BYTES_A_VALUE / self.samples
        self._segments = segments(model.units, model.graph.module.graph, largest)
        self._importance = importance(model, given)
        self._live: tuple[fx.Node, ...] = self._segments[0].live
        self._float: list[Values] = given
        raw = tuple(self._by_name[node.name] for node in self._live)
        self._codes: list[Values] = list(given)
        self._grids: tuple[Affine | None, ...] = (None,) * len(raw)
        self._requantize(raw, self._live)

    def layers(self, units: Sequence[Unit] | None = None) -> Iterator[Layer]:
        """The given units, in order of execution; ``None`` for all with a quantized weight."""
        asked = self.model.weighted_units() if units is None else units
        return (self._at(unit) for unit in self.progress(asked, "layers"))

    def values(self, node: fx.Node, *, rounded: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch, the value of a node behind the cut in both models.

        ``rounded`` is whether the quantizer behind the node, if there is one, has seen it.
        """
        mine = sliced(self.model.graph.module, self._live, (node,))
        theirs = self._by_name[node.name]
        if rounded:
            # Other readers may take the value as it is, where a float operation made it.
            theirs = next((user for user in theirs.users if user in self._calls), theirs)
        other = sliced(self.model.module, self.quantized(self._live), (theirs,))
        with torch.inference_mode():
            for exact, codes in zip(self._float, self._codes, strict=True):
                yield mine(*exact)[0], other(*self._dequantized(codes))[0]

    def quantized(self, nodes: tuple[fx.Node, ...]) -> tuple[fx.Node, ...]:
        """The nodes of the quantized graph that hold the values of ``nodes``, on their grids."""
        return tuple(self._behind_quantizer(self._by_name[node.name]) for node in nodes)

    def _at(self, unit: Unit) -> Layer:
        index = self.model.units.units.index(unit)
        segment = next(s for s in self._segments if s.first <= index < s.stop)
        self._advance(segment)
        return Layer(unit, self, self._importance.get(unit.name))

    def _advance(self, segment: Segment) -> None:
        """Move the cut to the beginning of ``segment``."""
        if segment.live == self._live:
            return
        mine = sliced(self.model.graph.module, self._live, segment.live)
        self._requantize(self.quantized(self._live), segment.live)
        with torch.inference_mode():
            for index, exact in enumerate(self._float):
                self._float[index] = mine(*exact)
        self._live = segment.live

    def _requantize(self, start: tuple[fx.Node, ...], live: tuple[fx.Node, ...]) -> None:
        """Run the quantized model from the nodes ``start``, whose values are kept, to ``live``."""
        theirs = self.quantized(live)
        run = sliced(self.model.module, start, theirs)
        grids = tuple(self._grid(node) for node in theirs)
        with torch.inference_mode():
            for index, codes in enumerate(self._codes):
                real = run(*self._dequantized(codes))
                self._codes[index] = tuple(map(_coded, real, grids))
        self._grids = grids

    def _behind_quantizer(self, node: fx.Node) -> fx.Node:
        users = list(node.users)
        return users[0] if len(users) == 1 and users[0] in self._calls else node

    def _grid(self, node: fx.Node) -> Affine | None:
        quantizer = self._calls.get(node)
        if quantizer is None:
            return None
        if not quantizer.enabled:
            raise CalibrationError(f"{quantizer.site}: its quantizer is off; turn it on first")
        return quantizer.grid()

    def _dequantized(self, values: Values) -> Values:
        return tuple(map(_real, values, self._grids))


def _coded(real: Tensor, grid: Affine | None) -> Tensor:
    """The codes of a value that is on a grid; any other value as it is."""
    if grid is None:
        return real
    steps = torch.round(real / float(grid.scale)) + float(grid.zero_point)
    return steps.to(getattr(torch, grid.qtype.storage.name))


def _real(codes: Tensor, grid: Affine | None) -> Tensor:
    if grid is None:
        return codes
    return (codes.float() - float(grid.zero_point)) * float(grid.scale)
