"""The range that holds a given percentage of the magnitudes.

Reference: H. Wu et al., "Integer quantization for deep learning inference: principles and empirical
evaluation", arXiv 2004.09602, 2020, section 3.3.

Equation: ``alpha = Q_p(|x|)``, the ``p``-th percentile (``percentile``) of the magnitudes, and
``[low, high] = [max(min x, -alpha), min(max x, alpha)]``.

Deviations: the paper's ranges are symmetric; this one ends where the values end, which is the same
for a symmetric grid and wastes no codes on an asymmetric one. Per tensor the percentile is read off
the streaming histogram, with the values of a bin spread evenly over it, so it is exact to one bin
(at most 1/2048 of the largest magnitude). Per channel it is that of the values themselves, with
linear interpolation between neighbours.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch

from halfstep.core.qtype import QType
from halfstep.errors import CalibrationError
from halfstep.quant.calibrators.base import Calibrator, Range
from halfstep.quant.calibrators.histogram import Histogram


class Percentile(Calibrator):
    """Clips the largest magnitudes; 100 is the same as min-max."""

    defaults: ClassVar[Mapping[str, float]] = {"percentile": 99.99}
    per_group = False
    channels_at_once = True
    remembers = ("histogram",)

    def __init__(self, qtype: QType, **settings: Any) -> None:
        super().__init__(qtype, **settings)
        self.percentile = self.options["percentile"]
        if not 0 < self.percentile <= 100:
            raise CalibrationError(f"percentile={self.percentile}: give more than 0, at most 100")
        self.histogram = Histogram()
        self.channel_percentiles: Range = np.zeros(0)

    def _observe(self, values: torch.Tensor, low: Range, high: Range) -> None:
        if self.axis is None:
            self.histogram.add(values, float(low), float(high))
        else:
            magnitudes = values.abs().cpu().numpy()
            self.channel_percentiles = np.percentile(magnitudes, self.percentile, axis=1)

    def _merge(self, other: Self) -> None:
        self.histogram.merge(other.histogram)
        self.channel_percentiles = other.channel_percentiles

    def _range(self) -> tuple[Range, Range]:
        if self.axis is not None:
            return self._clip(self.channel_percentiles)
        return self._clip(np.asarray(self._histogram_percentile()))

    def _histogram_percentile(self) -> float:
        counts = self.histogram.magnitudes
        seen = np.cumsum(counts)
        wanted = self.percentile / 100 * float(seen[-1])
        last = int(np.searchsorted(seen, wanted))
        missing = float(seen[last]) - wanted
        return (last + 1 - missing / float(counts[last])) * self.histogram.width
