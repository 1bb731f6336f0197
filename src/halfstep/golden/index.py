"""The index of golden files: as JSON for people and Python, as lines of text for C."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

SCHEMA = 1
INDEX, LINES = "golden.json", "golden.txt"
FIRST_LINE = "halfstep golden 1"


@dataclass(frozen=True)
class Entry:
    """One file of values, sample behind sample.

    Attributes:
        name: of the site, input or output.
        file: its name.
        kind: of the operation that makes it; "input" for an input of the program.
        order: the axes of ``shape`` in the order of memory.
        dtype: of the values in the file, little-endian.
        shape: of one sample, in the order of the program.
        type: of the codes, such as "uint8" or "int4"; empty for real values.
        scale: a code stands for ``scale * (code - zero_point)``; ``None`` for real values.
        zero_point: of the values as they are in the file.
        exact: whether a device must give these very values: nothing before it is a float kernel.
        inputs: of the operation: sites and real values, without constants.
        sha256: of the file.
    """

    name: str
    file: str
    kind: str
    order: tuple[int, ...]
    dtype: str
    shape: tuple[int, ...] = ()
    type: str = ""
    scale: float | None = None
    zero_point: int | None = None
    exact: bool = True
    inputs: tuple[str, ...] = ()
    sha256: str = ""

    @property
    def values(self) -> int:
        """How many a sample has."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Index:
    """What lies in a folder of golden files.

    Attributes:
        target: of the program.
        samples: how many every file holds.
        inputs: real values, or indices, that the program takes, in order.
        sites: codes, and scaled sums, in order of execution.
        outputs: real values that the program gives, in order.
        program: hashes of the program's files, as in ``lock.json``.
    """

    target: str
    samples: int
    inputs: Sequence[Entry]
    sites: Sequence[Entry]
    outputs: Sequence[Entry]
    program: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """``golden.json``."""
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "target": self.target,
            "program": dict(self.program),
            "samples": self.samples,
            "byte_order": "little",
        }
        for part in ("inputs", "sites", "outputs"):
            data[part] = [asdict(entry) for entry in getattr(self, part)]
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    def to_lines(self) -> str:
        """``golden.txt``: file, type, samples, values of one, whether to compare, and the site."""
        rows = [
            f"{e.file} {e.dtype} {self.samples} {e.values} {int(e.exact)} {e.name}"
            for e in self.sites
        ]
        return "\n".join([FIRST_LINE, *rows, ""])
