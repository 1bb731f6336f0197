"""What a cell of a table shows of a row of figures."""

from collections.abc import Callable, Mapping
from typing import Any

Cell = Callable[[Mapping[str, Any]], str]


def get(key: str, form: str = "{}") -> Cell:
    return lambda row: form.format(row[key]) if row.get(key) is not None else ""


def top1(stage: str) -> Cell:
    return lambda row: f"{row['accuracy'][stage]:.2%}" if stage in row["accuracy"] else ""


def differ(pair: str) -> Cell:
    """The share of decisions that differ, from the share that agree."""
    return lambda row: f"{1 - row['agreement'][pair]:.2%}" if pair in row["agreement"] else ""


def verdict_of(row: Mapping[str, Any]) -> str:
    return (
        f"{row['status']}: {row['mismatches']} of {row['codes']:,} codes, {row['sites']} sites, "
        f"{row['samples']} samples"
    )


def histogram(side: str) -> Cell:
    """How many sites have how many bits."""
    return lambda row: ", ".join(f"{bits}: {count}" for bits, count in row[side].items())


def seconds(row: Mapping[str, Any]) -> str:
    steps = row.get("seconds") or {}
    return ", ".join(f"{name} {spent:.1f}" for name, spent in steps.items())
