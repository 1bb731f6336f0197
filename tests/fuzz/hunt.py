"""Many networks through targets, drawn and shrunk by hypothesis.

A fault that was found once is only counted from then on, so that the next one can be found behind
it.
"""

import contextlib
from collections.abc import Callable, Collection, Sequence

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from halfstep.errors import CaptureError
from tests.fuzz.drawing import networks
from tests.fuzz.networks import Network
from tests.fuzz.tally import Disagreement, Fault, Tally
from tests.fuzz.trial import attempt, captured

Watch = Callable[[Network, str], None]


class NewFaultError(Exception):
    """Tells hypothesis that there is something to shrink."""


def hunt(
    n: int,
    targets: Sequence[str],
    first_seed: int = 0,
    *,
    known: Collection[Fault] = (),
    watch: Watch = lambda network, target: None,
) -> Tally:
    """Draw ``n`` networks and try each on every target.

    Args:
        n: how many networks.
        targets: names in the catalog.
        first_seed: of what is drawn; the same gives the same networks.
        known: faults that are counted, and not shrunk again.
        watch: is told what comes before each trial.
    """
    search = _Search(targets, watch, set(known))
    while search.tally.drawn < n:
        search.until_a_new_fault(n - search.tally.drawn, first_seed)
        first_seed += 1
    return search.tally


class _Search:
    """One hunt: what it counted, and the fault that is being shrunk."""

    def __init__(self, targets: Sequence[str], watch: Watch, known: set[Fault]) -> None:
        self.targets = targets
        self.watch = watch
        self.known = known
        self.tally = Tally()
        self.shrinking: Disagreement | None = None

    def until_a_new_fault(self, n: int, first_seed: int) -> None:
        """Draw up to ``n`` networks; a new fault is shrunk and recorded, and ends it."""

        @seed(first_seed)
        @settings(
            max_examples=n,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(networks())
        def targets_agree(network: Network) -> None:
            if self.shrinking is None:
                self._try(network)
            else:
                self._try_smaller(network, self.shrinking)

        # What hypothesis cannot reproduce it calls flaky, in an error of its own.
        with contextlib.suppress(NewFaultError, Flaky):
            targets_agree()
        if self.shrinking is not None:
            self.tally.found[self.shrinking.fault] = self.shrinking
            self.known.add(self.shrinking.fault)
            self.shrinking = None

    def _try(self, network: Network) -> None:
        """One network on all targets; the first fault that was not seen before is raised."""
        try:
            graph = captured(network)
        except CaptureError:
            self.tally.uncaptured += 1
            return
        self.tally.networks += 1
        for target in self.targets:
            self.watch(network, target)
            outcome = attempt(network, target, graph)
            self.tally.add(target, outcome)
            new = outcome.status == "disagrees" and (target, outcome.signature) not in self.known
            if new and self.shrinking is None:
                self.shrinking = Disagreement(target, network, outcome)
        if self.shrinking is not None:
            raise NewFaultError(self.shrinking.outcome.signature)

    def _try_smaller(self, network: Network, seen: Disagreement) -> None:
        self.watch(network, seen.target)
        outcome = attempt(network, seen.target)
        if (seen.target, outcome.signature) == seen.fault and outcome.status == "disagrees":
            self.shrinking = Disagreement(seen.target, network, outcome)
            raise NewFaultError(outcome.signature)
