"""Rounding layer by layer: the walk, the layers that cannot be rounded, and the report."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from halfstep.graph.insert import QuantizedModel
from halfstep.graph.match import Unit
from halfstep.progress import Progress
from halfstep.ptq.streams import Layer, Streams


@dataclass(frozen=True)
class RoundedLayer:
    """What became of one layer.

    Attributes:
        name: of the unit.
        nearest: squared error of the output with nearest rounding on the calibrated grid, relative
            to the variance of the output.
        error: the same after the codes were chosen.
    """

    name: str
    nearest: float
    error: float


@dataclass(frozen=True)
class RoundingReport:
    """All layers in order, and those that were left as they were, with the reason."""

    layers: tuple[RoundedLayer, ...]
    skipped: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} layers rounded, {len(self.skipped)} left to nearest rounding"]
        lines += [
            f"  {layer.name}: relative error {layer.nearest:.3g} -> {layer.error:.3g}"
            for layer in self.layers
        ]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.skipped])


def layer_by_layer(
    model: QuantizedModel,
    data: Iterable[Any],
    fit: Callable[[Layer, int], RoundedLayer | str],
    progress: Progress,
) -> RoundingReport:
    """Let ``fit`` change one weighted layer after the other, each on what the last one makes.

    Args:
        model: calibrated.
        data: samples without labels; read once.
        fit: changes a layer in place, given the number of samples; a text says why it did not.
        progress: wraps the layers.
    """
    streams = Streams(model, data, progress=progress)
    done: dict[str, str] = {}
    layers, skipped = [], []
    for layer in streams.layers():
        found = _refusal(model, layer.unit, done) or fit(layer, streams.samples)
        if isinstance(found, str):
            skipped.append((layer.unit.name, found))
        else:
            layers.append(found)
    return RoundingReport(tuple(layers), tuple(skipped))


def _refusal(model: QuantizedModel, unit: Unit, done: dict[str, str]) -> str:
    """Why a layer keeps nearest rounding, or ""; ``done`` notes who rounds a shared weight."""
    assert unit.weight is not None
    weight = str(unit.weight.target)
    if unit.kind == "conv_transpose":
        return "a transposed convolution has no inputs of its own for each output"
    if model.plan.specs[model.weight_site(unit)].group_size is not None:
        return "its scales are of groups of input channels"
    if weight in done:
        return f"it shares its weight with {done[weight]}, rounded before"
    done[weight] = unit.name
    return ""
