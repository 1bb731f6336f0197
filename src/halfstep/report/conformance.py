"""What ``conformance`` found, as a table for the terminal and as cells for a page."""

from collections.abc import Sequence

from rich.table import Table

from halfstep.conformance import Conformance

COLUMNS = (
    "target",
    "verdict",
    "codes",
    "differing",
    "up to",
    "integer MACs",
    "of float",
    "bytes",
)


def cells(row: Conformance) -> tuple[str, ...]:
    """One row, in the order of ``COLUMNS``; what there is not, is empty.

    The bytes are those that a device holds: of source code, its constants.
    """
    held = row.size if row.rom is None else row.rom
    size = "" if held is None else f"{held:,}"
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
    """All rows for the terminal: within 80 columns, where headers break and no cell does."""
    table = Table(
        title="conformance",
        title_justify="left",
        box=None,
        padding=(0, 1),
        pad_edge=False,
        collapse_padding=True,
    )
    for column in COLUMNS:
        in_words = column in ("target", "verdict")
        header = column.replace(" ", "\n")
        table.add_column(header, justify="left" if in_words else "right", overflow="fold")
    for row in rows:
        table.add_row(*cells(row))
    return table
