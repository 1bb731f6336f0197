"""The tables of the documentation that are made from the catalog and from the targets' rules.

``python -m halfstep.report.catalog_table --write README.md docs/*.md`` puts each table between
its markers, ``<!-- catalog:begin -->`` and ``<!-- catalog:end -->``, and leaves a page without
markers as it is; without ``--write`` the pages are only compared.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from halfstep.catalog import CATALOG, Entry, family
from halfstep.core.qtype import QType
from halfstep.core.target import OpRule, Target
from halfstep.errors import DataError
from halfstep.files import write_atomically

USAGE = "usage: python -m halfstep.report.catalog_table [--write] PAGE..."


def catalog_table() -> str:
    """What targets accept, and every method by family."""
    targets = [_target_row(entry) for entry in family("target").values()]
    methods = [
        [entry.family, f"`{entry.name}`", entry.summary, entry.source]
        for entry in CATALOG
        if entry.family != "target"
    ]
    columns = ("target", "what it is", "file", "activations", "weights", "source")
    tables = (
        _table(columns, targets),
        _table(("family", "name", "what it does", "source"), methods),
    )
    return "\n\n".join(tables)


def operations_table() -> str:
    """For each operation that a target has a rule for, how it runs and by which formula."""
    targets = [entry.load() for entry in family("target").values()]
    kinds = sorted({kind for target in targets for kind in target.rules})
    rows = [[f"`{kind}`", *(_cell(target.rules.get(kind)) for target in targets)] for kind in kinds]
    return _table(("operation", *(f"`{target.name}`" for target in targets)), rows)


def formats_table() -> str:
    """What numbers each target takes."""
    targets: list[Target] = [entry.load() for entry in family("target").values()]
    rows = [[name, *map(cell, targets)] for name, cell in _FORMATS.items()]
    return _table(("", *(f"`{target.name}`" for target in targets)), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "catalog": catalog_table,
    "formats": formats_table,
    "operations": operations_table,
}


def updated(text: str, page: str) -> str:
    """``text`` with every marked table as it should be.

    Raises:
        DataError: a marker without its other half.
    """
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, *rest = text.split(begin)
        if not rest and end not in text:
            continue
        if len(rest) != 1 or rest[0].count(end) != 1 or end in head:
            raise DataError(f"{page}: asked for one {begin} with one {end} behind it")
        text = f"{head}{begin}\n{make()}\n{end}{rest[0].partition(end)[2]}"
    return text


def main(arguments: Sequence[str]) -> int:
    """Write the tables, or compare them: 1 if a page is not current."""
    write, pages = "--write" in arguments, [Path(a) for a in arguments if a != "--write"]
    if not pages:
        print(USAGE)
        return 2
    stale = 0
    for page in pages:
        text = page.read_text()
        current = updated(text, page.name)
        if current == text:
            continue
        stale += not write
        print(f"{page}: {'written' if write else 'not current'}")
        if write:
            write_atomically(page, current.encode())
    return int(stale > 0)


def _target_row(entry: Entry) -> list[str]:
    target: Target = entry.load()
    file = f"`{target.artifact}`" if target.artifact else "none"
    activations = f"`{target.activation}`, or {_width(target.activation_bits)}"
    weights = f"`{target.weight}`, or {_width(target.weight_bits)}"
    return [f"`{target.name}`", entry.summary, file, activations, weights, entry.source]


def _weight_scales(target: Target) -> str:
    return f"one a tensor or a channel{', or a group of inputs' if target.weight_groups else ''}"


def _biases(target: Target) -> str:
    plain, wide = (target.bias_type(QType(bits), target.weight) for bits in (8, 16))
    return f"`{plain}`" if wide == plain else f"`{plain}`; `{wide}` with operands of 9 bits or more"


# What ``check_activation``, ``check_weight`` and the specification of programs let through.
_FORMATS: Mapping[str, Callable[[Target], str]] = {
    "activations": lambda target: _width(target.activation_bits),
    "their zero points": lambda target: "0" if target.symmetric_activations else "any",
    "their scales": lambda target: "one a tensor",
    "weights": lambda target: f"{_width(target.weight_bits)}, signed",
    "zero points of weights": lambda target: "0",
    "scales of weights": _weight_scales,
    "powers of two": lambda target: "for every scale",
    "accumulators": lambda target: f"{target.accumulator_bits} bits",
    "biases": _biases,
}


def _width(bits: tuple[int, int]) -> str:
    return f"{bits[0]} to {bits[1]} bits"


def _cell(rule: OpRule | None) -> str:
    if rule is None:
        return "float"
    formulas = " or ".join(name for name in (rule.formula, rule.symmetric_formula) if name)
    return f"{rule.execution}: {formulas}" if formulas else str(rule.execution)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in line)} |" for line in lines
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
