"""Images from folders and arrays, as normalized float32 batches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from halfstep.errors import DataError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
BATCH_SIZE = 32
Batch = tuple[Tensor] | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """How images become inputs: ``(pixel / 255 - mean) / std``, channels first.

    Attributes:
        size: images of a folder are resized so that their shorter side has this length, then
            cropped to a square around the centre; ``None`` takes them as they are.
        mean: one value, or one a channel.
        std: one value, or one a channel.
        batch_size: images a batch.
    """

    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.size is not None and self.size < 1):
            raise DataError(f"sizes are 1 or more, found {self.size} and {self.batch_size}")
        if self.std is not None and not 0 < min(self.std) <= max(self.std) < math.inf:
            raise DataError(f"a std is positive and finite, found {self.std}")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise DataError(f"a mean is finite, found {self.mean}")

    def normalize(self, images: NDArray[np.uint8], where: Path) -> NDArray[np.float32]:
        """Inputs for uint8 images (N, C, H, W)."""
        if self.mean is None or self.std is None:
            raise DataError(
                f"{where}: images in uint8 need --mean and --std as in the training of the model; "
                "0 and 1 leave them between 0 and 1"
            )
        channels = images.shape[1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise DataError(
                    f"{where}: {name} has {len(values)} values for images of {channels} channels"
                )
        mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (self.mean, self.std))
        normalized: NDArray[np.float32] = (images.astype(np.float32) / np.float32(255) - mean) / std
        return normalized


@dataclass(frozen=True, eq=False)
class ArrayBatches:
    """Batches of the arrays of an ``.npz`` file, in order, none dropped.

    Attributes:
        path: the file.
        images: float32 inputs, or uint8 images (N, C, H, W).
        labels: (N,) int64, or ``None``.
        preprocessing: of uint8 images.
    """

    path: Path
    images: NDArray[Any]
    labels: NDArray[np.int64] | None
    preprocessing: Preprocessing

    @classmethod
    def read(cls, path: Path, preprocessing: Preprocessing) -> "ArrayBatches":
        """The arrays ``images`` or ``inputs``, and ``labels`` if there are any.

        Raises:
            DataError: the file is missing or damaged, or its arrays are not of that form.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except FileNotFoundError as error:
            raise DataError(f"{path}: there is no such file") from error
        except (OSError, ValueError, BadZipFile, EOFError) as error:
            raise DataError(
                f"{path}: not a complete .npz file of plain arrays ({error})"
            ) from error
        name = next((name for name in ("images", "inputs") if name in arrays), None)
        if name is None:
            raise DataError(f"{path}: asked for an array images or inputs, found {sorted(arrays)}")
        images, labels = arrays[name], arrays.get("labels")
        _check_images(f"{path}: {name}", images, preprocessing)
        if labels is not None and (
            labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"
        ):
            raise DataError(
                f"{path}: labels: asked for {len(images)} integers, found {labels.dtype.name} of "
                f"shape {labels.shape}"
            )
        return cls(path, images, None if labels is None else labels.astype(np.int64), preprocessing)

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.preprocessing.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.images), self.preprocessing.batch_size):
            part = slice(start, start + self.preprocessing.batch_size)
            images = self.images[part]
            if images.dtype == np.uint8:
                images = self.preprocessing.normalize(images, self.path)
            yield _batch(images, None if self.labels is None else self.labels[part])


@dataclass(frozen=True, eq=False)
class FolderBatches:
    """Batches of the images of a folder, sorted by name, none dropped.

    Attributes:
        files: the images.
        labels: for each image its class, or ``None``.
        preprocessing: resizing and normalization.
    """

    files: tuple[Path, ...]
    labels: NDArray[np.int64] | None
    preprocessing: Preprocessing

    @classmethod
    def read(cls, folder: Path, preprocessing: Preprocessing) -> "FolderBatches":
        """Images in ``folder``, without labels, or in its sub-folders, which are classes.

        The label of a class is its place among the sorted names of all sub-folders.

        Raises:
            DataError: no image, or images beside sub-folders with images.
        """
        classes = sorted(path for path in folder.iterdir() if path.is_dir())
        flat = _images_in(folder)
        labelled = [
            (file, label) for label, path in enumerate(classes) for file in _images_in(path)
        ]
        if bool(flat) == bool(labelled):
            found = "both" if flat else "neither"
            raise DataError(
                f"{folder}: asked for images, or sub-folders with images, found {found}; "
                f"images end in {', '.join(sorted(SUFFIXES))}"
            )
        if flat:
            return cls(tuple(flat), None, preprocessing)
        files, labels = zip(*labelled, strict=True)
        return cls(files, np.array(labels, np.int64), preprocessing)

    def __len__(self) -> int:
        return math.ceil(len(self.files) / self.preprocessing.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.files), self.preprocessing.batch_size):
            part = slice(start, start + self.preprocessing.batch_size)
            files = self.files[part]
            images = [_read(file, self.preprocessing.size) for file in files]
            if len({image.shape for image in images}) > 1:
                raise DataError(f"{files[0].parent}: images of several sizes; give one with --size")
            normalized = self.preprocessing.normalize(np.stack(images), files[0].parent)
            yield _batch(normalized, None if self.labels is None else self.labels[part])


def _batch(inputs: NDArray[np.float32], labels: NDArray[np.int64] | None) -> Batch:
    tensor = torch.from_numpy(inputs)
    return (tensor,) if labels is None else (tensor, torch.from_numpy(labels))


def _check_images(where: str, images: NDArray[Any], preprocessing: Preprocessing) -> None:
    if images.ndim == 0 or not len(images):
        raise DataError(f"{where}: there is no sample in it")
    if images.dtype == np.uint8:
        if images.ndim != 4 or images.shape[1] > 4:
            raise DataError(
                f"{where}: asked for uint8 images of shape (N, channels, height, width), found "
                f"{images.shape}"
            )
    elif images.dtype != np.float32:
        raise DataError(f"{where}: asked for float32 or uint8, found {images.dtype.name}")
    elif preprocessing.mean is not None or preprocessing.std is not None:
        raise DataError(
            f"{where}: inputs in float32 are taken as they are, without --mean and --std"
        )


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def _read(file: Path, size: int | None) -> NDArray[np.uint8]:
    """An image as (3, height, width)."""
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise DataError(f"{file}: not a complete image ({error})") from error
    if size is not None:
        shorter = min(image.size)
        width, height = (max(size, round(side * size / shorter)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        image = resized.crop((left, top, left + size, top + size))
    return np.asarray(image, np.uint8).transpose(2, 0, 1)
