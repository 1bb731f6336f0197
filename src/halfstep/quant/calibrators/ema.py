"""The exponential moving average of the range of each batch.

Reference: B. Jacob et al., "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", CVPR 2018, section 3.1: activation ranges are collected "via
exponential moving averages with the smoothing parameter being close to 1".

Equation, for batch ``t`` and likewise for the largest values:

    average_t = average_{t-1} + (min x_t - average_{t-1}) (1 - momentum) / (1 - momentum^t)

``momentum`` is the smoothing parameter.

Deviations: the average is bias-corrected (the denominator), so that it is the weighted mean of the
batches seen, whereas an average that starts at the first batch would give that batch more weight
than any other. The default of 0.9 suits calibration on tens of batches; the paper averages over
thousands of training steps. The range depends on the batches: that is the method. Merging weights
each side by its number of updates, as no order of the batches is known.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch

from halfstep.core.qtype import QType
from halfstep.errors import CalibrationError
from halfstep.quant.calibrators.base import Calibrator, Range


class Ema(Calibrator):
    """The moving average of batch ranges; less than the largest range when batches differ."""

    defaults: ClassVar[Mapping[str, float]] = {"momentum": 0.9}
    depends_on_batches = True
    remembers = ("average_low", "average_high")

    def __init__(self, qtype: QType, **settings: Any) -> None:
        super().__init__(qtype, **settings)
        self.momentum = self.options["momentum"]
        if not 0 <= self.momentum < 1:
            raise CalibrationError(
                f"momentum={self.momentum}: give at least 0 (the last batch) and less than 1"
            )
        self.average_low: Range = np.asarray(0.0)
        self.average_high: Range = np.asarray(0.0)

    def _observe(self, values: torch.Tensor, low: Range, high: Range) -> None:
        # The first weight is 1, which replaces the initial zeros.
        self._move_to(low, high, (1 - self.momentum) / (1 - self.momentum ** (self.updates + 1)))

    def _merge(self, other: Self) -> None:
        share = other.updates / (self.updates + other.updates)
        self._move_to(other.average_low, other.average_high, share)

    def _move_to(self, low: Range, high: Range, weight: float) -> None:
        self.average_low = self.average_low + (low - self.average_low) * weight
        self.average_high = self.average_high + (high - self.average_high) * weight

    def _range(self) -> tuple[Range, Range]:
        return self.average_low, self.average_high
