"""What methods that round weights report, and which layers none of them can round."""

from dataclasses import dataclass

from halfstep.graph.insert import QuantizedModel
from halfstep.graph.match import Unit


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


def refusal(model: QuantizedModel, unit: Unit, done: dict[str, str]) -> str:
    """Why a layer keeps nearest rounding, or ""; ``done`` notes who rounds a shared weight."""
    assert unit.weight is not None
    weight = str(unit.weight.target)
    if unit.kind == "conv_transpose":
        return "a transposed convolution has no inputs of its own for each output"
    if model.plan.specs[model.units.sites[unit.weight]].group_size is not None:
        return "its scales are of groups of input channels"
    if weight in done:
        return f"it shares its weight with {done[weight]}, rounded before"
    done[weight] = unit.name
    return ""
