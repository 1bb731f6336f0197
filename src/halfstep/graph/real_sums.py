"""Where a kernel's sums can stay real: no code is rounded between a product and float operations.

An integer kernel adds up exact sums, and rounds them to codes for the next one. Where only float
operations read them (a layer norm, a softmax behind a mask, an activation function), that rounding
serves nobody: the code would be turned into a real value again. ``Execution.SCALED`` leaves it out.
"""

from collections.abc import Collection

from halfstep.catalog import find
from halfstep.core.execution import Execution
from halfstep.core.target import Target
from halfstep.graph.capture import Graph
from halfstep.graph.match import find_units
from halfstep.graph.placement import quantized_values
from halfstep.graph.plan import Plan

FLOAT_ELEMENTWISE = "it multiplies and adds nothing up: in float its operands are not rounded"


def leave_sums_real(graph: Graph, plan: Plan) -> Plan:
    """A plan whose products leave real values wherever no operation on codes reads them.

    Those with a fused activation stay as they are: the runtime would run both in float.
    """
    target: Target = find("target", plan.target)
    units = find_units(graph.module, target.fused_activations)
    able = [
        unit
        for unit in units.units
        if plan.executions[unit.name] is Execution.INTEGER
        and target.rules[unit.kind].scaled is not None
        and unit.limits == (None, None)
        and (unit.weight is None or plan.specs[units.sites[unit.weight]].group_size is None)
    ]
    wanted = {unit.name: Execution.SCALED for unit in able}
    codes = set(quantized_values(units, {**plan.executions, **wanted}))
    for unit in able:
        if unit.tail not in codes:
            plan = plan.leave_real(unit.name)
    return plan


def keep_elementwise_float(graph: Graph, plan: Plan, kinds: Collection[str] | None = None) -> Plan:
    """A plan in which only products run on codes, and what moves these codes.

    Args:
        graph: of the plan.
        plan: from ``make_plan``.
        kinds: the operations that stay float; all without multiply-accumulates if ``None``.
    """
    target: Target = find("target", plan.target)
    for unit in find_units(graph.module, target.fused_activations).units:
        how = plan.executions[unit.name]
        chosen = unit.kind in kinds if kinds is not None else not unit.macs
        if chosen and how in (Execution.INTEGER, Execution.DEQUANTIZED):
            plan = plan.keep_float(unit.name, FLOAT_ELEMENTWISE)
    return plan
