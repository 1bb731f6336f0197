"""``lock.json``: what a saved result is made of and what made it, so that a change is found.

Two runs of the same thing on the same machine give the same lock, byte for byte: nothing in it
depends on when or where it was written.
"""

import hashlib
import inspect
import json
import math
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from halfstep import ptq
from halfstep.errors import DataError
from halfstep.graph.plan import Plan
from halfstep.origin import Origin
from halfstep.program.serialize import ARRAYS, DESCRIPTION

LOCK, PLAN = "lock.json", "plan.yaml"
SCHEMA = 1
Hashes = Mapping[str, str]
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Lock:
    """What ``lock.json`` says; a hash is the SHA-256 of a file, by its path in the folder.

    Attributes:
        target: of the program.
        recipe: a name in the catalog; empty if the result says nothing of its origin.
        choices: what was asked of the recipe.
        calibration: how many batches and samples the recipe read, and their hash.
        seeds: of every method that draws at random, unless ``choices`` says otherwise.
        artifact: its file, or the files of its folder; none if the target has no artifact.
        program: the two files of the program.
        plan: the file of the plan.
        versions: of Python and every package that computed.
        machine: its architecture.
    """

    target: str
    recipe: str
    choices: Mapping[str, Any]
    calibration: Mapping[str, Any]
    seeds: Mapping[str, int]
    artifact: Hashes
    program: Hashes
    plan: Hashes
    versions: Mapping[str, str]
    machine: str

    def __post_init__(self) -> None:
        for name in ("choices", "calibration", "seeds", "versions"):
            if not isinstance(getattr(self, name), Mapping):
                raise DataError(f"lock: {name}: asked for names and values, found another form")
        for name in ("artifact", "program", "plan"):
            files = getattr(self, name)
            if not isinstance(files, Mapping) or not all(
                isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in files.values()
            ):
                raise DataError(f"lock: {name}: asked for files and their SHA-256, found {files!r}")

    @classmethod
    def of(
        cls,
        folder: Path,
        target: str,
        artifact: str | None,
        origin: Origin | None,
        versions: Mapping[str, str],
    ) -> "Lock":
        """The lock of a result whose files lie in ``folder``."""
        return cls(
            target=target,
            recipe="" if origin is None else origin.recipe,
            choices={} if origin is None else _plain(origin.choices),
            calibration={} if origin is None else asdict(origin.data),
            seeds=_seeds(),
            artifact={} if artifact is None else _hashes(folder, [artifact]),
            program=_hashes(folder, [DESCRIPTION, ARRAYS]),
            plan=_hashes(folder, [PLAN]),
            versions=dict(versions),
            machine=platform.machine(),
        )

    @classmethod
    def load(cls, path: str | Path) -> "Lock":
        """Read what ``to_bytes`` gave.

        Raises:
            DataError: the file is missing, damaged, or of another version of Halfstep.
        """
        try:
            found = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise DataError(
                f"{path}: no lock ({error.strerror}); 'halfstep quantize' writes one into its "
                "folder"
            ) from error
        except ValueError as error:
            raise DataError(f"{path}: a damaged lock ({error}); save the result again") from error
        schema = found.pop("schema", None) if isinstance(found, dict) else None
        if schema != SCHEMA:
            raise DataError(f"{path}: asked for a lock of schema {SCHEMA}, found {schema}")
        wanted = {field.name for field in fields(cls)}
        try:
            if others := sorted(wanted ^ found.keys()):
                has = "lacks" if others[0] in wanted else "has an unknown"
                raise DataError(f"it {has} {others[0]!r}")
            return cls(**found)
        except DataError as error:
            raise DataError(f"{path}: a damaged lock ({error}); save the result again") from error

    def to_bytes(self) -> bytes:
        """As it is written."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, allow_nan=False)
        return f"{text}\n".encode()

    def first_difference(self, folder: str | Path) -> str:
        """What in ``folder`` is not what was locked, the artifact first; empty if nothing is."""
        for what in ("artifact", "program", "plan"):
            locked: Hashes = getattr(self, what)
            found = _hashes(Path(folder), sorted({name.partition("/")[0] for name in locked}))
            for name in {**locked, **found}:
                if locked.get(name) != found.get(name):
                    return (
                        f"{name}: the {what} is not the locked one: asked for SHA-256 "
                        f"{locked.get(name, 'of no such file')}, found "
                        f"{found.get(name, 'no such file')}"
                    )
        return ""

    def other_versions(self, installed: Mapping[str, str]) -> list[str]:
        """A line for every package that is installed in another version than the locked one."""
        return [
            f"{name}: {version} made it, {installed.get(name, 'nothing')} is installed"
            for name, version in self.versions.items()
            if installed.get(name) != version
        ]


def _hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The hash of every file of these names, and of every file in folders of these names."""
    found = {}
    for name in names:
        path = folder / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                with file.open("rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").hexdigest()
                found[file.relative_to(folder).as_posix()] = digest
    return found


def _seeds() -> dict[str, int]:
    """The seeds of the methods; no recipe gives another."""
    parameters = {name: inspect.signature(getattr(ptq, name)).parameters for name in ptq.__all__}
    return {name: found["seed"].default for name, found in parameters.items() if "seed" in found}


def _plain(value: Any) -> Any:
    """A choice as JSON; a plan is the file beside the lock, and what JSON lacks is its text."""
    if isinstance(value, Plan):
        return PLAN
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)
