"""``docs/results.md``, ``docs/conformance.md`` and the recipes' pages; no figure is by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cells import Cell
from benchmarks.tables import OF_A_RECIPE, OF_A_TARGET, SECTIONS

Rows = Sequence[Mapping[str, Any]]
_BEGIN, _END = "<!-- results:begin -->", "<!-- results:end -->"
_INTRODUCTION = (
    "Written by `make bench` from what it measured; the data and the peers' environments it needs "
    "are described in `benchmarks/`. Top-1 of *runtime* is what ONNX Runtime answers when it runs "
    "the written file. *Engine* is Halfstep's simulation: the integer program. *Fake-quantized* is "
    "the float graph that training uses. Speeds are ratios taken in one run on two cores that "
    "other work may share."
)
_CONFORMANCE = (
    "One model on every target, each calibrated (min-max) on 64 samples, encoders on as many as "
    "they say, and compared code for code on them, at every site that the runtime can show and at "
    "the outputs of the file as it will be deployed. *Largest* is the largest distance of two "
    "codes. Sites behind a float kernel are not counted. *Of float* is the time of one sample as a "
    "share of the float model's in the same runtime, from the same exporter; two cores, other work "
    "beside. *Bytes* of C are those of its source text; its `cost.md` says the bytes of its "
    "constants, which the command line shows. What a target refuses, it refuses by name. The "
    "engine's targets (`reference`) have no artifact. Written by `python -m benchmarks conformance "
    "encoders`; one model of your own: `halfstep verify --all-targets`."
)


def render(results: Mapping[str, Any]) -> str:
    """The whole page; a section that was not measured says so."""
    parts = ["# Results", "", _INTRODUCTION, ""]
    for name, (title, text, columns) in SECTIONS.items():
        parts += [f"## {title}", "", text, ""]
        if name in results:
            section = results[name]
            parts += [*table(section["rows"], columns), "", _measured(section), ""]
        else:
            parts += ["Not measured yet: `python -m benchmarks " + name + "`.", ""]
    return "\n".join(parts).rstrip() + "\n"


def recipe_page(text: str, recipe: str, results: Mapping[str, Any]) -> str:
    """The page of a recipe with what was measured of it between its two markers."""
    head, _, rest = text.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not end:
        return text
    rows = [
        {"format": "W8A8", **row}
        for name in ("recipes", "rounding_resnet20", "rounding_efficientnet")
        for row in results.get(name, {}).get("rows", ())
        if row["recipe"] == recipe
    ]
    shown = [
        *table(rows, OF_A_RECIPE),
        "",
        "Seconds are elapsed, on two cores that other work shares.",
    ]
    encoders = results.get("transformers", {}).get("rows", ())
    if mine := [row for row in encoders if f"`{recipe}`" in row["tool"]]:
        title, text, columns = SECTIONS["transformers"]
        shown = [*(shown if rows else ()), f"{title}. {text}", "", *table(mine, columns)]
    elif not rows:
        shown = ["Not measured yet."]
    return "\n".join([f"{head}{_BEGIN}", "", *shown, "", f"{_END}{tail}"])


def conformance_page(results: Mapping[str, Any]) -> str:
    """Every network on every target, as far as it was measured."""
    sections = [results[name] for name in ("conformance", "encoders") if name in results]
    lines = ["# Conformance", "", _CONFORMANCE, ""]
    if not sections:
        return "\n".join([*lines, "Not measured yet: `python -m benchmarks conformance`.", ""])
    # A network that both have is that of the later one.
    latest = {row["network"]: section["rows"] for section in sections for row in section["rows"]}
    by_network: dict[str, list[Mapping[str, Any]]] = {}
    for network, rows in latest.items():
        for row in rows:
            if row["network"] == network:
                by_network.setdefault(f"{network} ({row['what']})", []).append(row)
    for network, rows in by_network.items():
        lines += [f"## {network}", "", *table(rows, OF_A_TARGET), ""]
    return "\n".join([*lines, *map(_measured, sections), ""])


def _measured(section: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{name} {version}" for name, version in section["versions"].items())
    return f"Measured {section['date']} on {section['machine']}, with {listed}."


def table(rows: Rows, columns: Mapping[str, Cell]) -> list[str]:
    """A Markdown table; numbers come formatted from the columns."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]
    return lines
