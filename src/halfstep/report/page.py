"""``report.html``: a result on one page, self-contained, without scripts and without network."""

from collections.abc import Iterator, Mapping

from halfstep.core.execution import Execution
from halfstep.errors import counted
from halfstep.journal import Journal
from halfstep.program.ir import IntProgram
from halfstep.report.chart import Bar, bar_chart
from halfstep.report.markup import Markup, tag
from halfstep.report.sections import (
    constants,
    decisions,
    floats,
    seconds,
    section,
    sites,
    steps,
)
from halfstep.report.style import STYLE
from halfstep.verdict import Verdict

_FLOAT_KERNELS = (Execution.FLOAT, Execution.DEQUANTIZED)


def report_page(
    program: IntProgram,
    verdict: Verdict | None,
    journal: Journal,
    artifact: tuple[str, int] | None,
    versions: Mapping[str, str],
) -> str:
    """The page as an HTML document.

    Args:
        program: what runs.
        verdict: program against artifact; ``None`` if nothing was verified.
        journal: the steps and their durations.
        artifact: name and size in bytes of the file; ``None`` if the target has none.
        versions: of every package involved.
    """
    status = "not verified" if verdict is None else str(verdict.status)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{status}: Halfstep on {program.target}"),
        tag("style", Markup(STYLE)),
    )
    content = (
        _header(program, verdict, status),
        tag("dl", *_tiles(program, verdict, journal, artifact), class_="tiles"),
        tag(
            "div",
            tag("div", *(decisions(verdict) if verdict else ()), *_macs(program)),
            tag("div", *_time(journal)),
            class_="pair",
        ),
        *floats(program),
        sites(program, verdict),
        *constants(program),
        *steps(journal),
        tag("footer", "Made with ", ", ".join(f"{n} {v}" for n, v in versions.items()), "."),
    )
    page = tag("html", head, tag("body", tag("main", *content)), lang="en")
    return f"<!doctype html>\n{page}\n"


def _header(program: IntProgram, verdict: Verdict | None, status: str) -> Markup:
    parts = [tag("p", f"Halfstep on {program.target}", class_="over"), tag("h1", status)]
    if verdict is None:
        parts.append(tag("p", "What was simulated was not compared with what runs."))
    else:
        places = verdict.comparable
        codes = sum(site.compared for site in places)
        found = (
            f"{verdict.mismatches:,} of {codes:,} codes differ between what was simulated and "
            f"what runs: {counted(len(places), 'site')}, {verdict.samples:,} "
            f"sample{'' if verdict.samples == 1 else 's'}."
        )
        parts.append(tag("p", found))
        if verdict.cause:
            parts.append(tag("p", f"First divergence: {verdict.cause}", class_="cause"))
    return tag("header", *parts, class_=status.replace(" ", "-"))


def _tiles(
    program: IntProgram,
    verdict: Verdict | None,
    journal: Journal,
    artifact: tuple[str, int] | None,
) -> Iterator[Markup]:
    yield _tile("Integer MACs", *_coverage(program, verdict))
    if verdict is not None and "runtime" in verdict.accuracy:
        accuracy = verdict.accuracy
        beside = f"float {accuracy['float']:.1%}" if "float" in accuracy else ""
        yield _tile("Top-1 in the runtime", f"{accuracy['runtime']:.1%}", beside)
    if verdict is not None and "float and engine" in verdict.agreement:
        share = verdict.agreement["float and engine"]
        yield _tile("Decisions", f"{share:.1%}", "as the float model")
    if artifact is not None:
        yield _tile("File", _bytes(artifact[1]), artifact[0])
    total = sum(record.seconds for record in journal.records)
    yield _tile("Time", seconds(total), f"in {len(journal.records)} steps")


def _coverage(program: IntProgram, verdict: Verdict | None) -> tuple[str, str]:
    """How much runs in integers, and what is to be said about it."""
    planned = program.integer_coverage()
    real = None if verdict is None else verdict.integer_in_runtime
    if planned is None:
        return "none", "no layer has any"
    if real is None:
        return f"{planned:.1%}", "planned"
    return f"{real:.1%}", "as planned" if real == planned else f"found; {planned:.1%} planned"


def _tile(name: str, value: str, beside: str) -> Markup:
    return tag("div", tag("dt", name), tag("dd", value), tag("dd", beside))


def _macs(program: IntProgram) -> Iterator[Markup]:
    """A bar for each kind of operation that multiplies and accumulates."""
    kinds: dict[str, dict[str, float]] = {}
    for op in program.ops:
        if op.macs:
            parts = kinds.setdefault(op.kind, {"integer": 0.0, "float": 0.0})
            parts["float" if op.execution in _FLOAT_KERNELS else "integer"] += op.macs
    if not kinds:
        return
    bars = [Bar(kind, parts, _count(sum(parts.values()))) for kind, parts in kinds.items()]
    title = "Multiply-accumulates a sample"
    legend = tag(
        "p",
        *(
            tag("span", tag("i", class_=side), f"on {side} kernels")
            for side in ("integer", "float")
        ),
        class_="legend",
    )
    yield section(title, legend, bar_chart(title, bars))


def _time(journal: Journal) -> Iterator[Markup]:
    """A bar for each step."""
    bars = [
        Bar(record.verb, {"time": record.seconds}, seconds(record.seconds))
        for record in journal.records
    ]
    if bars:
        title = "Time of each step"
        yield section(title, "On the machine that made this page.", bar_chart(title, bars))


def _count(n: float) -> str:
    """1234567 as "1.23 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f}"


def _bytes(n: int) -> str:
    return f"{n / 1e6:,.1f} MB" if n >= 1e6 else f"{n / 1e3:,.0f} kB"
