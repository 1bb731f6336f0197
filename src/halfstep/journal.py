"""What was done, for how long: each verb appends a record, the report renders them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Record:
    """One step: its name, its duration in seconds, and what it found."""

    verb: str
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Journal:
    """Records in the order of the work."""

    records: list[Record] = field(default_factory=list)

    @contextmanager
    def step(self, verb: str, **facts: Any) -> Iterator[Record]:
        """Time a step; facts may be added to the record while it runs."""
        record = Record(verb, facts=facts)
        begin = time.perf_counter()
        try:
            yield record
        finally:
            record.seconds = time.perf_counter() - begin
            self.records.append(record)

    def __str__(self) -> str:
        return "\n".join(
            f"{r.verb:<10} {r.seconds:8.2f} s  " + "  ".join(f"{k}={v}" for k, v in r.facts.items())
            for r in self.records
        )
