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
        path: what to write.
        **options: of the target's writer, such as ``name="model"`` in C.

    Raises:
        ExportError: the target has no file or no such option, or it cannot be written.
    """
    target: Target = find("target", program.target)
    if target.export is None:
        raise ExportError(f"target '{target.name}' has no artifact; the engine runs its programs")
    write = resolve(target.export)
    known = [
        name for name in inspect.signature(write).parameters if name not in ("program", "path")
    ]
    for name in options:
        if name not in known:
            raise ExportError(
                f"{name}: the writer of target '{target.name}' has no such option; it has "
                f"{', '.join(known) or 'none'}"
            )
    write(program, path, **options)
