"""The verb ``export``: the writer of a program's target, whichever it is."""

import inspect
from pathlib import Path
from typing import Any

from halfstep.catalog import find
from halfstep.core.target import Target, resolve
from halfstep.errors import ExportError
from halfstep.program.ir import IntProgram


def export(program: IntProgram, path: str | Path, **options: Any) -> None:
    """Write ``program`` as its target's file, or folder; complete or not at all.

    Args:
        program: from ``lower``.
        path: the file.
        **options: of the target's writer, such as ``io="int8"`` for LiteRT.

    Raises:
        ExportError: the target has no artifact, or its writer no such option, or the file cannot be
            written.
    """
    target: Target = find("target", program.target)
    if target.export is None:
        raise ExportError(f"target '{target.name}' has no artifact; the engine runs its programs")
    writer = resolve(target.export)
    known = list(inspect.signature(writer).parameters)[2:]
    for name, value in options.items():
        if name not in known:
            found = f"has the options {', '.join(known)}" if known else "has no options"
            raise ExportError(f"{name}={value!r}: the writer of target '{target.name}' {found}")
    writer(program, path, **options)
