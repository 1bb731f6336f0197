"""What to do with every site of a graph, as data: printed, edited, compared, saved, never hidden."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from halfstep.catalog import find
from halfstep.core.execution import Execution
from halfstep.core.qtype import QType
from halfstep.core.spec import QuantSpec
from halfstep.core.target import Target
from halfstep.errors import PlanError, unknown_name
from halfstep.graph.capture import Graph
from halfstep.graph.match import MASK_REASON, Unit, Units, find_units
from halfstep.graph.placement import QUANTIZED, WEIGHTED, data_values, is_weighted, quantized_values


@dataclass(frozen=True, eq=False)
class Plan:
    """The specs of all sites, the sites that share one grid, and the operations left in float.

    Attributes:
        target: the name of the target.
        specs: what is wanted of each site that may be quantized.
        copies: for each operation that may copy codes, the sites that it ties together.
        floats: for each operation that stays float, the reason.
        executions: for each operation, how it runs.
    """

    target: str
    specs: Mapping[str, QuantSpec]
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    floats: Mapping[str, str] = field(default_factory=dict)
    executions: Mapping[str, Execution] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("specs", "copies", "floats", "executions"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        for group in self.groups:
            found = {str(self.specs[site]) for site in group if site in self.specs}
            if len(found) > 1:
                raise PlanError(f"{group[0]}: sites that share codes have specs {sorted(found)}")

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Sites that share one grid, because codes are copied between them."""
        group_of: dict[str, tuple[str, ...]] = {}
        for name, sites in self.copies.items():
            if self.executions[name] is not Execution.COPY:
                continue
            members = (member for site in sites for member in group_of.get(site, (site,)))
            joined = tuple(dict.fromkeys(members))
            group_of |= dict.fromkeys(joined, joined)
        return tuple(dict.fromkeys(group_of.values()))

    def edit(self, pattern: str, **changes: Any) -> "Plan":
        """A plan in which every site that matches the glob has other fields in its spec.

        A site that shares its grid takes the other sites of its group along.

        Raises:
            PlanError: the target does not accept the new spec.
            UnknownNameError: no site matches.
        """
        matched = {site for site in self.specs if fnmatchcase(site, pattern)}
        if not matched:
            raise unknown_name("site", pattern, self.specs)
        for group in self.groups:
            matched |= set(group) & self.specs.keys() if matched & set(group) else set()
        specs = dict(self.specs)
        target: Target = find("target", self.target)
        for site in matched:
            specs[site] = specs[site].with_(**changes)
            check_spec(target, site, specs[site], self.specs[site].axis)
        return replace(self, specs=specs)

    def keep_float(self, pattern: str, reason: str = "asked for in the plan") -> "Plan":
        """A plan in which every operation that matches the glob runs in float.

        Raises:
            UnknownNameError: no operation matches.
        """
        matched = [name for name in self.executions if fnmatchcase(name, pattern)]
        if not matched:
            raise unknown_name("operation", pattern, self.executions)
        executions = dict(self.executions) | dict.fromkeys(matched, Execution.FLOAT)
        floats = dict(self.floats) | dict.fromkeys(matched, reason)
        return replace(self, executions=executions, floats=floats)

    def diff(self, other: "Plan") -> list[str]:
        """A line for every site or operation that ``other`` treats differently."""
        lines = []
        for site in sorted(self.specs.keys() | other.specs.keys()):
            mine, theirs = self.specs.get(site), other.specs.get(site)
            if str(mine) != str(theirs):
                lines.append(f"{site}: {mine} -> {theirs}")
        for name in sorted(self.floats.keys() | other.floats.keys()):
            before, after = self.floats.get(name), other.floats.get(name)
            if before != after:
                lines.append(f"{name}: float ({before}) -> float ({after})")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for YAML and JSON; ``from_dict`` reads it back."""
        return {
            "target": self.target,
            "specs": {site: spec.to_dict() for site, spec in self.specs.items()},
            "copies": {name: list(sites) for name, sites in self.copies.items()},
            "floats": dict(self.floats),
            "executions": {name: str(how) for name, how in self.executions.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Plan":
        """The inverse of ``to_dict``.

        Raises:
            PlanError: a field is missing or not of its type.
        """
        try:
            return cls(
                data["target"],
                {site: QuantSpec.from_dict(spec) for site, spec in data["specs"].items()},
                {name: tuple(sites) for name, sites in data["copies"].items()},
                data["floats"],
                {name: Execution(how) for name, how in data["executions"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"this is not a saved plan: {type(error).__name__}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as YAML; complete or not at all."""
        from halfstep.files import write_atomically

        write_atomically(Path(path), yaml.safe_dump(self.to_dict(), sort_keys=False).encode())

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan that ``save`` wrote."""
        return cls.from_dict(yaml.safe_load(Path(path).read_text()))

    def __str__(self) -> str:
        width = max((len(site) for site in self.specs), default=0)
        lines = [f"plan for {self.target}"]
        lines += [f"  {site:<{width}}  {spec}" for site, spec in self.specs.items()]
        lines += [f"  shared: {' = '.join(group)}" for group in self.groups]
        lines += [f"  not integer: {name}: {reason}" for name, reason in self.floats.items()]
        return "\n".join(lines)


def make_plan(
    graph: Graph,
    target: str = "onnxruntime",
    *,
    weights: str | None = None,
    activations: str | None = None,
    per_channel: bool = True,
    calibrator: str = "minmax",
    weight_calibrator: str = "minmax",
    first_last: str | None = None,
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
        first_last: the type of the weights of the first and the last conv or linear, and the
            number of bits of what these two read and of what the last one gives; ``None``
            treats them like all others.

    Raises:
        PlanError: the target does not accept a type, or must run integers only and cannot.
        UnknownNameError: a name that is not in the catalog.
    """
    table: Target = find("target", target)
    for name in (calibrator, weight_calibrator):
        find("calibrator", name)
    activation = QuantSpec(
        QType.parse(activations) if activations else table.activation, calibrator=calibrator
    )
    weight = QuantSpec(
        QType.parse(weights) if weights else table.weight,
        symmetric=True,
        calibrator=weight_calibrator,
    )
    units = find_units(graph.module, table.fused_activations)
    executions = {unit.name: _execution(unit, table) for unit in units.units}
    how = {name: execution for name, (execution, _) in executions.items()}
    floats = {name: reason for name, (_, reason) in executions.items() if reason}
    specs = {site: activation for site in units.sites.values()}
    for unit in units.units:
        if unit.weight is not None and unit.kind in WEIGHTED:
            axis = (1 if unit.kind == "conv_transpose" else 0) if per_channel else None
            specs[units.sites[unit.weight]] = replace(weight, axis=axis)
    specs |= _fixed_outputs(units, table, specs, how)
    if first_last is not None:
        specs |= _first_last(units, specs, QType.parse(first_last))
    kept = {units.sites[node] for node in quantized_values(units, how)}
    kept |= {units.sites[unit.weight] for unit in units.units if is_weighted(unit, how)}
    specs = {site: spec for site, spec in specs.items() if site in kept}
    plan = Plan(target, specs, _copies(units, how), floats, how)
    for site, spec in plan.specs.items():
        check_spec(table, site, spec, spec.axis)
    _refuse_islands(table, plan)
    return plan


