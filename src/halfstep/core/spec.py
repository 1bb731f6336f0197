"""What is wanted of a site, before any data was seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from halfstep.core.qtype import QType
from halfstep.errors import PlanError

DICTATED = frozenset({"unit_interval", "signed_unit_interval"})
"""Calibrators of grids that a runtime's kernel dictates, whatever the values are."""


@dataclass(frozen=True)
class QuantSpec:
    """How one site is to be quantized.

    Attributes:
        qtype: the codes.
        axis: the axis that keeps one scale an index (per-channel); ``None`` is per-tensor.
        symmetric: the zero point is 0; signed types only.
        pow2: the scale is a power of two.
        calibrator: name, in the catalog, of the method that finds the range.
        quantizer: name, in the catalog, of the fake quantizer.
        options: keyword arguments of the calibrator, such as ``{"percentile": 99.9}``.
        group_size: each index of ``axis`` has one scale for so many consecutive values of the
            rest, in the order of the memory: of the inputs of a linear layer, or of the input
            channels and the kernel of a convolution. The last group holds what is left. ``None``
            is one scale an index.
    """

    qtype: QType
    axis: int | None = None
    symmetric: bool = False
    pow2: bool = False
    calibrator: str = "minmax"
    quantizer: str = "ste"
    options: Mapping[str, float] = field(default_factory=dict)
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.symmetric and not self.qtype.signed:
            raise PlanError(f"a symmetric spec needs a signed type, found {self.qtype}")
        if self.group_size is not None and (self.axis is None or self.group_size < 1):
            raise PlanError(
                f"group_size={self.group_size} with axis={self.axis}: a group is one or more of "
                "the values that one index of an axis has; name the axis"
            )
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    @property
    def dictated(self) -> bool:
        """Whether the kernel dictates the grid, so that nothing else may choose it."""
        return self.calibrator in DICTATED

    def with_(self, **changes: Any) -> "QuantSpec":
        """A copy with other fields; ``qtype`` may be given by name."""
        if isinstance(changes.get("qtype"), str):
            changes["qtype"] = QType.parse(changes["qtype"])
        unknown = set(changes) - set(self.__dataclass_fields__)
        if unknown:
            raise PlanError(
                f"a spec has no field {', '.join(sorted(unknown))}; "
                f"it has {', '.join(self.__dataclass_fields__)}"
            )
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML and JSON; ``from_dict`` reads it back."""
        data: dict[str, Any] = {"qtype": self.qtype.name, "calibrator": self.calibrator}
        data |= {
            name: getattr(self, name)
            for name in ("axis", "group_size")
            if getattr(self, name) is not None
        }
        data |= {flag: True for flag in ("symmetric", "pow2") if getattr(self, flag)}
        if self.quantizer != "ste":
            data["quantizer"] = self.quantizer
        return data | ({"options": dict(self.options)} if self.options else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "QuantSpec":
        """The inverse of ``to_dict``."""
        return cls(QType.parse("int8")).with_(**data)

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only mapping can be neither copied nor pickled; modules that hold a spec are both.
        return QuantSpec.from_dict, (self.to_dict(),)

    def __str__(self) -> str:
        channel = "per-tensor" if self.axis is None else f"per-channel (axis {self.axis})"
        if self.group_size is not None:
            channel = f"in groups of {self.group_size} (axis {self.axis})"
        words = [self.qtype.name, channel, self.calibrator]
        words += [word for word in ("symmetric", "pow2") if getattr(self, word)]
        return " ".join(words)
