"""What number formats and the published recipes cost in accuracy, on the file or on the engine."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import halfstep as hs
from benchmarks import images, networks
from benchmarks.accuracy import summary
from benchmarks.cifar10_example import resnet
from halfstep.data import batches
from halfstep.runtimes.ort import OnnxRuntimeModel

_FOUR_BITS = {"weights": "int4", "weight_calibrator": "mse"}
# What ONNX Runtime runs, by label: choices of ``quantize``.
_IN_RUNTIME: dict[str, dict[str, Any]] = {
    "W8A8": {},
    "W8A8, powers of two": {"pow2": True, "weight_calibrator": "mse"},
    "W8A8, powers of two around minmax": {"pow2": True, "calibrator": "minmax"},
    "W8A8, `krishnamoorthi_ptq`": {"recipe": "krishnamoorthi_ptq"},
    "W8A8, `jacob_int8`": {"recipe": "jacob_int8"},
    "W4A8": _FOUR_BITS,
}
# What the engine alone runs.
_IN_ENGINE: dict[str, dict[str, Any]] = {
    "W8A16": {"activations": "uint16"},
    "W16A16": {"activations": "uint16", "weights": "int16_narrow"},
    "W4A8, groups of 64": {**_FOUR_BITS, "group_size": 64},
    "W4A8, groups of 32": {**_FOUR_BITS, "group_size": 32},
    "W4A8, groups of 16": {**_FOUR_BITS, "group_size": 16},
}
_QUICK = ("W4A8, groups of 32",)


def formats(shared: Path, work: Path) -> list[dict[str, Any]]:
    """ResNet-20 on 2,000 CIFAR-10 test images, EfficientNet-Lite0 on 500 photos."""
    model = resnet.resnet20(shared / "resnet20_cifar10.safetensors")
    folder = images.cifar10_folder(work)
    calibration = images.cifar10(folder, "train", batch=64)[:256]
    test = images.cifar10(folder, "test", batch=200)[:2000]
    rows = _rows("ResNet-20", model, calibration, test, work, _IN_ENGINE)
    photos = images.imagenet(shared, work)
    network = networks.build("efficientnet_lite0")
    quick = {label: _IN_ENGINE[label] for label in _QUICK}
    return rows + _rows("EfficientNet-Lite0", network, photos[::5], photos, work, quick)


def _rows(
    name: str,
    model: nn.Module,
    calibration: Iterable[Any],
    test: images.LabelledImages,
    work: Path,
    in_engine: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    rows = []
    for label, choices in _IN_RUNTIME.items():
        result = hs.quantize(model, calibration, verify_samples=0, **choices)
        result.save(work / "formats")
        file = work / "formats" / "model.onnx"
        verdict = hs.verify(result.program, file, test[:200])
        top1 = in_runtime(result.program, file, test)
        ran = {"ran": "ONNX Runtime", "top1": top1, **summary(verdict)}
        rows.append({"network": name, "format": label, **ran})
    for label, choices in in_engine.items():
        result = hs.quantize(model, calibration, target="reference", **choices)
        top1 = _in_engine(result.program, test)
        rows.append({"network": name, "format": label, "ran": "engine", "top1": top1})
    return rows


def in_runtime(program: hs.IntProgram, file: Path, test: Iterable[Any]) -> float:
    """Top-1 of the written file."""
    runtime = OnnxRuntimeModel(file)
    return _top1(program, test, lambda inputs: runtime.run(inputs)[program.outputs[0]])


def _in_engine(program: hs.IntProgram, test: Iterable[Any]) -> float:
    engine = hs.Engine(program, "torch")
    return _top1(program, test, lambda inputs: engine.run(inputs).outputs[0])


def _top1(program: hs.IntProgram, test: Iterable[Any], run: Callable[[Any], Any]) -> float:
    right = total = 0
    for inputs, labels in batches(test, program.inputs, np.asarray):
        assert labels is not None
        right += int((run(inputs).argmax(axis=-1) == labels).sum())
        total += len(labels)
    return right / total
