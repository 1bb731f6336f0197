"""What many trials came to: runs, refusals, faults, and the rules that they reached."""

from collections import Counter
from dataclasses import dataclass, field

from halfstep.core.execution import Execution
from halfstep.core.target import Target
from tests.fuzz.networks import Network
from tests.fuzz.trial import Outcome

_COMPARED = ("exact", "bounded", "disagrees")
Fault = tuple[str, str]
"""A target and a signature."""


@dataclass(frozen=True)
class Disagreement:
    """A network that a target neither runs as it should nor refuses by name."""

    target: str
    network: Network
    outcome: Outcome

    @property
    def fault(self) -> Fault:
        """What it has in common with others of its kind."""
        return self.target, self.outcome.signature

    def __str__(self) -> str:
        """Everything that is needed to see it again."""
        return f"""\
# {self.target}: {self.outcome.signature}
from tests.fuzz.networks import Network, Step
from tests.fuzz.trial import attempt

network = {self.network!r}
print(attempt(network, {self.target!r}).found)

module: {self.network.module()}
plan: {self.outcome.plan}
found at {self.outcome.stage}: {self.outcome.found}"""


@dataclass
class Tally:
    """What is known after some networks.

    Attributes:
        networks: how many were drawn and captured.
        uncaptured: how many capture refused.
        runs: (target, status) and how often.
        refusals: (target, signature) and how often.
        faults: (target, signature) and how often.
        reached: (target, kind, execution) and in how many compared networks.
        found: one disagreement for each fault, as small as it could be made.
    """

    networks: int = 0
    uncaptured: int = 0
    runs: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusals: Counter[Fault] = field(default_factory=Counter)
    faults: Counter[Fault] = field(default_factory=Counter)
    reached: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    found: dict[Fault, Disagreement] = field(default_factory=dict)

    @property
    def drawn(self) -> int:
        """How many networks were drawn."""
        return self.networks + self.uncaptured

    def compared(self, target: str) -> int:
        """How many networks ran on a target and were compared."""
        return sum(self.runs[target, status] for status in _COMPARED)

    def add(self, target: str, outcome: Outcome) -> None:
        """Count one outcome."""
        self.runs[target, outcome.status] += 1
        fault = (target, outcome.signature)
        if outcome.status == "refused":
            self.refusals[fault] += 1
        if outcome.status == "disagrees":
            self.faults[fault] += 1
        if outcome.status in _COMPARED:
            self.reached.update((target, *what) for what in outcome.reached)

    def merge(self, other: "Tally") -> None:
        """Count what another tally counted."""
        self.networks += other.networks
        self.uncaptured += other.uncaptured
        for name in ("runs", "refusals", "faults", "reached"):
            getattr(self, name).update(getattr(other, name))
        self.found = other.found | self.found

    def missing(self, target: Target) -> set[str]:
        """Kinds that a target runs on integers or copies, and that no compared network had."""
        return {
            kind
            for kind, rule in target.rules.items()
            if rule.execution in (Execution.INTEGER, Execution.COPY)
            and not self.reached[target.name, kind, str(rule.execution)]
        }