def check_spec(target: Target, site: str, spec: QuantSpec, axis: int | None) -> None:
    """Raise ``PlanError`` unless ``target`` takes ``spec`` at ``site``."""
    if site.endswith(":weight"):
        target.check_weight(site, spec, axis or 0)
    else:
        target.check_activation(site, spec)


def _execution(unit: Unit, target: Target) -> tuple[Execution, str]:
    """How a unit runs, and why not on an integer kernel."""
    rule = target.rules.get(unit.kind)
    if unit.head.meta.get("mask"):
        return Execution.FLOAT, MASK_REASON
    if rule is None:
        return Execution.FLOAT, f"target '{target.name}' has no rule for {unit.kind}"
    if unit.kind in WEIGHTED and (unit.weight is None or unit.weight.op != "get_attr"):
        return Execution.FLOAT, "its weight is computed, not a parameter"
    if not all(n.meta["val"].is_floating_point() for n in data_values(unit)):
        return Execution.FLOAT, "it computes on integers, not on real values"
    refusal = rule.refuses(unit.facts)
    if refusal:
        return Execution.FLOAT, refusal
    return rule.execution, rule.reason


def _copies(units: Units, executions: Mapping[str, Execution]) -> dict[str, tuple[str, ...]]:
    """For each copying operation, the sites of the values that it reads and makes."""
    return {
        unit.name: tuple(units.sites[node] for node in data_values(unit))
        for unit in units.units
        if executions[unit.name] is Execution.COPY
    }


def _fixed_outputs(
    units: Units, target: Target, specs: Mapping[str, QuantSpec], how: Mapping[str, Execution]
) -> dict[str, QuantSpec]:
    """Sites whose grid the kernel dictates, and the copies of their codes."""
    copies = _copies(units, how)
    groups = Plan(target.name, {}, copies, {}, how).groups
    fixed = {}
    for unit in units.units:
        rule = target.rules.get(unit.kind)
        if rule is None or rule.output_calibrator is None or how[unit.name] not in QUANTIZED:
            continue
        group = next((g for g in groups if unit.out in g), (unit.out,))
        for site in group:
            fixed[site] = replace(specs[site], calibrator=rule.output_calibrator)
    return fixed


def _first_last(units: Units, specs: Mapping[str, QuantSpec], qtype: QType) -> dict[str, QuantSpec]:
    weighted = [unit for unit in units.units if unit.weight is not None]
    if not weighted:
        return {}
    changed = {}
    ends = (weighted[0], weighted[-1])
    for unit in ends:
        assert unit.weight is not None
        site = units.sites[unit.weight]
        changed[site] = replace(specs[site], qtype=qtype)
    for node in (ends[0].inputs[0], ends[1].inputs[0], ends[1].tail):
        site = units.sites[node]
        kept = QType(qtype.bits, specs[site].qtype.signed)
        changed[site] = replace(specs[site], qtype=kept)
    return changed


def _refuse_islands(target: Target, plan: Plan) -> None:
    if target.integer_only and plan.floats:
        listed = "; ".join(f"{name}: {reason}" for name, reason in plan.floats.items())
        raise PlanError(f"target '{target.name}' runs integers only, but {listed}")
