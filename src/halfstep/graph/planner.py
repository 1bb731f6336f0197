"""Plan a graph: every operation by the rules of the target, every site with a spec."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace

from halfstep.catalog import find
from halfstep.choices import check_types
from halfstep.core.execution import BATCH, Execution
from halfstep.core.qtype import QType
from halfstep.core.spec import QuantSpec
from halfstep.core.target import Target
from halfstep.errors import PlanError
from halfstep.graph.capture import Graph
from halfstep.graph.eager import written_at
from halfstep.graph.kernel_grids import shared_grids, wanted_by_kernels
from halfstep.graph.match import MASK_REASON, Unit, Units, find_units
from halfstep.graph.placement import (
    WEIGHTED,
    data_values,
    is_weighted,
    quantized_values,
)
from halfstep.graph.plan import Plan, check_spec
from halfstep.graph.readers import shape_of

_OVER_BATCH = (
    "it sums over the samples of a batch, whose number is not known; axis 0 of the inputs is the "
    "batch (batch_first=True in torch's own layers)"
)


def make_plan(  # noqa: PLR0913 (one parameter a choice)
    graph: Graph,
    target: str = "onnxruntime",
    *,
    weights: str | None = None,
    activations: str | None = None,
    per_channel: bool = True,
    calibrator: str = "mse",
    weight_calibrator: str = "minmax",
    first_last: str | None = None,
    pow2: bool = False,
    group_size: int | None = None,
    elementwise: str | None = None,
) -> Plan:
    """Plan every site of ``graph`` by the rules of ``target``.

    Args:
        graph: from ``capture``.
        target: a name in the catalog.
        weights: their type, such as ``"int4"``; the target's own if ``None``.
        activations: their type; the target's own if ``None``.
        per_channel: one scale an output channel of each weight.
        calibrator: how ranges of activations are found.
        weight_calibrator: how ranges of weights are found.
        first_last: the type of the weights of the first and the last conv or linear, and the bits
            of what these two read and the last one gives; ``None`` treats them like all others.
        pow2: every scale is a power of two.
        group_size: one scale for so many inputs of an output channel of each weight. A weight
            with no more inputs, and that of a transposed convolution, has one scale a channel.
        elementwise: the type of activations that no conv, linear or matmul reads, such as the
            addends of an addition; that of all activations if ``None``. Products of few bits do
            not need their sums to be as coarse.

    Raises:
        PlanError: a value of a wrong type; the target does not take it, or cannot run integers.
        UnknownNameError: a name that is not in the catalog.
    """
    check_types(locals(), inspect.signature(make_plan).parameters)
    table: Target = find("target", target)
    for name in (calibrator, weight_calibrator):
        find("calibrator", name)
    activation = _activation(table, activations).with_(pow2=pow2, calibrator=calibrator)
    weight = QuantSpec(
        _type(weights, table.weight), symmetric=True, pow2=pow2, calibrator=weight_calibrator
    )
    units = find_units(graph.module, table.fused_activations)
    executions = {unit.name: _execution(unit, table) for unit in units.units}
    how = {name: execution for name, (execution, _) in executions.items()}
    floats = {name: reason for name, (_, reason) in executions.items() if reason}
    specs = {units.sites[node]: activation for node in quantized_values(units, how)}
    if elementwise is not None:
        wide = replace(activation, qtype=QType.parse(elementwise))
        specs |= dict.fromkeys(_not_multiplied(units, how, table), wide)
    specs |= _weight_specs(units, how, weight, per_channel, group_size)
    specs |= wanted_by_kernels(units, table, specs, how)
    for site, spec in specs.items():
        check_spec(table, site, spec, spec.axis)
    plan = Plan(target, specs, shared_grids(units, how, table), floats, how)
    _refuse_islands(table, plan, units)
    return plan if first_last is None else _with_ends(plan, units, QType.parse(first_last))


def _activation(target: Target, name: str | None) -> QuantSpec:
    qtype = _type(name, target.activation)
    return QuantSpec(qtype, symmetric=target.symmetric_activations and qtype.signed)


def _type(name: str | None, default: QType) -> QType:
    return QType.parse(name) if name else default


def _not_multiplied(units: Units, how: Mapping[str, Execution], target: Target) -> list[str]:
    """Sites of activations that no conv, linear or matmul reads, nor a copy of their codes."""
    groups = Plan("", {}, shared_grids(units, how, target), {}, how).groups
    multiplied = {
        units.sites[node]
        for unit in units.units
        if unit.kind in WEIGHTED or unit.kind == "matmul"
        for node in unit.inputs
    }
    multiplied |= {site for group in groups if multiplied & set(group) for site in group}
    return [
        units.sites[node]
        for node in quantized_values(units, how)
        if units.sites[node] not in multiplied
    ]


def _weight_specs(
    units: Units,
    how: Mapping[str, Execution],
    spec: QuantSpec,
    per_channel: bool,
    group_size: int | None,
) -> dict[str, QuantSpec]:
    if group_size is not None and not per_channel:
        raise PlanError(
            f"group_size={group_size} with per_channel=False: groups divide the inputs of an "
            "output channel; leave out one of the two"
        )
    specs = {}
    for unit in units.units:
        if unit.weight is None or not is_weighted(unit, how):
            continue
        axis = WEIGHTED[unit.kind] if per_channel else None
        n_inputs = math.prod(shape_of(unit.weight)[1:])
        grouped = group_size is not None and axis == 0 and group_size < n_inputs
        specs[units.sites[unit.weight]] = replace(
            spec, axis=axis, group_size=group_size if grouped else None
        )
    return specs


def _execution(unit: Unit, target: Target) -> tuple[Execution, str]:
    """How a unit runs, and why not on an integer kernel."""
    rule = target.rules.get(unit.kind)
    if rule is None:
        known = "::" not in unit.kind
        missing = (
            f"target '{target.name}' has no rule for {unit.kind}"
            if known
            else f"{unit.kind} is not in the op table, and no program can hold it"
        )
        return Execution.FLOAT, MASK_REASON if unit.head.meta.get("mask") else missing
    refusal = _nature(unit) or rule.refuses(unit.facts)
    return (Execution.FLOAT, refusal) if refusal else (rule.execution, rule.reason)


def _nature(unit: Unit) -> str:
    """Why no target computes a unit on codes; empty if some may."""
    if unit.head.meta.get("mask"):
        return MASK_REASON
    if unit.kind in WEIGHTED and (unit.weight is None or unit.weight.op != "get_attr"):
        return "its weight is computed, not a parameter"
    if not all(n.meta["val"].is_floating_point() for n in data_values(unit)):
        return "it computes on integers, not on real values"
    if unit.kind == "matmul" and shape_of(unit.inputs[0])[-1] == BATCH:
        return _OVER_BATCH
    return ""


def _with_ends(plan: Plan, units: Units, qtype: QType) -> Plan:
    """The plan with another type for the first and the last weight, and as many bits around."""
    weighted = [unit for unit in units.units if is_weighted(unit, plan.executions)]
    if not weighted:
        return plan
    first, last = weighted[0], weighted[-1]
    for unit in (first, last):
        assert unit.weight is not None
        plan = plan.edit(units.sites[unit.weight], qtype=qtype)
    for node in (first.inputs[0], last.inputs[0], last.tail):
        site = units.sites[node]
        plan = plan.edit(site, qtype=QType(qtype.bits, plan.specs[site].qtype.signed))
    return plan


def _refuse_islands(target: Target, plan: Plan, units: Units) -> None:
    if target.integer_only and plan.floats:
        nodes = {unit.name: unit.head for unit in units.units}
        listed = "; ".join(
            f"{name}{written_at(nodes[name])}: {reason}" for name, reason in plan.floats.items()
        )
        raise PlanError(
            f"target '{target.name}' runs integers only, but {listed}. Change them in the model, "
            "capture a part without them (capture(..., only=...)), or take a target that leaves "
            "them in float, such as 'onnxruntime'"
        )
