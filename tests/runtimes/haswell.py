"""Files run on a CPU with AVX2 and without VNNI: under ``qemu-x86_64 -cpu Haswell``.

The emulated process is a child that imports numpy and ONNX Runtime alone, and runs many files:
starting it costs two seconds of a CPU, a small file a few hundredths.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

QEMU = shutil.which("qemu-x86_64")
MISSING = "qemu-x86_64 is not installed (apt-get install qemu-user): no CPU without VNNI to run on"


@dataclass(frozen=True, eq=False)
class Job:
    """One file and what to run it on.

    Attributes:
        model: the ONNX file.
        inputs: batches, each by name of the input.
        options: session options by name.
        outputs: tensors to return; none for the outputs of the file.
    """

    model: bytes
    inputs: Sequence[Arrays]
    options: Mapping[str, str] = field(default_factory=dict)
    outputs: Sequence[str] = ()


Results = dict[str, list[dict[str, NDArray[Any]]]]


def run_native(jobs: Mapping[str, Job], folder: Path) -> Results:
    """What every job gives on this CPU: for each batch, the outputs by name."""
    return _run(jobs, folder, [sys.executable])


def run_haswell(jobs: Mapping[str, Job], folder: Path) -> Results:
    """The same on an emulated Haswell."""
    assert QEMU is not None, MISSING
    return _run(jobs, folder, [QEMU, "-cpu", "Haswell", sys.executable])


def _run(jobs: Mapping[str, Job], folder: Path, python: Sequence[str]) -> Results:
    folder.mkdir(parents=True, exist_ok=True)
    for index, job in enumerate(jobs.values()):
        (folder / f"{index}.onnx").write_bytes(job.model)
        named = {f"{i}/{k}": v for i, batch in enumerate(job.inputs) for k, v in batch.items()}
        np.savez(folder / f"{index}.in.npz", **named)
    told = [
        {"options": dict(job.options), "batches": len(job.inputs), "outputs": list(job.outputs)}
        for job in jobs.values()
    ]
    (folder / "jobs.json").write_text(json.dumps(told))
    packages = Path(onnxruntime.__file__).parents[1]
    # -S: no site, so that nothing but what the child imports is read under emulation.
    done = subprocess.run(
        [*python, "-S", str(Path(__file__).with_name("session_child.py")), str(folder)],
        env={**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        name: _results(folder / f"{index}.out.npz", len(job.inputs))
        for index, (name, job) in enumerate(jobs.items())
    }


def _results(file: Path, n_batches: int) -> list[dict[str, NDArray[Any]]]:
    with np.load(file) as stored:
        batches: list[dict[str, NDArray[Any]]] = [{} for _ in range(n_batches)]
        for key in stored.files:
            index, _, name = key.partition("/")
            batches[int(index)][name] = stored[key]
    return batches
