"""The range with the smallest squared quantization error, each value with a weight of its own.

Reference: the metric of PTQ4ViT (Yuan et al. 2022, arXiv 2111.12293, section 3.2),

    low, high = argmin  sum over x of h(x) (x - Q(x; low, high))^2

with ``h`` the squared derivative of the output (``halfstep.ptq.influence``). All else is that of
``mse``, whose counts become sums of weights.

Deviations: the paper searches scales on the values of a few samples; this one streams them into
the histogram. Values of weight zero are not seen at all: they do not widen the range.
"""

from typing import Any

import numpy as np
import torch

from halfstep.core.grid import Affine
from halfstep.core.qtype import QType
from halfstep.errors import CalibrationError
from halfstep.quant.calibrators.histogram import CHUNK, SIDE, Histogram, exponent_for
from halfstep.quant.calibrators.mse import Mse


class WeightedHistogram(Histogram):
    """Sums of weights, float64, in the place of counts."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = np.zeros(2 * SIDE - 1, np.float64)

    def add_weighted(self, values: torch.Tensor, weights: torch.Tensor, largest: float) -> None:
        """Count finite float32 values, in one row, of at most this magnitude."""
        self._widen(exponent_for(largest))
        rows = (torch.split(row, CHUNK) for row in (values, weights))
        for chunk, weight in zip(*rows, strict=True):
            index = torch.mul(chunk, 1 / self.width).to(torch.int16).add_(SIDE - 1).int()
            sums = torch.bincount(index, weight.double(), minlength=self.counts.size)
            self.counts += sums.cpu().numpy()


class WeightedMse(Mse):
    """One range for a tensor; ``update`` gives every value the weight 1."""

    per_channel = False

    def __init__(self, qtype: QType, **settings: Any) -> None:
        super().__init__(qtype, **settings)
        self.histogram = WeightedHistogram()

    def update_weighted(self, values: torch.Tensor, weights: torch.Tensor) -> None:
        """Look at one batch of values, with a weight of the same shape that is never negative.

        Raises:
            CalibrationError: a value or a weight is NaN or infinite.
        """
        counts = weights > 0
        values, weights = values[counts].float(), weights[counts]
        if not values.numel():
            return
        low, high = (float(end) for end in torch.aminmax(values))
        if not np.isfinite([low, high, float(weights.sum())]).all():
            raise CalibrationError(f"a value or a weight of {values.numel()} is not finite")
        assert isinstance(self.histogram, WeightedHistogram)
        self.histogram.add_weighted(values, weights, max(-low, high))
        self._widen(np.asarray(low), np.asarray(high), 1)

    def error_of(self, grid: Affine) -> float:
        """The weighted squared error, summed over all values, of a grid per tensor."""
        edges, changes = self._density_changes()
        scale = float(grid.scale)
        codes = edges / scale + int(grid.zero_point)
        return float(self._antiderivative(codes) @ changes) * scale**3 / self.histogram.width
