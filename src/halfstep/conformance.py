"""One model on every target: how exactly each runs it, how fast, and what it refuses.

Every target plans, calibrates, lowers and proves the model by its own rules, as ``quantize`` does;
a target that refuses it says why. Latencies are those of one sample, beside the float model in the
same runtime.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from halfstep.catalog import family, find
from halfstep.core.target import Target
from halfstep.errors import HalfstepError
from halfstep.files import Contents, size_of
from halfstep.formats.c_folder import COST
from halfstep.progress import Progress, silent
from halfstep.quantize import quantize
from halfstep.report.latency import Gain, compare_with_float
from halfstep.verdict import Verdict


@dataclass(frozen=True, eq=False)
class Conformance:
    """One target's row.

    Attributes:
        target: its name.
        verdict: program against artifact; ``None`` if it was refused, or nothing runs it here.
        gain: size and speed against float in the same runtime; ``None`` where there is no float.
        size: bytes of the artifact; ``None`` if there is none.
        rom: bytes of the read-only data of an artifact that is source code, as it says itself;
            ``None`` for others.
        note: why there is no verdict or no gain; empty if there are both.
    """

    target: str
    verdict: Verdict | None
    gain: Gain | None
    size: int | None
    note: str
    rom: int | None = None

    @property
    def exit_code(self) -> int:
        """1 for a verdict that failed."""
        return 0 if self.verdict is None else self.verdict.exit_code


def conformance(
    model: nn.Module,
    data: Iterable[Any],
    *,
    targets: Iterable[str] | None = None,
    verify_samples: int = 64,
    timed: bool = True,
    progress: Progress = silent,
    **choices: Any,
) -> tuple[Conformance, ...]:
    """Prove ``model`` on every target that has an artifact.

    Args:
        model: a float model; it is left as it was.
        data: calibration batches, of which the first samples are verified on; read once a target
            (an iterator, which can be read once only, is kept).
        targets: names in the catalog; by default all with an artifact.
        verify_samples: how many samples each proof runs on.
        timed: measure latencies as well.
        progress: wraps the targets.
        **choices: of ``quantize``, for every target.

    Raises:
        UnknownNameError: a target that is not in the catalog.
    """
    tables = [find("target", name) for name in targets or family("target")]
    kept = list(data) if isinstance(data, Iterator) else data
    return tuple(
        _on(model, kept, target, verify_samples, timed, choices)
        for target in progress([t for t in tables if t.artifact is not None], "targets")
    )


def _on(
    model: nn.Module,
    data: Iterable[Any],
    target: Target,
    samples: int,
    timed: bool,
    choices: dict[str, Any],
) -> Conformance:
    try:
        result = quantize(model, data, target=target.name, verify_samples=samples, **choices)
    except HalfstepError as error:
        return Conformance(target.name, None, None, None, f"refused: {error}")
    contents = None if result.artifact is None else result.artifact[1]
    size, rom = (None, None) if contents is None else (size_of(contents), _rom(contents))
    if target.run is None:
        return Conformance(target.name, None, None, size, "written; no runtime here opens it", rom)
    gain: Gain | None = None
    note = ""
    if timed:
        try:
            gain = compare_with_float(result)
        except HalfstepError as error:
            note = str(error)
    return Conformance(target.name, result.verdict, gain, size, note, rom)


def _rom(contents: Contents) -> int | None:
    """What a folder of C says of its constants."""
    if isinstance(contents, bytes) or COST not in contents:
        return None
    return int(json.loads(contents[COST])["totals"]["rom"])
