"""Files that are complete or absent, and folders as well."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from halfstep.errors import ExportError

_PART = ".part"

# What an artifact holds: the bytes of a file, or those of every file of a folder by its name.
Contents = bytes | Mapping[str, bytes]


def read_contents(path: Path) -> Contents:
    """A file, or a folder of files."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())}
    return path.read_bytes()


def write_contents(path: Path, contents: Contents) -> None:
    """Into a folder that is itself written atomically, or thrown away."""
    if isinstance(contents, bytes):
        path.write_bytes(contents)
        return
    path.mkdir()
    for name, data in contents.items():
        (path / name).write_bytes(data)


def size_of(contents: Contents) -> int:
    """Bytes of all files."""
    return sum(map(len, [contents] if isinstance(contents, bytes) else contents.values()))


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary file beside ``path``, then rename it.

    Raises:
        ExportError: the folder is missing, not writable or full; nothing is left behind.
    """
    real = _regular(path)
    temporary = real.with_name(f".{real.name}.{os.getpid()}{_PART}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(real)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _cannot_write(path, error) from error
        raise


def write_folder_atomically(path: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write into a temporary folder beside ``path``, then rename it.

    An existing folder is replaced only when the new one is complete. What earlier saves left
    behind because they were killed is removed.

    Raises:
        ExportError: the folder cannot be written; what stood there before is still there.
    """
    path = path.resolve()
    workplace: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{path.name}.{os.getpid()}."
        workplace = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix, suffix=_PART))
        new = workplace / "new"
        new.mkdir()
        fill(new)
        _swap(new, path, workplace / "old")
        _remove_leftovers(path, workplace)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if workplace is not None:
            shutil.rmtree(workplace, ignore_errors=True)


def _regular(path: Path) -> Path:
    """Where a link leads; a device or a folder is refused, because renaming would destroy it."""
    real = path.resolve()
    if real.exists() and not real.is_file():
        raise ExportError(f"{path}: is not a regular file; choose the name of a new one")
    return real


def _swap(new: Path, path: Path, old: Path) -> None:
    """Put ``new`` in the place of ``path``, which becomes ``old``."""
    if not path.exists():
        new.rename(path)
        return
    if not path.is_dir():
        raise NotADirectoryError(20, "exists and is not a folder", str(path))
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise


def _remove_leftovers(path: Path, workplace: Path) -> None:
    """Remove what other saves to ``path`` left behind, unless their process still runs."""
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.[^.]+{re.escape(_PART)}")
    for folder in path.parent.iterdir():
        found = name.fullmatch(folder.name)
        if found and folder != workplace and not _runs_elsewhere(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _runs_elsewhere(process: int) -> bool:
    """Whether another process runs under this number; where that cannot be seen, one may."""
    processes = Path("/proc")
    visible = (processes / "self").exists()
    return process != os.getpid() and (not visible or (processes / str(process)).exists())


def _cannot_write(path: Path, error: OSError) -> ExportError:
    return ExportError(
        f"{path}: cannot be written ({error.strerror or error}); nothing was changed. "
        "Choose a folder that exists, is writable and has room."
    )
