"""The verb ``export``: the writer of a program's target, whichever it is."""

from pathlib import Path

from halfstep.catalog import find
from halfstep.core.target import Target, resolve
from halfstep.errors import ExportError
from halfstep.program.ir import IntProgram


def export(program: IntProgram, path: str | Path) -> None:
    """Write ``program`` as its target's file; complete or not at all.

    Raises:
        ExportError: the target has no file, or it cannot be written.
    """
    target: Target = find("target", program.target)
    if target.export is None:
        raise ExportError(f"target '{target.name}' has no artifact; the engine runs its programs")
    resolve(target.export)(program, path)
