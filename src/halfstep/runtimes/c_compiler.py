"""This machine's C compiler: files of C as objects, each compiled once, and programs of them."""

import atexit
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from halfstep.errors import ExportError, RuntimeUnavailableError

STANDARD = ("-std=c99", "-ffp-contract=off")


def compiler() -> str:
    """The C compiler: ``$CC``, or cc, gcc or clang.

    Raises:
        RuntimeUnavailableError: there is none.
    """
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        raise RuntimeUnavailableError(
            f"running a model in C needs a C compiler, and there is no {' or '.join(names)}: "
            "install gcc or clang, or name one in the environment variable CC"
        )
    return found


def preprocessed(source: Path, options: Sequence[str], name: str = "") -> bytes:
    """What the compiler reads: ``source`` with all that it includes, without comments.

    Args:
        source: a file of C.
        options: of the compiler.
        name: what an error calls ``source``; by default its path.

    Raises:
        ExportError: the compiler refuses it.
    """
    return _run([*options, "-E", "-P", str(source)], {str(source): name or str(source)})


def compiled(source: Path, options: Sequence[str], name: str = "") -> Path:
    """The object of ``source``, found by what the compiler reads and how it is asked.

    Args:
        source: a file of C.
        options: of the compiler.
        name: what an error calls ``source``; by default its path.

    Raises:
        ExportError: the compiler refuses it.
    """
    read = preprocessed(source, options, name)
    flags = " ".join(option for option in options if not option.startswith("-I"))
    key = hashlib.sha256(compiler().encode() + flags.encode() + read).hexdigest()
    made = _objects() / f"{key}.o"
    if not made.is_file():
        part = made.with_suffix(f".{os.getpid()}.part")
        names = {str(source): name or str(source)}
        _run([*options, "-c", str(source), "-o", str(part)], names)
        part.replace(made)
    return made


def linked(objects: Mapping[Path, str], options: Sequence[str], program: Path, name: str) -> None:
    """Make ``program`` of objects.

    Args:
        objects: each with what an error calls it: what it was compiled from.
        options: of the compiler.
        program: the file to write.
        name: what an error calls ``program``.

    Raises:
        ExportError: the compiler refuses it.
    """
    names = {str(program): name} | {str(file): source for file, source in objects.items()}
    _run([*options, *map(str, objects), "-lm", "-o", str(program)], names)


@cache
def _objects() -> Path:
    """Where objects lie while this process lives."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _run(arguments: Sequence[str], names: Mapping[str, str]) -> bytes:
    """The compiler's output. Errors call files by ``names``, the first of which is refused."""
    done = subprocess.run([compiler(), *arguments], capture_output=True, check=False)
    if done.returncode:
        words = " ".join(done.stderr.decode(errors="replace").split())
        for file, name in names.items():
            words = words.replace(file, name)
        refused = next(iter(names.values()))
        raise ExportError(f"{refused}: {compiler()} refuses it: {words[:2000]}")
    return done.stdout
