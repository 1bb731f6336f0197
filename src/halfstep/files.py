"""Files that are complete or absent, and folders as well."""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from halfstep.errors import ExportError


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary file beside ``path``, then rename it.

    Raises:
        ExportError: the folder is missing, not writable or full; nothing is left behind.
    """
    real = _regular(path)
    temporary = real.with_name(f".{real.name}.{os.getpid()}.part")
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

    An existing folder is replaced only when the new one is complete.

    Raises:
        ExportError: the folder cannot be written; what stood there before is still there.
    """
    path = path.resolve()
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        fill(temporary)
        temporary.chmod(0o755)
        _swap(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _regular(path: Path) -> Path:
    """Where a link leads; a device or a folder is refused, because renaming would destroy it."""
    real = path.resolve()
    if real.exists() and not real.is_file():
        raise ExportError(f"{path}: is not a regular file; choose the name of a new one")
    return real


def _swap(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    if not path.is_dir():
        raise NotADirectoryError(20, "exists and is not a folder", str(path))
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old)


def _cannot_write(path: Path, error: OSError) -> ExportError:
    return ExportError(
        f"{path}: cannot be written ({error.strerror or error}); nothing was changed. "
        "Choose a folder that exists, is writable and has room."
    )
