"""What the post-training scripts have in common: their arguments, inputs and line of JSON."""

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx

from benchmarks.measure import resident_growth

Inputs = dict[str, np.ndarray]


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that every post-training script has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("file", type=Path, help="float ONNX file")
    made.add_argument("calibration", type=Path, help=".npy of the input, or .npz by input name")
    made.add_argument("out", type=Path, help="int8 ONNX file to write")
    made.add_argument("--images", type=int, default=64, help="how many inputs to calibrate on")
    made.add_argument("--batch", type=int, default=1, help="how many of them at a time")
    return made


def batches(model: Path, calibration: Path, images: int, batch: int) -> list[Inputs]:
    """The first ``images`` inputs, named as the model's graph names them."""
    names = [value.name for value in onnx.load(model, load_external_data=False).graph.input]
    loaded = np.load(calibration)
    arrays = {names[0]: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    if set(arrays) != set(names):
        raise SystemExit(f"{calibration} has {sorted(arrays)}, {model} wants {sorted(names)}")
    if (found := min(map(len, arrays.values()))) < images:
        raise SystemExit(f"{calibration} has {found} inputs, asked for {images}")
    if images % batch:
        # ONNX Runtime 1.32 stacks its histograms' inputs: a shorter last batch is an error there.
        raise SystemExit(f"{images} inputs are no whole number of batches of {batch}")
    return [
        {name: array[start : start + batch] for name, array in arrays.items()}
        for start in range(0, images, batch)
    ]


def report(
    quantize: Callable[[Path], None], out: Path, packages: Sequence[str], **more: object
) -> None:
    """Time ``quantize``, which writes the path that it gets, and print the line of JSON."""
    part = out.with_suffix(".part.onnx")
    with resident_growth() as resident, redirect_stdout(sys.stderr):
        begin = time.perf_counter()
        quantize(part)
        seconds = time.perf_counter() - begin
    part.replace(out)
    line = {
        "seconds": round(seconds, 3),
        "megabytes": round(resident.growth, 1),
        "file": str(out),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    print(json.dumps(line | more))
