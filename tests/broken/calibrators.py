"""Deliberately broken calibrators: each has one fault, which a law must find."""

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch

from halfstep.quant.calibrators.base import Calibrator, Range
from halfstep.quant.calibrators.ema import Ema
from halfstep.quant.calibrators.minmax import MinMax
from halfstep.quant.calibrators.mse import Mse
from halfstep.quant.calibrators.percentile import Percentile


class UndeclaredAverage(Ema):
    """Depends on the batches, but says that it does not."""

    depends_on_batches = False


class Percentile90(Percentile):
    """Not broken: clips even a few values, so that the faults of its children show."""

    defaults: ClassVar[Mapping[str, float]] = {"percentile": 90.0}


class MisalignedBins(Percentile90):
    """The grid of its histogram starts where the first batch starts, instead of at zero."""

    def _observe(self, values: torch.Tensor, low: Range, high: Range) -> None:
        if self.updates == 0:
            self.origin = float(low)
        shifted = values - self.origin
        self.histogram.add(shifted, float(shifted.min()), float(shifted.max()))


class LosesCountsWhenGrowing(Percentile90):
    """Starts its histogram again when the range grows."""

    def _observe(self, values: torch.Tensor, low: Range, high: Range) -> None:
        if high > self.high:
            self.histogram.counts[:] = 0
        super()._observe(values, low, high)


class KeepsTheLastWorker(Percentile90):
    """Replaces its own counts when it merges."""

    def _merge(self, other: Self) -> None:
        self.histogram = other.histogram


class AbsoluteMargin(MinMax):
    """A margin that does not scale with the values."""

    def _range(self) -> tuple[Range, Range]:
        return self.low + 2.0**-10, self.high - 2.0**-10


class LeastScale(MinMax):
    """A range of at least 8: too wide for small values, right for large ones."""

    def _range(self) -> tuple[Range, Range]:
        return np.minimum(self.low, -8), np.maximum(self.high, 8)


class RelativeMargin(MinMax):
    """Wider than the values."""

    def _range(self) -> tuple[Range, Range]:
        return self.low * 1.01, self.high * 1.01


class NeverNarrow(MinMax):
    """A least width, which a constant does not have."""

    def _range(self) -> tuple[Range, Range]:
        return self.low, np.maximum(self.high, self.low + 0.5)


class ClipsEverything(MinMax):
    """Half of what a constant needs."""

    def _range(self) -> tuple[Range, Range]:
        return self.low / 2, self.high / 2


class IgnoresNonFinite(MinMax):
    """Replaces what it should refuse."""

    def update(self, values: torch.Tensor) -> None:
        super().update(values.nan_to_num(0.0, 0.0, 0.0))


class IgnoresEmpty(MinMax):
    """Takes no values for nothing to say."""

    def update(self, values: torch.Tensor) -> None:
        if values.numel():
            super().update(values)


class CountsBeforeChecking(MinMax):
    """A refused batch leaves a trace."""

    def update(self, values: torch.Tensor) -> None:
        self.low = self.low - 1
        super().update(values)


class ZeroWithoutValues(MinMax):
    """A range out of nothing."""

    def range(self) -> tuple[Range, Range]:
        return super().range() if self.updates else (np.zeros(()), np.zeros(()))


class Hoards(MinMax):
    """Keeps what it saw."""

    def _observe(self, values: torch.Tensor, low: Range, high: Range) -> None:
        seen = getattr(self, "seen", np.zeros(0))
        self.seen = np.append(seen, values.numpy())


class WritesToItsInput(MinMax):
    """Changes the activations that flow past."""

    def update(self, values: torch.Tensor) -> None:
        super().update(values)
        values.detach().clamp_(-0.1, 0.1)


class MergesAnything(MinMax):
    """Merges what was looked at for another type."""

    def merge(self, other: Calibrator) -> None:
        self._widen(other.low, other.high, other.updates)


class OneFactorForAll(Mse):
    """The factor of the first channel for every channel."""

    def _best_factors(self, values: torch.Tensor, low: Range, high: Range) -> Range:
        return np.full(len(values), super()._best_factors(values, low, high)[0])


class LastAxis(MinMax):
    """Keeps the last axis, whichever was asked for."""

    def update(self, values: torch.Tensor) -> None:
        super().update(values if self.axis is None else values.movedim(-1, self.axis))


class WholeStorage(MinMax):
    """Takes the memory of a strided tensor for its values."""

    def update(self, values: torch.Tensor) -> None:
        storage = values.untyped_storage()
        super().update(torch.frombuffer(bytearray(bytes(storage)), dtype=values.dtype))
