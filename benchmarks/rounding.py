"""Few bits without training: accuracy of the artifact, time and memory of rounding."""

import time
from pathlib import Path
from typing import Any

import torch

import halfstep as hs
from benchmarks import images, networks
from benchmarks.accuracy import summary
from benchmarks.cifar10_example import resnet
from benchmarks.formats import in_runtime
from benchmarks.measure import resident_growth
from halfstep.graph.edit import with_biases
from halfstep.ptq.adaround import adaround
from halfstep.ptq.round_weights import round_weights
from halfstep.ptq.sequential_mse import sequential_mse
from halfstep.quantize import stages

SAMPLES = 256
LAYERS = ("layer1.1.conv1", "layer2.1.conv1", "layer3.1.conv1")
# Weights, activations, ends, and values that only additions read.
FORMATS: dict[str, dict[str, str]] = {
    "W4A8": {"weights": "int4"},
    "W3A8": {"weights": "int3"},
    "W4A4, first and last 8, addends 8": {
        "weights": "int4",
        "activations": "uint4",
        "first_last": "int8",
        "elementwise": "uint8",
    },
    "W4A4, first and last 8": {"weights": "int4", "activations": "uint4", "first_last": "int8"},
}


def rounding_resnet20(shared: Path, work: Path) -> list[dict[str, Any]]:
    """ResNet-20 with few bits, 256 training images, judged in ONNX Runtime on 10,000."""
    model = resnet.resnet20(shared / "resnet20_cifar10.safetensors")
    folder = images.cifar10_folder(work)
    calibration = images.cifar10(folder, "train", batch=64)[:SAMPLES]
    test = images.cifar10(folder, "test", batch=500)
    rows = []
    for name, choices in FORMATS.items():
        for recipe in ("ptq", "low_bit"):
            row = _judged(model, calibration, test, work / "rounding", recipe, choices)
            rows.append({"network": "ResNet-20", "format": name, **row})
    return rows


def rounding_efficientnet(shared: Path, work: Path) -> list[dict[str, Any]]:
    """EfficientNet-Lite0, W4A8 per channel, the first 256 photos, judged on all 500."""
    model = networks.build("efficientnet_lite0")
    photos = images.imagenet(shared, work, batch=16)
    choices = {"weights": "int4"}
    rows = []
    for recipe in ("ptq", "low_bit"):
        row = _judged(model, photos[:SAMPLES], photos, work / "rounding", recipe, choices)
        rows.append({"network": "EfficientNet-Lite0", "format": "W4A8", **row})
    return rows


def _judged(
    model: torch.nn.Module,
    calibration: images.LabelledImages,
    test: images.LabelledImages,
    out: Path,
    recipe: str,
    choices: dict[str, str],
) -> dict[str, Any]:
    with resident_growth() as resident:
        result = hs.quantize(model, calibration, recipe=recipe, verify_samples=0, **choices)
    result.save(out)
    file = out / "model.onnx"
    verdict = hs.verify(result.program, file, test[:500], stages=stages(model, result.model))
    seconds = {record.verb: record.seconds for record in result.journal.records}
    return {
        "recipe": recipe,
        "seconds": sum(seconds.values()),
        "rounding": seconds.get("round"),
        "megabytes": resident.growth,
        **summary(verdict),
        "top1": in_runtime(result.program, file, test),
    }


def rounding_layers(shared: Path, work: Path) -> list[dict[str, Any]]:
    """The error of the same layers by each method that rounds, on images not rounded on."""
    model = resnet.resnet20(shared / "resnet20_cifar10.safetensors")
    folder = images.cifar10_folder(work)
    train = images.cifar10(folder, "train", batch=64)
    calibration, unseen = train[:SAMPLES], train[SAMPLES : 2 * SAMPLES]
    methods = {
        "nearest": lambda m: None,
        "sequential MSE": lambda m: sequential_mse(m, calibration),
        "AdaRound, 1,000 iterations": lambda m: adaround(m, calibration, iterations=1000),
        "AdaRound, 10,000 iterations": lambda m: adaround(m, calibration),
        "together": lambda m: round_weights(m, calibration),
    }
    rows = []
    for name, run in methods.items():
        quantized = _alone(model, calibration)
        begin = time.perf_counter()
        run(quantized)
        seconds = time.perf_counter() - begin
        errors = _errors(quantized, unseen)
        rows.append({"method": name, "seconds": seconds, **errors})
    return rows


def _alone(model: torch.nn.Module, calibration: images.LabelledImages) -> hs.QuantizedModel:
    """A model in which three layers alone have 4-bit weights and the rest is float.

    Then every method gets the same inputs, and errors can be compared layer by layer.
    """
    example = next(iter(calibration))[0]
    graph = with_biases(hs.capture(model, example))
    plan = hs.make_plan(graph, weights="int4", weight_calibrator="mse")
    for name in set(plan.executions) - set(LAYERS):
        plan = plan.keep_float(name, "another layer is studied")
    quantized = hs.prepare(graph, plan)
    hs.calibrate(quantized, calibration)
    return quantized


def _errors(model: hs.QuantizedModel, data: images.LabelledImages) -> dict[str, float]:
    """Squared error of each layer's output, in front of ReLU, relative to its variance."""
    from halfstep.ptq.streams import Streams

    found = {}
    for layer in Streams(model, data).layers():
        error = power = 0.0
        for real, quantized in layer.outputs():
            error += float((quantized - real).square().sum())
            power += float((real - real.mean((0, 2, 3), keepdim=True)).square().sum())
        found[layer.unit.name] = error / power
    return found
