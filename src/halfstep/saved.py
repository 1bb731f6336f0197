"""A folder that ``Result.save`` wrote, opened again: to verify it later, or on other data."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from halfstep.catalog import find
from halfstep.core.target import Target
from halfstep.errors import DataError, PlanError
from halfstep.graph.capture import Example, capture
from halfstep.graph.insert import prepare
from halfstep.graph.plan import Plan
from halfstep.lower import draft
from halfstep.program.ir import IntProgram
from halfstep.program.serialize import DESCRIPTION, load_program, same_program
from halfstep.quantize import stages
from halfstep.verify import Stage


@dataclass(frozen=True, eq=False)
class Saved:
    """What is needed to verify again.

    Attributes:
        folder: where it was saved.
        program: the integer program.
        artifact: the file, or folder, to compare it with.
    """

    folder: Path
    program: IntProgram
    artifact: Path


def open_saved(path: str | Path) -> Saved:
    """Open a saved folder, or one artifact in it.

    Raises:
        DataError: it was not saved by Halfstep, or is damaged.
        PlanError: its target has no artifact.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    folder = path.parent if path.is_file() or _is_artifact(path) else path
    program = load_program(folder)
    target: Target = find("target", program.target)
    if target.artifact is None:
        raise PlanError(f"{path}: target '{target.name}' has no artifact: nothing to compare with")
    artifact = folder / target.artifact if path == folder else path
    if not artifact.exists():
        raise DataError(f"{artifact}: it is missing from the saved folder; save it again")
    return Saved(folder, program, artifact)


def _is_artifact(folder: Path) -> bool:
    """Whether this is an artifact that is a folder, and not what it was saved into."""
    return not (folder / DESCRIPTION).is_file() and (folder.parent / DESCRIPTION).is_file()


def model_stages(saved: Saved, model: nn.Module, example: Example) -> dict[str, Stage]:
    """``model``, and ``model`` with quantizers on the saved grids, to be compared by ``verify``.

    The second is left out where it is not what the program came from: ``model`` has other weights,
    or the recipe changed them.
    """
    quantized = prepare(capture(model, example), Plan.load(saved.folder / "plan.yaml"))
    for quantizer in quantized.quantizers():
        quantizer.set_grid(saved.program.grid(quantizer.site))
    found = stages(model, quantized)
    if not same_program(draft(quantized), saved.program):
        del found["fake-quantized"]
    return found
