"""What a publication fixes of the choices of ``make_plan``, and what it leaves open."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from halfstep.errors import PlanError


@dataclass(frozen=True)
class Published:
    """The choices of one published recipe; whatever else is asked for contradicts it.

    Attributes:
        recipe: its name.
        values: for each choice of ``make_plan`` that the publication speaks of, the values that
            fit it; the first is taken unless another one is asked for.
    """

    recipe: str
    values: Mapping[str, tuple[Any, ...]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    def settle(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What to ask ``make_plan`` for.

        Raises:
            PlanError: a choice that the publication does not have.
        """
        asked = {name: value for name, value in given.items() if value is not None}
        for name, value in asked.items():
            if value not in self.values.get(name, ()):
                fits = " or ".join(repr(v) for v in self.values.get(name, ())) or "no such choice"
                raise PlanError(
                    f"{self.recipe}: asked for {name}={value!r}, the publication has {fits}; leave "
                    "it out, or take recipe 'ptq', which leaves it open"
                )
        return {name: fits[0] for name, fits in self.values.items()} | asked
