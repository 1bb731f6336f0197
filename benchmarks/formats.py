"""What number formats and the published recipes cost in accuracy, on the file or on the engine."""

from collections.abc import Callable, Iterable, Sequence
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

# Label, target, choices. The weights of 4 bits have ranges of least squared error.
FORMATS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("W8A8", "onnxruntime", {}),
    ("W8A8, powers of two", "onnxruntime", {"pow2": True, "weight_calibrator": "mse"}),
    ("W8A8, powers of two around minmax", "onnxruntime", {"pow2": True, "calibrator": "minmax"}),
    ("W8A8, `krishnamoorthi_ptq`", "onnxruntime", {"recipe": "krishnamoorthi_ptq"}),
    ("W8A8, `jacob_int8`", "onnxruntime", {"recipe": "jacob_int8"}),
    ("W8A16", "reference", {"activations": "uint16"}),
    ("W16A16", "reference", {"activations": "uint16", "weights": "int16_narrow"}),
    ("W4A8", "reference", {"weights": "int4", "weight_calibrator": "mse"}),
    *(
        (
            f"W4A8, groups of {size}",
            "reference",
            {"weights": "int4", "weight_calibrator": "mse", "group_size": size},
        )
        for size in (64, 32, 16)
    ),
)


def formats(shared: Path, work: Path) -> list[dict[str, Any]]:
    """ResNet-20 on the CIFAR-10 test images, EfficientNet-Lite0 on 500 photos."""
    model = resnet.resnet20(shared / "resnet20_cifar10.safetensors")
    folder = images.cifar10_folder(work)
    calibration = images.cifar10(folder, "train", batch=64)[:256]
    rows = _rows("ResNet-20", model, calibration, images.cifar10(folder, "test", batch=500), work)
    photos = images.imagenet(shared, work)
    network = networks.build("efficientnet_lite0")
    return rows + _rows("EfficientNet-Lite0", network, photos[::5], photos, work)


def _rows(
    name: str, model: nn.Module, calibration: Iterable[Any], test: Sequence[Any], work: Path
) -> list[dict[str, Any]]:
    rows = []
    for label, target, choices in FORMATS:
        result = hs.quantize(model, calibration, target=target, verify_samples=0, **choices)
        row = {"network": name, "format": label}
        if target == "reference":
            engine = hs.Engine(result.program, "torch")
            top1 = _top1(result.program, test, lambda x, engine=engine: engine.run(x).outputs[0])
            row |= {"ran": "engine", "top1": top1}
        else:
            result.save(work / "formats")
            file = work / "formats" / "model.onnx"
            row |= {"ran": "ONNX Runtime", **summary(hs.verify(result.program, file, test[:200]))}
            runtime = OnnxRuntimeModel(file)
            out = result.program.outputs[0]
            row["top1"] = _top1(result.program, test, lambda x, r=runtime, o=out: r.run(x)[o])
        rows.append(row)
    return rows


def _top1(program: hs.IntProgram, test: Iterable[Any], run: Callable[[Any], Any]) -> float:
    right = total = 0
    for inputs, labels in batches(test, program.inputs, np.asarray):
        assert labels is not None
        right += int((run(inputs).argmax(axis=-1) == labels).sum())
        total += len(labels)
    return right / total
