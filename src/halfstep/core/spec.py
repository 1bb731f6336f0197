"""What is wanted of a site, before any data was seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from halfstep.core.qtype import QType
from halfstep.errors import PlanError


@dataclass(frozen=True)
class QuantSpec:
    """How one site is to be quantized.

    Attributes:
        qtype: the codes.
        axis: the axis that keeps one scale an index (per-channel); ``None`` is per-tensor.
        symmetric: the zero point is 0; signed types only.
        pow2: the scale is rounded up to a power of two.
        calibrator: name, in the catalog, of the method that finds the range.
        quantizer: name, in the catalog, of the fake quantizer.
        options: keyword arguments of the calibrator, such as ``{"percentile": 99.9}``.
    """

    qtype: QType
    axis: int | None = None
    symmetric: bool = False
    pow2: bool = False
    calibrator: str = "minmax"
    quantizer: str = "ste"
    options: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.symmetric and not self.qtype.signed:
            raise PlanError(f"a symmetric spec needs a signed type, found {self.qtype}")
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

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
        if self.axis is not None:
            data["axis"] = self.axis
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
        words = [self.qtype.name, channel, self.calibrator]
        words += [word for word in ("symmetric", "pow2") if getattr(self, word)]
        return " ".join(words)
