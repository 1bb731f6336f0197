"""What a result was made from: the recipe, what was asked of it, and the data that it read."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from halfstep.data import LABELS, samples_in


@dataclass(frozen=True)
class CalibrationData:
    """The batches that a recipe read.

    Attributes:
        batches: how many.
        samples: in all of them.
        sha256: over the values of every batch in order, labels included, with their types and
            shapes; the same for tensors and arrays of the same numbers.
    """

    batches: int
    samples: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Origin:
    """What a result was made from.

    Attributes:
        recipe: a name in the catalog.
        choices: what was asked of the recipe.
        data: what it read.
    """

    recipe: str
    choices: Mapping[str, Any]
    data: CalibrationData


class DataHash:
    """Hashes batches on their way to a recipe; nothing of them is kept.

    Args:
        keywords: names of the inputs in batches that are dicts.
    """

    def __init__(self, keywords: Sequence[str] = ()) -> None:
        self._keywords = keywords
        self._hash = hashlib.sha256()
        self._batches = self._samples = 0

    def watch(self, data: Iterator[Any]) -> Iterator[Any]:
        """Pass the batches on; each is hashed before anyone can change it."""
        for batch in data:
            self._add(batch)
            yield batch

    def found(self) -> CalibrationData:
        """What passed until now."""
        return CalibrationData(self._batches, self._samples, self._hash.hexdigest())

    def _add(self, batch: Any) -> None:
        values = list(_named(batch))
        self._batches += 1
        self._hash.update(f"batch of {len(values)}\n".encode())
        self._samples += samples_in(batch, self._keywords)
        for name, value in values:
            kind, shape, data = _numbers(value)
            self._hash.update(f"{name} {kind} {shape}\n".encode())
            self._hash.update(data.data)


def _named(batch: Any) -> Iterator[tuple[str, Any]]:
    """The values of a batch: of a dict by name, labels last, of others by place."""
    if isinstance(batch, Mapping):
        names = sorted(batch, key=lambda name: (name in LABELS, str(name)))
        yield from ((str(name), batch[name]) for name in names)
        return
    values = batch if isinstance(batch, tuple | list) else (batch,)
    yield from ((str(place), value) for place, value in enumerate(values))


def _numbers(value: Any) -> tuple[str, tuple[int, ...], NDArray[np.uint8]]:
    """Type, shape and bytes of a value; of what holds no numbers, its type alone."""
    try:
        if isinstance(value, torch.Tensor):
            whole = value.detach().cpu().contiguous().reshape(-1)
            kind = str(value.dtype).removeprefix("torch.")
            return kind, tuple(value.shape), whole.view(torch.uint8).numpy()
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return type(value).__name__, (), np.empty(0, np.uint8)
    if array.dtype.kind not in "biufc":
        return type(value).__name__, (), np.empty(0, np.uint8)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return array.dtype.name, array.shape, np.ascontiguousarray(little).reshape(-1).view(np.uint8)
