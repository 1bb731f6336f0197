"""CPUs with and without VNNI: what it costs that one file gives the same codes on both."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import halfstep as hs
from benchmarks import images, networks
from halfstep.report.latency import interleaved_minimum
from halfstep.runtimes.ort import OnnxRuntimeModel
from tests.runtimes.haswell import QEMU, Job, run_haswell, run_native

NETWORK = "efficientnet_lite0"
FULL, REPAIRED, NARROW = "full range", "repaired by channel", "7 bits everywhere"
EXACT = "full range, exact kernels"
WEIGHTS: dict[str, dict[str, str]] = {
    FULL: {},
    REPAIRED: {"target": "onnxruntime_any"},
    NARROW: {"weights": "int7_narrow"},
}
PRECISION = {"session.x64quantprecision": "1"}
EMULATED = 8
"""Photos that run on the emulated CPU."""


def saturation(shared: Path, work: Path) -> list[dict[str, Any]]:
    """EfficientNet-Lite0 with three ranges of weights: accuracy, speed, codes on a Haswell."""
    model = networks.build(NETWORK)
    photos = images.imagenet(shared, work)
    files, repaired = {}, {}
    for name, choices in WEIGHTS.items():
        result = hs.quantize(model, photos[::5], calibrator="mse", verify_samples=0, **choices)
        files[name] = work / "saturation" / name.replace(" ", "_") / "model.onnx"
        result.save(files[name].parent)
        steps = {record.verb: record.facts for record in result.journal.records}
        repaired[name] = steps.get("pair sums", {})
    top1 = {name: _top1(file, photos) for name, file in files.items()}
    x = next(iter(photos))[0][:EMULATED].numpy()
    milliseconds, differ = _milliseconds(files, x[:1]), _differ(files, x, work)
    top1[EXACT], repaired[EXACT] = top1[FULL], {}
    return [
        {
            "weights": name,
            "top1": top1[name],
            "repaired": repaired[name].get("channels"),
            "error": repaired[name].get("squared error"),
            "milliseconds": milliseconds[name],
            "differ": differ.get(name),
        }
        for name in (FULL, EXACT, REPAIRED, NARROW)
    ]


def _top1(file: Path, photos: images.LabelledImages) -> float:
    model, right, total = OnnxRuntimeModel(file), 0, 0
    for inputs, labels in photos:
        (output,) = model.run([inputs.numpy()]).values()
        right += int((output.argmax(-1) == labels.numpy()).sum())
        total += len(labels)
    return right / total


def _milliseconds(files: dict[str, Path], x: np.ndarray) -> dict[str, float]:
    """Of one photo on this CPU, one thread."""
    options = {name: (file, {}) for name, file in files.items()}
    options[EXACT] = (files[FULL], PRECISION)
    sessions = {name: _session(*pair) for name, pair in options.items()}
    runs = {
        name: partial(session.run, None, {session.get_inputs()[0].name: x})
        for name, session in sessions.items()
    }
    return {name: 1000 * found for name, found in interleaved_minimum(runs, rounds=60).items()}


def _session(file: Path, entries: dict[str, str]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _differ(files: dict[str, Path], x: np.ndarray, work: Path) -> dict[str, float]:
    """The share of output codes that are others on an emulated Haswell; nothing without qemu."""
    if QEMU is None:
        return {}
    name = _session(files[FULL], {}).get_inputs()[0].name
    jobs = {kind: Job(file.read_bytes(), [{name: x}]) for kind, file in files.items()}
    jobs[EXACT] = Job(files[FULL].read_bytes(), [{name: x}], PRECISION)
    here = run_native(jobs, work / "saturation" / "native")
    there = run_haswell(jobs, work / "saturation" / "haswell")
    found = {}
    for kind in jobs:
        ((mine,), (other,)) = (list(results[kind][0].values()) for results in (here, there))
        found[kind] = float(np.mean(mine != other))
    return found
