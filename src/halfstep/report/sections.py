"""The tables of ``report.html``, one function a section."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from halfstep.core.grid import Affine
from halfstep.journal import Journal
from halfstep.program.ir import IntProgram, Op, Tensor, sizes
from halfstep.report.markup import Markup, join, tag
from halfstep.verdict import SiteReport, Verdict

# Columns that are aligned at their right.
_NUMBERS = frozenset(
    {"top-1", "as the engine", "shape", "scale", "zero point", "codes", "differ", "largest", "time"}
)


def section(title: str, about: str, content: Markup) -> Markup:
    """A heading, what it is about, and a card."""
    text = about if isinstance(about, Markup) else tag("p", about)
    return tag("section", tag("h2", title), text, tag("div", content, class_="card"))


def seconds(value: float) -> str:
    """A duration with as many digits as matter."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f} s"


def decisions(verdict: Verdict) -> Iterator[Markup]:
    """How often every stage is right, and decides as the engine does."""
    if not verdict.agreement:
        return
    accuracy = verdict.accuracy
    same = {pair.removesuffix(" and engine"): share for pair, share in verdict.agreement.items()}
    stages = [*(name for name in same if name != "runtime"), "engine", "runtime"]
    head = ["stage", *(["top-1"] if accuracy else []), "as the engine"]
    rows = [
        _row(
            _text(name),
            *([_number(f"{accuracy[name]:.2%}")] if accuracy else []),
            _number(f"{same[name]:.2%}" if name in same else ""),
        )
        for name in stages
    ]
    about = "The largest value of the first output, sample by sample."
    yield section("Decisions", about, _table(head, rows))


def floats(program: IntProgram) -> Iterator[Markup]:
    """Operations without an integer kernel, one row a reason."""
    reasons: dict[str, list[str]] = {}
    for op in program.ops:
        if op.reason and op.module not in reasons.setdefault(op.reason, []):
            reasons[op.reason].append(op.module)
    if not reasons:
        return
    rows = [_row(_text(reason), _names(names)) for reason, names in reasons.items()]
    about = "They run in float32: between codes, or as islands with real values around them."
    title = "Operations without an integer kernel"
    yield section(title, about, _table(["reason", "operations"], rows))


def sites(program: IntProgram, verdict: Verdict | None) -> Markup:
    """Every site and every output: its grid, and what differs."""
    reports = {} if verdict is None else {report.site: report for report in verdict.sites}
    names = {*program.sites, *program.outputs}
    shown = [op for op in program.ops if op.output in names]
    head = ["site", "operation", "runs as", "formula", "type", "scale", "zero point"]
    head += ["codes", "differ", "largest"] if reports else []
    rows = [_site(op, program.tensors[op.output], reports.get(op.output)) for op in shown]
    about = "In order of execution." + (
        " Codes that come straight from a float kernel, whose last bits nobody promises, are "
        "compared and not counted."
        if any(not report.comparable for report in reports.values())
        else ""
    )
    return section("Sites", about, _table(head, rows))


def constants(program: IntProgram) -> Iterator[Markup]:
    """Weights, biases and other constant codes."""
    rows = [
        _row(_code(name), _number(sizes(tensor.shape)), *_grid(tensor))
        for name, tensor in program.tensors.items()
        if tensor.data is not None and tensor.grid is not None
    ]
    if rows:
        head = ["site", "shape", "type", "scale", "zero point"]
        about = "Constant codes. Of many scales, the smallest and the largest are shown."
        yield section("Weights, biases and other constants", about, _table(head, rows))


def steps(journal: Journal) -> Iterator[Markup]:
    """What was done, for how long, and what each step found."""
    rows = [
        _row(
            _text(record.verb),
            _number(seconds(record.seconds)),
            _text(", ".join(f"{name}: {value}" for name, value in record.facts.items())),
        )
        for record in journal.records
    ]
    if rows:
        about = "What was done, in order."
        yield section("Journal", about, _table(["step", "time", "facts"], rows))


def _site(op: Op, tensor: Tensor, report: SiteReport | None) -> Markup:
    kind = str(op.attrs.get("function", op.kind))  # of a table
    how = [_text(word) for word in (kind, str(op.execution), op.formula or "")]
    cells = [_code(op.output), *how, *_grid(tensor)]
    if report is None:
        return _row(*cells)
    differ = f"{report.mismatches:,}" if report.comparable else f"({report.mismatches:,})"
    cells += [_number(f"{report.compared:,}"), _number(differ), _number(str(report.largest))]
    if not report.comparable:
        return _row(*cells, kind="aside")
    return _row(*cells, kind="differs" if report.mismatches else "")


def _grid(tensor: Tensor) -> tuple[Markup, Markup, Markup]:
    """Type, scale and zero point; of many, the smallest and the largest."""
    grid = tensor.grid
    if grid is None:
        return _text(tensor.dtype), _number(""), _number("")
    return _text(_type(grid)), _number(_range(grid.scale, "#.3g")), _number(_range(grid.zero_point))


def _type(grid: Affine) -> str:
    if grid.axis is None:
        return grid.qtype.name
    each = "channel" if grid.group_size is None else f"{grid.group_size} inputs"
    return f"{grid.qtype.name}, {grid.scale.size} scales (one a {each})"


def _range(values: NDArray[Any], form: str = "") -> str:
    low, high = values.min(), values.max()
    return format(low, form) if low == high else f"{low:{form}} to {high:{form}}"


def _table(head: Sequence[str], rows: Sequence[Markup]) -> Markup:
    cells = (tag("th", name, class_="n" if name in _NUMBERS else "t") for name in head)
    return tag("table", tag("thead", tag("tr", *cells)), tag("tbody", *rows))


def _row(*cells: Markup, kind: str = "") -> Markup:
    return tag("tr", *cells, class_=kind) if kind else tag("tr", *cells)


def _text(content: str) -> Markup:
    return tag("td", content)


def _number(content: str) -> Markup:
    return tag("td", content, class_="n")


def _code(name: str) -> Markup:
    return tag("td", _name(name))


def _names(names: Sequence[str]) -> Markup:
    parts = [part for name in names for part in (_name(name), Markup(", "))]
    return tag("td", *parts[:-1])


def _name(name: str) -> Markup:
    """A name that may go on in the next line behind each of its parts."""
    parts = re.split(r"(?<=[._:])", name)
    return tag("code", join(*[piece for part in parts for piece in (part, tag("wbr"))][:-1]))
