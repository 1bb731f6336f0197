"""Models in C, compiled with every warning and sanitizer, beside the engine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.export.c99.writer import export
from halfstep.program.engine import Engine
from halfstep.program.ir import IntProgram
from halfstep.runtimes.cc import CModel

Array = NDArray[Any]
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wshadow")
SANITIZED = ("-O1", *WARNINGS, "-fsanitize=undefined,address", "-fno-sanitize-recover=all")


def written(program: IntProgram, folder: Path) -> Path:
    """The folder of a program in C."""
    export(program, folder / "model")
    return folder / "model"


def codes_of_engine(program: IntProgram, inputs: Sequence[Array]) -> dict[str, Array]:
    run = Engine(program).run(inputs, keep=program.sites)
    return {**run.kept, **dict(zip(program.outputs, run.outputs, strict=True))}


def differing(mine: Mapping[str, Array], found: Mapping[str, Array]) -> dict[str, int]:
    """How many codes differ at each site where any does."""
    counts = {}
    for name, codes in mine.items():
        assert codes.shape == found[name].shape, f"{name}: {codes.shape}, {found[name].shape}"
        counts[name] = int(np.count_nonzero(codes != found[name]))
    return {name: n for name, n in counts.items() if n}


def differences(
    program: IntProgram,
    inputs: Sequence[Array],
    folder: Path,
    flags: Sequence[str] = SANITIZED,
) -> dict[str, int]:
    """The same, engine against C, on every site and output."""
    model = CModel(folder, program.sites, flags)
    return differing(codes_of_engine(program, inputs), model.run(inputs))
