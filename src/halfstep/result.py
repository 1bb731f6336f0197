"""What ``quantize`` gives back, and how it is saved: whole or not at all."""

import json
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from halfstep.catalog import family
from halfstep.errors import ExportError
from halfstep.files import Contents, size_of, write_contents, write_folder_atomically
from halfstep.formats.c_folder import MANIFEST
from halfstep.golden.vectors import is_golden
from halfstep.graph.insert import QuantizedModel
from halfstep.journal import Journal
from halfstep.lock import LOCK, PLAN, Lock
from halfstep.origin import Origin
from halfstep.program.ir import IntProgram
from halfstep.program.serialize import ARRAYS, DESCRIPTION, save_program
from halfstep.report.page import report_page
from halfstep.verdict import Verdict

_FILES = frozenset(
    {
        DESCRIPTION,
        ARRAYS,
        "program.txt",
        "encodings.json",
        PLAN,
        "verdict.json",
        "report.html",
        LOCK,
    }
)
_PACKAGES = ("halfstep", "torch", "numpy", "onnx", "onnx-ir", "onnxruntime")
_OPTIONAL = ("ai-edge-litert", "openvino")


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A quantized model with its proof.

    Attributes:
        model: the calibrated model, an ``nn.Module``.
        program: the integer program.
        artifact: name and bytes of the file for the target, or of each file of a folder;
            ``None`` if the target has none.
        verdict: program against artifact; ``None`` if nothing was verified.
        journal: what was done, for how long.
        origin: recipe, choices and data, for the lock; ``None`` if nobody says.
    """

    model: QuantizedModel
    program: IntProgram
    artifact: tuple[str, Contents] | None
    verdict: Verdict | None
    journal: Journal
    origin: Origin | None = None

    def __repr__(self) -> str:
        found = "not verified" if self.verdict is None else str(self.verdict).partition("\n")[0]
        return f"Result({found})"

    def save(self, folder: str | Path) -> None:
        """Write the artifact and what explains it into ``folder``, which is replaced as a whole.

        Golden files that lie in it go with it. Beside the artifact: the program (``program.json``
        and ``program.safetensors``, and for people ``program.txt``), ``encodings.json``,
        ``plan.yaml``, ``verdict.json``, ``lock.json`` and, for people, ``report.html``.

        Raises:
            ExportError: the folder cannot be written, or holds other files; what stood there
                before is still there.
        """
        check_replaceable(Path(folder))
        write_folder_atomically(Path(folder), self._fill)

    def _fill(self, folder: Path) -> None:
        file: tuple[str, int] | None = None
        if self.artifact is not None:
            name, contents = self.artifact
            write_contents(folder / name, contents)
            file = name, size_of(contents)
        save_program(self.program, folder)
        (folder / "encodings.json").write_text(json.dumps(encodings(self.program), indent=1))
        self.model.plan.save(folder / PLAN)
        (folder / "program.txt").write_text(f"{self.program}\n")
        if self.verdict is not None:
            proof = {"versions": versions(), **self.verdict.to_dict()}
            (folder / "verdict.json").write_text(json.dumps(proof, indent=1))
        page = report_page(self.program, self.verdict, self.journal, file, versions())
        (folder / "report.html").write_text(page, encoding="utf-8")
        written = None if file is None else file[0]
        lock = Lock.of(folder, self.program.target, written, self.origin, versions())
        (folder / LOCK).write_bytes(lock.to_bytes())


def check_replaceable(folder: Path) -> None:
    """Raise ``ExportError`` if saving to ``folder`` would delete what Halfstep did not write."""
    if not folder.is_dir():
        return
    entries = sorted(folder.iterdir())
    foreign = [path.name for path in entries if _is_foreign(path)]
    if entries and (foreign or not (folder / "encodings.json").is_file()):
        raise ExportError(
            f"{folder}: it holds files of others, such as {(foreign or [entries[0].name])[0]}, and "
            "saving replaces the whole folder; choose a new or an empty one"
        )


def _is_foreign(path: Path) -> bool:
    """Whether neither ``save`` nor ``write_golden`` wrote this."""
    artifacts = {entry.load().artifact for entry in family("target").values()}
    if path.is_dir():  # exporters say in their folders what is in them
        return not is_golden(path) and not (path.name in artifacts and (path / MANIFEST).is_file())
    return path.name not in _FILES | artifacts


def encodings(program: IntProgram) -> dict[str, Any]:
    """Scale, zero point, type and axis of every tensor of codes, by its site."""
    sites = {}
    for name, tensor in program.tensors.items():
        if tensor.grid is not None:
            grid = tensor.grid
            sites[name] = {
                "type": grid.qtype.name,
                "scale": grid.scale.tolist(),
                "zero_point": grid.zero_point.tolist(),
                "axis": grid.axis,
            }
            if grid.group_size is not None:
                sites[name]["group_size"] = grid.group_size
    return {"schema": 1, "target": program.target, "sites": sites}


def versions() -> dict[str, str]:
    """What was installed when a proof was made."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    for name in _OPTIONAL:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
