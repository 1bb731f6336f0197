"""This machine's C compiler: files of C as objects, each compiled once, and programs of them."""

import atexit
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from halfstep.errors import ExportError, RuntimeUnavailableError

STANDARD = ("-std=c99", "-ffp-contract=off")
_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)


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
    return _made(source, (*options, "-E", "-P"), "i", name).read_bytes()


def compiled(source: Path, options: Sequence[str], name: str = "") -> Path:
    """The object of ``source``.

    Args:
        source: a file of C.
        options: of the compiler.
        name: what an error calls ``source``; by default its path.

    Raises:
        ExportError: the compiler refuses it.
    """
    return _made(source, (*options, "-c"), "o", name)


def _made(source: Path, options: Sequence[str], kind: str, name: str) -> Path:
    """What the compiler makes of ``source``: found again by what it reads and how it is asked."""
    folders = [source.parent, *(Path(o[2:]) for o in options if o.startswith("-I"))]
    key = hashlib.sha256(compiler().encode())
    key.update(" ".join(option for option in options if not option.startswith("-I")).encode())
    for content in _read(source, folders, set()):
        key.update(len(content).to_bytes(8, "little") + content)
    made = _objects() / f"{key.hexdigest()}.{kind}"
    if not made.is_file():
        part = made.with_suffix(f".{os.getpid()}.part")
        names = {str(source): name or str(source)}
        _run([*options, str(source), "-o", str(part)], names)
        part.replace(made)
    return made


def _read(source: Path, folders: Sequence[Path], known: set[Path]) -> Iterator[bytes]:
    """The file and all files of ``folders`` that it includes, each once."""
    if source in known:
        return
    known.add(source)
    content = source.read_bytes()
    yield content
    for included in _INCLUDE.findall(content):
        found = next((f for f in (p / os.fsdecode(included) for p in folders) if f.is_file()), None)
        if found is not None:  # what is missing, the compiler names
            yield from _read(found, folders, known)


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
