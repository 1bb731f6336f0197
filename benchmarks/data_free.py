"""Data-free quantization step by step, and what equalization does for channels far apart."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import halfstep as hs
from benchmarks import images, networks
from benchmarks.accuracy import summary
from benchmarks.cifar10_example import resnet
from benchmarks.formats import in_runtime

_UNCHANGED: dict[str, Any] = {"equalization": None, "absorption": None, "correction": False}
# Label: options of the recipe; what is not named is its default. The bounds of the input are those
# of the photos' normalization, (0 - 127) / 128 and (255 - 127) / 128.
_PHOTOS: dict[str, Any] = {"recipe": "dfq", "input_range": (-127 / 128, 1.0)}
_PAPER: dict[str, Any] = {"equalization": "replace", "headroom": None}
STEPS: dict[str, dict[str, Any]] = {
    "original": _UNCHANGED,
    "equalized": {**_UNCHANGED, "equalization": "caps", "headroom": None},
    "equalized with headroom": {**_UNCHANGED, "equalization": "caps"},
    "+ absorbed": {"correction": False},
    "+ corrected: `dfq`": {},
    "not absorbed": {"absorption": None},
    "borders absorbed": {"absorption": "accept"},
    "equalized, ReLU6 replaced": {**_UNCHANGED, **_PAPER},
    "+ absorbed, as in the paper": {**_PAPER, "absorption": "accept", "correction": False},
    "+ corrected: the paper's pipeline": {**_PAPER, "absorption": "accept"},
    "corrected alone": {**_UNCHANGED, "correction": True},
    "clipped at 15": {**_UNCHANGED, "clip": 15.0},
    "clipped at 15, corrected": {**_UNCHANGED, "clip": 15.0, "correction": True},
    "per channel, nothing else": {**_UNCHANGED, "per_channel": True},
}
LARGEST_FACTOR = 64


def data_free(shared: Path, work: Path) -> list[dict[str, Any]]:
    """EfficientNet-Lite0, W8A8, one scale a weight: every step, judged on 500 photos."""
    model = networks.build("efficientnet_lite0")
    photos = images.imagenet(shared, work)
    rows = [_step(label, model, photos, work, choices) for label, choices in STEPS.items()]
    calibrated = {"per_channel": False, "calibrator": "minmax"}
    result = hs.quantize(model, photos[::5], verify_samples=0, **calibrated)
    rows.append(_row("`ptq`, minmax on 100 photos", result, photos, work))
    return rows


def rescaled(shared: Path, work: Path) -> list[dict[str, Any]]:
    """ResNet-20 as published, and with its channels moved against each other."""
    folder = images.cifar10_folder(work)
    calibration = images.cifar10(folder, "train", batch=64)[:256]
    test = images.cifar10(folder, "test", batch=500)
    published = resnet.resnet20(shared / "resnet20_cifar10.safetensors")
    moved = move_channels(resnet.resnet20(shared / "resnet20_cifar10.safetensors"))
    low = min(-mean / std for mean, std in zip(resnet.MEAN, resnet.STD, strict=True))
    high = max((1 - mean) / std for mean, std in zip(resnet.MEAN, resnet.STD, strict=True))
    methods: dict[str, dict[str, Any]] = {
        "`ptq`, per channel": {},
        "`ptq`, per tensor": {"per_channel": False},
        "`dfq`, per tensor": {"recipe": "dfq", "input_range": (low, high)},
    }
    rows = []
    for network, model in (("as published", published), ("moved", moved)):
        for label, choices in methods.items():
            result = hs.quantize(model, calibration, verify_samples=0, **choices)
            rows.append({"channels": network, **_row(label, result, test, work)})
    return rows


def move_channels(model: nn.Module, seed: int = 0) -> nn.Module:
    """Scale the channels between the two convolutions of every block, without another function.

    Factors are drawn from ``[1 / LARGEST_FACTOR, LARGEST_FACTOR]``, evenly on a log scale.
    """
    generator = torch.Generator().manual_seed(seed)
    reach = math.log(LARGEST_FACTOR)
    with torch.no_grad():
        for block in model.modules():
            if isinstance(block, resnet.BasicBlock):
                drawn = torch.rand(len(block.bn1.weight), generator=generator)
                factors = torch.exp(reach * (2 * drawn - 1))
                block.bn1.weight.mul_(factors)
                block.bn1.bias.mul_(factors)
                block.conv2.weight.div_(factors[:, None, None])
    return model


def _step(
    label: str,
    model: nn.Module,
    photos: images.LabelledImages,
    work: Path,
    choices: Mapping[str, Any],
) -> dict[str, Any]:
    result = hs.quantize(model, photos, verify_samples=0, **_PHOTOS, **choices)
    row = _row(label, result, photos, work)
    changed = result.model.graph.module
    with torch.inference_mode():
        right = sum(int((changed(x)[0].argmax(1) == y).sum()) for x, y in photos)
    return {**row, "float": right / len(photos)}


def _row(label: str, result: hs.Result, test: images.LabelledImages, work: Path) -> dict[str, Any]:
    out = work / "data_free"
    result.save(out)
    file = out / "model.onnx"
    seconds = sum(record.seconds for record in result.journal.records)
    verdict = hs.verify(result.program, file, test[:40])
    top1 = in_runtime(result.program, file, test)
    return {"method": label, "top1": top1, "seconds": seconds, **summary(verdict)}
