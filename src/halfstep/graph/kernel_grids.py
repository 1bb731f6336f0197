"""What kernels ask of grids: one for all that they copy, a dictated one, zero point 0."""

from collections.abc import Mapping
from dataclasses import replace

from halfstep.core.execution import Execution
from halfstep.core.spec import QuantSpec
from halfstep.core.target import OpRule, Target
from halfstep.graph.match import Units
from halfstep.graph.placement import QUANTIZED, data_values
from halfstep.graph.plan import Plan


def shared_grids(
    units: Units, executions: Mapping[str, Execution], target: Target
) -> dict[str, tuple[str, ...]]:
    """For each operation with one grid, the sites of the values that it reads and makes."""
    return {
        unit.name: tuple(units.sites[node] for node in data_values(unit))
        for unit in units.units
        if executions[unit.name] is not Execution.FLOAT
        and (executions[unit.name] is Execution.COPY or target.rules[unit.kind].one_grid)
    }


def wanted_by_kernels(
    units: Units, target: Target, specs: Mapping[str, QuantSpec], how: Mapping[str, Execution]
) -> dict[str, QuantSpec]:
    """The specs of the sites whose grids kernels dictate, or want to be symmetric."""
    groups = Plan(target.name, {}, shared_grids(units, how, target), {}, how).groups
    group_of = {site: group for group in groups for site in group}
    dictated = _fixed_outputs(units, target, specs, how, group_of)
    return dictated | _symmetric_operands(units, target, {**specs, **dictated}, how, group_of)


def _fixed_outputs(
    units: Units,
    target: Target,
    specs: Mapping[str, QuantSpec],
    how: Mapping[str, Execution],
    group_of: Mapping[str, tuple[str, ...]],
) -> dict[str, QuantSpec]:
    """Sites whose grid the kernel dictates, and the copies of their codes."""
    fixed = {}
    for unit in units.units:
        rule = target.rules.get(unit.kind)
        if rule is None or rule.output_calibrator is None or how[unit.name] not in QUANTIZED:
            continue
        group = group_of.get(unit.out, (unit.out,))
        if rule.table is not None and _others_made(units, target, how, group, rule):
            continue  # what has a table can look it up on any grid, and leaves others theirs
        for site in group:
            fixed[site] = replace(specs[site], calibrator=rule.output_calibrator)
    return fixed


def _symmetric_operands(
    units: Units,
    target: Target,
    specs: Mapping[str, QuantSpec],
    how: Mapping[str, Execution],
    group_of: Mapping[str, tuple[str, ...]],
) -> dict[str, QuantSpec]:
    """Second operands that a better kernel takes with zero point 0, and the copies of their codes.

    Where another kernel dictates the grid of one of them, it stays.
    """
    symmetric: dict[str, QuantSpec] = {}
    for unit in units.units:
        if how[unit.name] not in QUANTIZED or target.rules[unit.kind].symmetric_formula is None:
            continue
        read = units.sites[unit.inputs[1]]
        group = group_of.get(read, (read,))
        if all(specs[site].qtype.signed and not specs[site].dictated for site in group):
            symmetric |= {site: replace(specs[site], symmetric=True) for site in group}
    return symmetric


def _others_made(
    units: Units,
    target: Target,
    how: Mapping[str, Execution],
    group: tuple[str, ...],
    rule: OpRule,
) -> bool:
    """Whether a group has values that a kernel with this rule's grid did not make."""
    copied = {u.out for u in units.units if how[u.name] is Execution.COPY}
    alike = {
        u.out
        for u in units.units
        if u.kind in target.rules
        and target.rules[u.kind].output_calibrator == rule.output_calibrator
    }
    return not set(group) <= copied | alike
