"""Batches as the methods here want them: checked, with what the float model makes of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from halfstep.data import batches
from halfstep.errors import DataError
from halfstep.graph.insert import QuantizedModel, check_batch
from halfstep.progress import Progress, silent
from halfstep.search.metrics import METRICS, Meter, Metric, find_metric

Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs, labels where there are any, and the first output of the float model."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    reference: Tensor

    def __len__(self) -> int:
        return len(self.inputs[0])

    @property
    def given(self) -> tuple[Tensor, ...]:
        """The batch in a form that every method takes: inputs, and labels last."""
        return self.inputs if self.labels is None else (*self.inputs, self.labels)


def stream(
    model: QuantizedModel, data: Iterable[Any], progress: Progress = silent, what: str = "samples"
) -> Iterator[Batch]:
    """Every batch, one at a time.

    Args:
        model: whose captured float graph gives the reference.
        data: batches in any form that ``quantize`` takes.
        progress: wraps the batches.
        what: what the progress says.

    Raises:
        DataError: no batch, or one of a wrong shape, dtype or value.
    """
    prepared = batches(data, model.graph.inputs, torch.as_tensor)
    for index, (inputs, labels) in enumerate(progress(prepared, what)):
        check_batch(model.graph, inputs, index)
        if labels is not None and len(labels) != len(inputs[0]):
            raise DataError(f"batch {index}: {len(labels)} labels for {len(inputs[0])} samples")
        with torch.inference_mode():
            reference = model.graph.module(*inputs)[0]
        yield Batch(inputs, labels, reference)


def kept(model: QuantizedModel, data: Iterable[Any]) -> tuple[Batch, ...]:
    """All batches, in memory: for methods that need several passes, each over few samples."""
    return tuple(stream(model, data))


def keeping(
    data: Iterable[Any], inputs: Sequence[str], samples: int, first: list[tuple[Tensor, ...]]
) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of all batches, for a pass that is made anyway; the first samples are kept.

    Args:
        data: batches in any form.
        inputs: names of the inputs, in order.
        samples: how many to keep.
        first: where they are put, with labels if there are any.
    """
    missing = samples
    for values, labels in batches(data, inputs, torch.as_tensor):
        if missing > 0:
            labelled = values if labels is None else (*values, labels)
            first.append(tuple(value[:missing] for value in labelled))
            missing -= len(values[0])
        yield values


class Scores(Generic[Key]):
    """A metric of many variants of a model, over the batches that were begun.

    Attributes:
        metric: the metric; known from the first batch on.
        samples: how many samples were begun.
        real: the metric of the float model.
    """

    metric: Metric
    real: Meter

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.samples = 0
        self._meters: dict[Key, Meter] = {}
        self._noise: dict[Key, Meter] = {}

    def begin(self, batch: Batch) -> None:
        """The outputs that are added from now on are those of ``batch``."""
        if not self.samples:
            self.metric = find_metric(self.name, batch.labels is not None, batch.reference)
            self.real = Meter(self.metric)
        self.batch = batch
        self.samples += len(batch)
        self.real.add(batch.reference, batch.reference, batch.labels)

    def add(self, key: Key, output: Tensor) -> None:
        """Count the output of one variant."""
        for meters, metric in ((self._meters, self.metric), (self._noise, METRICS["sqnr"])):
            meter = meters.setdefault(key, Meter(metric))
            meter.add(output, self.batch.reference, self.batch.labels)

    def value(self, key: Key) -> float:
        """The metric of a variant."""
        return self._meters[key].value

    def find(self, key: Key) -> float | None:
        """The metric of a variant, if it was run."""
        return self.value(key) if key in self._meters else None

    def sqnr(self, key: Key) -> float:
        """The signal-to-noise ratio of a variant's output, in dB."""
        return self._noise[key].value
