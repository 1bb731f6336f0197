"""Which values hold codes: those that a quantized operation reads or makes, and their copies."""

from collections.abc import Mapping

from torch import fx

from halfstep.core.execution import Execution
from halfstep.graph.match import Unit, Units

# Operations with a constant weight, and its axis of output channels.
WEIGHTED = {"conv": 0, "conv_transpose": 1, "linear": 0}
QUANTIZED = (Execution.INTEGER, Execution.SCALED, Execution.DEQUANTIZED)


def data_values(unit: Unit) -> tuple[fx.Node, ...]:
    """Inputs and output that hold real values; an embedding's indices do not."""
    inputs = unit.inputs[:1] if unit.kind == "embedding" else unit.inputs
    return (*inputs, unit.tail)


def is_weighted(unit: Unit, executions: Mapping[str, Execution]) -> bool:
    """Whether a unit has a quantized weight."""
    return unit.kind in WEIGHTED and unit.weight is not None and executions[unit.name] in QUANTIZED


def quantized_values(units: Units, executions: Mapping[str, Execution]) -> tuple[fx.Node, ...]:
    """The nodes whose values hold codes, in order of execution.

    A quantized operation reads and makes codes, but for one whose sums are scaled to real values;
    a copy has codes on all sides or on none. A constant that only float operations read stays
    float.
    """
    found: set[fx.Node] = set()
    for unit in units.units:
        how = executions[unit.name]
        if how in QUANTIZED:
            real_sums = how is Execution.SCALED
            found |= set(data_values(unit)[:-1] if real_sums else data_values(unit))
    copies = [unit for unit in units.units if executions[unit.name] is Execution.COPY]
    grown = True
    while grown:
        before = len(found)
        for unit in (*copies, *reversed(copies)):
            values = set(data_values(unit))
            if values & found:
                found |= values
        grown = len(found) > before
    return tuple(node for node in units.sites if node in found)
