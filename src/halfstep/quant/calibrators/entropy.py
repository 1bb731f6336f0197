"""The range whose quantized distribution loses the least information.

References: S. Migacz, "8-bit inference with TensorRT", GTC 2017; H. Wu et al., "Integer
quantization for deep learning inference: principles and empirical evaluation", arXiv 2004.09602,
2020, section 3.3.

Equation, with ``h`` the histogram of ``|x|``, ``n`` its bins up to the largest magnitude, ``L`` the
levels (``levels``) and ``i`` the number of bins kept (``kept``):

    P_i = h[:i], with everything above (``tail``) added to its last bin
    Q_i = h[:i] in L groups of i // L bins (the last takes the remainder),
          the mass of a group spread evenly over its non-empty bins
    i*  = argmin over i in L..n of  sum P_i log(P_i / Q_i),  both normalised
    alpha = (i* + 1/2) width,  [low, high] = [max(min x, -alpha), min(max x, alpha)]

A candidate whose last bin is empty has Q = 0 where P > 0, and is skipped. Among equals the widest
wins. All sums over bins are differences of cumulative sums, so that all candidates together cost as
much as a few passes over the histogram.

Levels: ``2^(bits - 1)`` where a code is spent on either sign: a symmetric grid, or values of both
signs. An asymmetric grid for values of one sign spends all of its ``2^bits`` codes on them.

Deviations: the publications treat symmetric int8 only; other widths, values of one sign and
asymmetric grids are as above. The first bin counts no more than its neighbour: after a ReLU it
holds the exact zeros, which every grid represents, and which would otherwise outweigh all else.
Where there are no more bins than levels (13 bits and more) nothing is clipped. The minimum is flat:
values times a factor that is no power of two fall into other bins, and alpha may move by more than
one of them.
"""

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from halfstep.core.qtype import QType
from halfstep.quant.calibrators.base import Calibrator, Range
from halfstep.quant.calibrators.histogram import Histogram

Counts = NDArray[np.floating]


class Entropy(Calibrator):
    """Clips where the Kullback-Leibler divergence is smallest."""

    per_channel = False
    remembers = ("histogram",)

    def __init__(self, qtype: QType, **settings: Any) -> None:
        super().__init__(qtype, **settings)
        self.histogram = Histogram()

    def _observe(self, values: torch.Tensor, low: Range, high: Range) -> None:
        self.histogram.add(values, float(low), float(high))

    def _merge(self, other: Self) -> None:
        self.histogram.merge(other.histogram)

    def _range(self) -> tuple[Range, Range]:
        counts = self.histogram.magnitudes.astype(np.float64)
        counts = counts[: int(np.flatnonzero(counts)[-1]) + 1]
        if counts.size <= self.levels:
            return self.low, self.high
        counts[0] = min(counts[0], counts[1])
        kept = best_bins(counts, self.levels)
        return self._clip(np.asarray((kept + 0.5) * self.histogram.width))

    @property
    def levels(self) -> int:
        """How many codes magnitudes are divided into."""
        one_sided = self.low >= 0 or self.high <= 0
        bits = self.qtype.bits if one_sided and not self.symmetric else self.qtype.bits - 1
        return 1 << bits


def best_bins(counts: Counts, levels: int) -> int:
    """How many of the first bins to keep; the last of ``counts`` is not empty."""
    kept = np.arange(levels, counts.size + 1)
    divergence = _divergence(counts, kept, levels)
    return int(kept[kept.size - 1 - np.argmin(divergence[::-1])])


def _divergence(counts: Counts, kept: NDArray[np.int64], levels: int) -> Counts:
    """KL(P || Q) for each number of kept bins; infinite for candidates that are skipped."""
    mass = _cumulative(counts)
    filled = _cumulative(counts > 0)
    information = _cumulative(_times_log(counts, counts))

    group = kept // levels
    starts = np.arange(1, group[-1] + 1)[:, None] * np.arange(levels)
    whole_mass, whole_filled = np.diff(mass[starts]), np.diff(filled[starts])
    whole = _times_log(whole_mass, whole_mass / np.maximum(whole_filled, 1)).sum(axis=1)

    last = counts[kept - 1]
    tail = mass[-1] - mass[kept]
    last_start = group * (levels - 1)
    last_mass = mass[kept] - mass[last_start]
    last_level = last_mass / np.maximum(filled[kept] - filled[last_start], 1)

    p_log_p = information[kept - 1] + _times_log(last + tail, last + tail)
    p_log_q = whole[group - 1] + _times_log(last_mass + tail, last_level)
    normalise = np.log(np.maximum(mass[kept], 1)) - np.log(mass[-1])
    divergence = (p_log_p - p_log_q) / mass[-1] + normalise
    return np.where(last > 0, divergence, np.inf)


def _cumulative(values: NDArray[np.generic]) -> Counts:
    return np.append(0.0, np.cumsum(values, dtype=np.float64))


def _times_log(factor: Counts, argument: Counts) -> Counts:
    """``factor * log(argument)``, and 0 where the argument is 0: an empty bin adds nothing."""
    return factor * np.log(np.where(argument > 0, argument, 1.0))
