"""What a verification found: site by site, and in one word."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from halfstep.errors import counted

_MOST_SITES = 6
NO_MACS = "none: it has no convolution, linear layer or matrix product"


class Status(StrEnum):
    """The three verdicts; the second is never reported as the first."""

    EXACT = "exact"
    BOUNDED = "bounded"
    FAILED = "failed"


@dataclass(frozen=True)
class SiteReport:
    """Codes of one site, engine against runtime.

    Attributes:
        site: its name.
        kind: the operation that makes it.
        execution: how that operation runs.
        compared: number of codes.
        mismatches: number of codes that differ.
        largest: the largest distance between two codes.
        first: index (sample, then position) of the first differing code, ``None`` if none does.
        comparable: False where the codes come from a float kernel, whose last bit nobody knows;
            what follows is then compared on the runtime's own codes of this site.
    """

    site: str
    kind: str
    execution: str
    compared: int = 0
    mismatches: int = 0
    largest: int = 0
    first: tuple[int, ...] | None = None
    comparable: bool = True


@dataclass(frozen=True, repr=False)
class Verdict:
    """The outcome of ``verify``.

    Attributes:
        target: whose artifact was run.
        samples: number of samples compared.
        sites: one report a site, in order of execution.
        bound: the largest code distance that the target declares for one operation on equal
            inputs; 0 promises exactness.
        end_to_end: where there is a bound, the outputs of the file as it will run against those of
            the engine alone: no part of the promise, but with a difference nothing is exact.
        cause: the first divergent operation and the class of its cause; empty if none.
        agreement: share of equal decisions (arg max of the first output) between two stages.
        accuracy: top-1 of each stage, where labels were given.
        integer_coverage: share of multiply-accumulates that the program plans in integers;
            ``None`` if it has none.
        integer_in_runtime: the share that the runtime's fused graph really runs in integers.
        floats: operations that do not run on integer kernels, with the reason.
    """

    target: str
    samples: int
    sites: tuple[SiteReport, ...]
    bound: int = 0
    end_to_end: tuple[SiteReport, ...] = ()
    cause: str = ""
    agreement: Mapping[str, float] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)
    integer_coverage: float | None = None
    integer_in_runtime: float | None = None
    floats: Mapping[str, str] = field(default_factory=dict)

    @property
    def comparable(self) -> tuple[SiteReport, ...]:
        """The sites whose codes were proven or disproven."""
        return tuple(site for site in self.sites if site.comparable)

    @property
    def mismatches(self) -> int:
        """Differing codes over all comparable sites."""
        return sum(site.mismatches for site in self.comparable)

    @property
    def status(self) -> Status:
        """Exact, within the declared bound, or failed. Nothing compared is nothing proven."""
        if not self.comparable or not self.samples:
            return Status.FAILED
        largest = max(site.largest for site in self.comparable)
        if largest == 0 and not any(site.mismatches for site in self.end_to_end):
            return Status.EXACT
        return Status.BOUNDED if largest <= self.bound else Status.FAILED

    @property
    def coverage(self) -> str:
        """How much runs in integers, for people."""
        if self.integer_coverage is None or self.integer_in_runtime is None:
            return NO_MACS
        return f"{self.integer_coverage:.2%} planned, {self.integer_in_runtime:.2%} in the runtime"

    @property
    def exit_code(self) -> int:
        """0 for exact or within the bound, 1 for failed."""
        return int(self.status is Status.FAILED)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = asdict(self)
        return {"status": str(self.status), "mismatches": self.mismatches, **data}

    def __repr__(self) -> str:
        return str(self)  # what a notebook shows

    def __str__(self) -> str:
        codes = sum(site.compared for site in self.comparable)
        head = f"{self.status}: {self.mismatches} of {codes} codes differ"
        over = f"{counted(len(self.comparable), 'site')} over {counted(self.samples, 'sample')}"
        where = f"{over} ({self.target})"
        lines = [f"{head} on {where}"]
        if self.cause:
            lines.append(f"  first divergence: {self.cause}")
        differing = [site for site in self.comparable if site.mismatches]
        lines += [
            f"  {site.site}: {site.mismatches} of {site.compared} differ, by up to "
            f"{site.largest}, first at {site.first}"
            for site in differing[:_MOST_SITES]
        ]
        if len(differing) > _MOST_SITES:
            lines.append(f"  and {counted(len(differing) - _MOST_SITES, 'more site')}")
        skipped = [site for site in self.sites if not site.comparable]
        if skipped:
            worst = max(site.largest for site in skipped)
            names = ", ".join(site.site for site in skipped[:_MOST_SITES])
            lines.append(
                f"  not counted: {counted(len(skipped), 'site')} from float kernels (largest "
                f"distance {worst}): {names}" + (", ..." if len(skipped) > _MOST_SITES else "")
            )
        if self.bound:
            lines.append(f"  promised: {self.bound} at most, by one operation on equal inputs")
        lines += [
            f"  {site.site}, end to end: {site.mismatches} of {site.compared} differ, by up to "
            f"{site.largest}"
            for site in self.end_to_end
        ]
        lines.append(f"  integer multiply-accumulates: {self.coverage}")
        for table, unit in ((self.accuracy, "top-1"), (self.agreement, "equal decisions")):
            lines += [f"  {unit}, {name}: {value:.2%}" for name, value in table.items()]
        return "\n".join(lines)
