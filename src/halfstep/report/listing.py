"""The catalog as tables."""

from collections.abc import Iterator

from rich.table import Table

from halfstep.catalog import CATALOG, Entry, family
from halfstep.core.target import Target
from halfstep.errors import unknown_name
from halfstep.recipes.choices import own_options


def listing(what: str = "") -> Iterator[Table]:
    """A table for each family of the catalog, or for the one called ``what``.

    Raises:
        UnknownNameError: with the names of the families.
    """
    families = {f"{entry.family}s": entry.family for entry in CATALOG}
    if what and what not in families:
        raise unknown_name("list", what, families)
    for title in [what] if what else families:
        table = Table(title=title, title_justify="left")
        for column in ("name", "what it is", "source"):
            table.add_column(column, overflow="fold")
        for entry in family(families[title]).values():
            table.add_row(entry.name, "\n".join([entry.summary, *_details(entry)]), entry.source)
        yield table


def _details(entry: Entry) -> Iterator[str]:
    """What a target accepts, and which options of its own a recipe has."""
    if entry.family == "target":
        yield _accepted(entry.load())
    if entry.family == "recipe":
        for name, parameter in own_options(entry.name).items():
            if name != "plan":  # which the command line has an option for
                yield f"--set {name}={parameter.default}"


def _accepted(target: Target) -> str:
    """The types that a target takes."""
    sides = (
        ("activations", target.activation, target.activation_bits),
        ("weights", target.weight, target.weight_bits),
    )
    return "; ".join(
        f"{what} {qtype}, or {low} to {high} bits" for what, qtype, (low, high) in sides
    )
