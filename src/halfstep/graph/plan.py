"""What to do with every site of a graph, as data: printed, edited, compared and saved."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from halfstep.catalog import find
from halfstep.core.execution import Execution
from halfstep.core.spec import QuantSpec
from halfstep.core.target import Target
from halfstep.errors import PlanError, unknown_name


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """The specs of all sites, the sites that share one grid, and the operations left in float.

    Attributes:
        target: the name of the target.
        specs: what is wanted of each site that may be quantized.
        copies: for each operation that has one grid for all, because it copies codes or its kernel
            needs it, the sites that it ties together.
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
        """Sites that share one grid."""
        group_of: dict[str, tuple[str, ...]] = {}
        for name, sites in self.copies.items():
            if self.executions[name] is Execution.FLOAT:
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

    def leave_real(self, pattern: str) -> "Plan":
        """A plan in which integer operations that match leave real values instead of codes.

        Only float operations, or the outputs of the model, may read them: nothing is rounded
        between the sums of such an operation and them.

        Raises:
            UnknownNameError: no operation on an integer kernel matches.
        """
        kernels = (Execution.INTEGER, Execution.SCALED)
        known = [name for name, how in self.executions.items() if how in kernels]
        matched = [name for name in known if fnmatchcase(name, pattern)]
        if not matched:
            raise unknown_name("operation on an integer kernel", pattern, known)
        executions = dict(self.executions) | dict.fromkeys(matched, Execution.SCALED)
        return replace(self, executions=executions)

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
        if not isinstance(data, Mapping):
            raise PlanError("this is not a saved plan: it does not hold names and values")
        if missing := [field.name for field in fields(cls) if field.name not in data]:
            raise PlanError(f"this is not a saved plan: it has no {missing[0]!r}")
        try:
            return cls(
                data["target"],
                {site: QuantSpec.from_dict(spec) for site, spec in data["specs"].items()},
                {name: tuple(sites) for name, sites in data["copies"].items()},
                data["floats"],
                {name: Execution(how) for name, how in data["executions"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            found = f"a value of another form ({type(error).__name__}: {error})"
            raise PlanError(f"this is not a saved plan: {found}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as YAML; complete or not at all."""
        from halfstep.files import write_atomically

        write_atomically(Path(path), yaml.safe_dump(self.to_dict(), sort_keys=False).encode())

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan that ``save`` wrote.

        Raises:
            PlanError: the file cannot be read, or holds no plan.
        """
        try:
            return cls.from_dict(yaml.safe_load(Path(path).read_text()))
        except OSError as error:
            raise PlanError(f"{path}: it cannot be read ({error.strerror})") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            words = " ".join(str(error).split())
            raise PlanError(
                f"{path}: this is not a saved plan: it is not YAML ({words})"
            ) from error
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error

    def __repr__(self) -> str:
        return str(self)  # what a notebook shows

    def __str__(self) -> str:
        width = max((len(site) for site in self.specs), default=0)
        lines = [f"plan for {self.target}"]
        lines += [f"  {site:<{width}}  {spec}" for site, spec in self.specs.items()]
        lines += [f"  shared: {' = '.join(group)}" for group in self.groups]
        lines += [f"  not integer: {name}: {reason}" for name, reason in self.floats.items()]
        return "\n".join(lines)


def check_spec(target: Target, site: str, spec: QuantSpec, axis: int | None) -> None:
    """Raise ``PlanError`` unless ``target`` takes ``spec`` at ``site``."""
    if site.endswith(":weight"):
        target.check_weight(site, spec, axis or 0)
    else:
        target.check_activation(site, spec)
