"""How much of a model runs, or would run, on integer kernels: in multiply-accumulates."""

from halfstep.catalog import find
from halfstep.core.execution import Execution
from halfstep.graph.capture import Graph
from halfstep.graph.match import find_units
from halfstep.graph.plan import Plan
from halfstep.verdict import NO_MACS


def planned_coverage(graph: Graph, plan: Plan) -> str:
    """The share of multiply-accumulates that ``plan`` puts on integer kernels."""
    units = find_units(graph.module, find("target", plan.target).fused_activations).units
    total = sum(unit.macs for unit in units)
    kernels = (Execution.INTEGER, Execution.SCALED)
    integer = sum(u.macs for u in units if plan.executions[u.name] in kernels)
    return coverage_text(integer / total if total else None)


def coverage_text(share: float | None) -> str:
    """A planned share for people; ``None`` where nothing multiplies and accumulates."""
    return NO_MACS if share is None else f"{share:.2%} planned"
