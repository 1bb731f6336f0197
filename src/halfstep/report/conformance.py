"""What ``conformance`` found, as a table for the terminal and as cells for a page."""

from collections.abc import Sequence

from rich.table import Table

from halfstep.conformance import Conformance

COLUMNS = (
    "target",
    "verdict",
    "codes",
    "differing",
    "largest",
    "integer MACs",
    "of float",
    "bytes",
)


def cells(row: Conformance) -> tuple[str, ...]:
    """One row, in the order of ``COLUMNS``; what there is not, is empty."""
    size = "" if row.size is None else f"{row.size:,}"
    if row.verdict is None:
        return (row.target, "refused" if row.size is None else "not run", *[""] * 5, size)
    sites = row.verdict.comparable
    integer = row.verdict.integer_in_runtime
    return (
        row.target,
        str(row.verdict.status),
        f"{sum(site.compared for site in sites):,}",
        f"{row.verdict.mismatches:,}",
        str(max((site.largest for site in sites), default=0)),
        "" if integer is None else f"{integer:.2%}",
        "" if row.gain is None else f"{row.gain.integer_seconds / row.gain.float_seconds:.2f}",
        size,
    )


def conformance_table(rows: Sequence[Conformance]) -> Table:
    """All rows for the terminal."""
    table = Table(title="conformance", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*cells(row))
    return table
