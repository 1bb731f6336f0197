"""Every network on every target: exactness, coverage, speed beside float, size."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import halfstep as hs
from benchmarks import images, networks
from benchmarks.accuracy import summary
from benchmarks.cifar10_example import resnet

CONVOLUTIONAL = {
    "ResNet-20": "trained, CIFAR-10",
    "ResNet-18": "random weights, photos",
    "MobileNetV2": "random weights, photos",
    "EfficientNet-Lite0": "trained, photos",
}
ENCODERS = {
    "MiniLM": "trained, sentences with masks; 16 samples",
    "ViT": "DeiT-Tiny's size, random weights, photos; 16 samples",
}
_BUILT = {
    "ResNet-18": "resnet18",
    "MobileNetV2": "mobilenet_v2",
    "EfficientNet-Lite0": "efficientnet_lite0",
    "MiniLM": "minilm",
    "ViT": "vit_tiny",
}
SAMPLES, SAMPLES_OF_ENCODERS = 64, 16


def conformance(shared: Path, work: Path) -> list[dict[str, Any]]:
    """64 inputs to calibrate on; the same ones are compared, code for code."""
    return _measured(CONVOLUTIONAL, SAMPLES, shared, work)


def encoders(shared: Path, work: Path) -> list[dict[str, Any]]:
    """The same of 16 inputs, since a vision transformer in C has all of its products to do."""
    return _measured(ENCODERS, SAMPLES_OF_ENCODERS, shared, work)


def _measured(
    named: Mapping[str, str], samples: int, shared: Path, work: Path
) -> list[dict[str, Any]]:
    rows = []
    for network, what in named.items():
        model, data = _network(network, samples, shared, work)
        for found in hs.conformance(model, data, verify_samples=samples):
            rows.append({"network": network, "what": what, **_row(found)})
            print(f"{network}: {rows[-1]}", flush=True)
    return rows


def _network(name: str, samples: int, shared: Path, work: Path) -> tuple[Any, list[Any]]:
    if name == "ResNet-20":
        model = resnet.resnet20(shared / "resnet20_cifar10.safetensors")
        train = images.cifar10(images.cifar10_folder(work), "train", batch=16)[:samples]
        return model, [(batch,) for batch, _ in train]
    model = networks.build(_BUILT[name])
    if name == "MiniLM":
        return model, [networks.tokenized_sentences(16, first) for first in range(0, samples, 16)]
    photos = images.imagenet(shared, work, batch=16)[:samples]
    return model, [(batch,) for batch, _ in photos]


def _row(found: hs.Conformance) -> dict[str, Any]:
    row: dict[str, Any] = {"target": found.target, "bytes": found.size, "note": short(found.note)}
    if found.gain is not None:
        row |= {
            "of_float": found.gain.integer_seconds / found.gain.float_seconds,
            "ms": 1000 * found.gain.integer_seconds,
        }
    if found.verdict is None:
        return row
    verdict = found.verdict
    largest = max((site.largest for site in verdict.comparable), default=0)
    return row | summary(verdict) | {"largest": largest, "floats": kinds(verdict)}


def short(note: str) -> str:
    """A refusal with the first of its reasons, without places; the others are counted."""
    note = re.sub(r" \([^()]*, line \d+\)|(?<=: )/\S+: ", "", note)
    first, *others = note.partition(". ")[0].split("; ")
    return f"{first}; and {len(others)} more" if note.startswith("refused") and others else note


def kinds(verdict: hs.Verdict) -> str:
    """How many operations are not on integer kernels, for each reason."""
    counts: dict[str, int] = {}
    for reason in verdict.floats.values():
        counts[reason] = counts.get(reason, 0) + 1
    return "; ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
