"""Golden files: what the program computes at every site, sample by sample, as a device has it."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core.execution import BATCH
from halfstep.data import batches
from halfstep.errors import DataError, ExportError
from halfstep.files import write_folder_atomically
from halfstep.formats.in_memory import InMemory
from halfstep.golden.entries import Planned, planned_inputs, planned_outputs, planned_sites
from halfstep.golden.index import INDEX, LINES, Entry, Index
from halfstep.program.engine import Engine
from halfstep.program.ir import IntProgram
from halfstep.program.serialize import program_files
from halfstep.progress import Progress, silent

Values = NDArray[Any]
CHECKERS = ("check.py", "check.c")
_OWN = frozenset({INDEX, LINES, *CHECKERS, "lock.json", "plan.yaml"})
_VALUES = re.compile(r"(in|out)?\d+\.bin")


def write_golden(
    program: IntProgram,
    data: Iterable[Any],
    folder: str | Path,
    *,
    samples: int = 4,
    sites: str = "*",
    beside: Mapping[str, bytes] | None = None,
    progress: Progress = silent,
) -> Index:
    """Write what ``program`` computes for a few samples, for firmware to test itself against.

    The folder holds a file of raw little-endian values for each site, ``golden.json`` and
    ``golden.txt``, which say what is in them, and ``check.py`` and ``check.c``, which compare a
    device's dumps with them. Where the target's artifact has another order of axes, or stores codes
    with an offset, the files are as the artifact has them.

    Args:
        program: from ``lower``, or loaded.
        data: batches, in any form that ``quantize`` takes; the first samples are run, one by one.
        folder: replaced as a whole.
        samples: how many to run at most.
        sites: which to write, as a glob.
        beside: files to put beside, such as ``lock.json`` and ``plan.yaml`` of a saved result.
        progress: shows how far it is.

    Returns:
        What was written.

    Raises:
        DataError: no data, or data of a wrong form, shape, dtype or value.
        UnknownNameError: no site matches.
        ExportError: the folder cannot be written, or holds files of others.

    Example:
        halfstep.write_golden(result.program, batches, "out/golden", samples=2)
    """
    if samples < 1:
        raise DataError(f"samples: asked for 1 or more, found {samples}")
    wanted = planned_sites(program, sites)
    _check_replaceable(Path(folder))
    written: list[Index] = []

    def fill(new: Path) -> None:
        singles = progress(_singles(program, data, samples), "golden", samples)
        written.append(_run(program, wanted, singles, new))
        (new / INDEX).write_text(written[0].to_json(), encoding="utf-8")
        (new / LINES).write_text(written[0].to_lines(), encoding="utf-8")
        for name in CHECKERS:
            (new / name).write_bytes((files("halfstep.golden") / name).read_bytes())
        for name, contents in (beside or {}).items():
            (new / name).write_bytes(contents)

    write_folder_atomically(Path(folder), fill)
    return written[0]


def _check_replaceable(folder: Path) -> None:
    """Raise ``ExportError`` if writing would delete what Halfstep did not write."""
    if not folder.is_dir():
        return
    names = sorted(path.name for path in folder.iterdir())
    if names and not is_golden(folder):
        foreign = _foreign(names) or names
        raise ExportError(
            f"{folder}: it holds files of others, such as {foreign[0]}, and the whole "
            "folder is replaced; choose a new or an empty one"
        )


def is_golden(folder: Path) -> bool:
    """Whether a folder holds golden files and nothing else."""
    names = [path.name for path in folder.iterdir()]
    return INDEX in names and not _foreign(names)


def _foreign(names: Iterable[str]) -> list[str]:
    """What ``write_golden`` did not write."""
    return [name for name in names if name not in _OWN and not _VALUES.fullmatch(name)]


def _singles(program: IntProgram, data: Iterable[Any], limit: int) -> Iterator[tuple[Values, ...]]:
    """The first samples, each as a batch of one."""
    engine = Engine(program)
    shapes = [program.tensors[name].shape for name in program.inputs]
    axes = [shape.index(BATCH) if BATCH in shape else None for shape in shapes]
    given = 0
    for index, (inputs, _) in enumerate(batches(data, program.inputs, np.asarray)):
        engine.check_inputs(inputs)
        for name, value in zip(program.inputs, inputs, strict=True):
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise DataError(f"{name}:in: batch {index}: it holds NaN or infinity; clean it")
        counts = [v.shape[axis] for v, axis in zip(inputs, axes, strict=True) if axis is not None]
        for place in range(counts[0] if counts else 1):
            yield tuple(
                value if axis is None else value.take([place], axis)
                for value, axis in zip(inputs, axes, strict=True)
            )
            given += 1
            if given == limit:
                return


def _run(
    program: IntProgram,
    wanted: Sequence[Planned],
    singles: Iterable[tuple[Values, ...]],
    folder: Path,
) -> Index:
    """Run and append, so that no more than one sample is held."""
    engine = Engine(program)
    inputs, sites, outputs = (
        [_ValueFile(folder, *planned) for planned in part]
        for part in (planned_inputs(program), wanted, planned_outputs(program))
    )
    names = [entry.name for entry, _ in wanted]
    samples = 0
    for sample in singles:
        run = engine.run(sample, keep=names)
        values = (*sample, *(run.kept[name] for name in names), *run.outputs)
        for file, value in zip([*inputs, *sites, *outputs], values, strict=True):
            file.add(value)
        samples += 1
    hashes = {n: hashlib.sha256(data).hexdigest() for n, data in program_files(program).items()}
    return Index(
        program.target,
        samples,
        inputs=[file.entry() for file in inputs],
        sites=[file.entry() for file in sites],
        outputs=[file.entry() for file in outputs],
        program=hashes,
    )


class _ValueFile:
    """A file that grows by the values of one sample after the other."""

    def __init__(self, folder: Path, entry: Entry, layout: InMemory) -> None:
        self._path = folder / entry.file
        self._entry, self._layout = entry, layout
        self._hash = hashlib.sha256()

    def add(self, values: Values) -> None:
        data = self._layout.stored(values).tobytes()
        with self._path.open("ab") as file:
            file.write(data)
        self._hash.update(data)
        self._entry = replace(self._entry, shape=values.shape)

    def entry(self) -> Entry:
        return replace(self._entry, sha256=self._hash.hexdigest())
