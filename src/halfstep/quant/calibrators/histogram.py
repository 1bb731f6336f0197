"""A streaming histogram that comes out the same however the values were split into batches.

The width of a bin is a power of two, the smallest that fits the largest magnitude seen, and bins
start at zero on both sides:

    bin k > 0:   k * width <= x < (k + 1) * width
    bin 0:          -width < x < width
    bin -k:   -(k + 1) * width < x <= -k * width

that is, ``k = trunc(x / width)``. Dividing a float32 by a power of two is exact, so no value near
an edge falls on the wrong side; and ``trunc(trunc(x) / 2) == trunc(x / 2)``, so that merging pairs
of bins when the range grows gives the very counts of the wider grid. The result depends on nothing
but the values: not on their order, batches or workers.

Worked example, with 4 bins a side in place of 4096: the values 0.5, 3, -1 have a width of 1 and
count ``{-1: 1, 0: 1, 3: 1}``; a value of 6 doubles the width to 2, where the same values count
``{0: 2, 1: 1}`` and 6 goes to bin 3.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

SIDE = 4096
"""Bins on each side of zero; between half of them and all are in use on the larger side."""

SMALLEST_EXPONENT = -100
"""log2 of the narrowest bin: far below any scale, and its reciprocal is a normal float32."""

# Values binned at a time. From 32768 values on torch would divide every step among its threads, and
# wait for them: on a busy machine that is many times slower. The threads below wait only once.
CHUNK = 32767
WORTH_A_THREAD = 1 << 19
MOST_THREADS = 4  # more would wait for the interpreter


class Histogram:
    """Counts of values on a grid of power-of-two width.

    Attributes:
        exponent: log2 of the width.
        counts: int64, shape (2 * SIDE - 1,); bin ``k`` is at ``k + SIDE - 1``.
    """

    def __init__(self) -> None:
        self.exponent = SMALLEST_EXPONENT
        self.counts: NDArray[Any] = np.zeros(2 * SIDE - 1, np.int64)

    @property
    def width(self) -> float:
        """The width of a bin: a power of two."""
        return 2.0**self.exponent

    @property
    def magnitudes(self) -> NDArray[Any]:
        """Counts of ``|x|`` in ``[k * width, (k + 1) * width)``, shape (SIDE,)."""
        positive, negative = self.counts[SIDE - 1 :], self.counts[: SIDE - 1]
        magnitudes: NDArray[Any] = positive.copy()
        magnitudes[1:] += negative[::-1]
        return magnitudes

    def add(self, values: torch.Tensor, low: float, high: float) -> None:
        """Count finite float32 values of any shape, all of them in ``[low, high]``."""
        self._widen(exponent_for(max(-low, high)))
        offset = SIDE - 1 if low < 0 else 0
        count = partial(_count, reciprocal=1 / self.width, offset=offset)
        threads = min(torch.get_num_threads(), MOST_THREADS, values.numel() // WORTH_A_THREAD)
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                counts = sum(pool.map(count, torch.chunk(values.reshape(-1), threads)))
        else:
            counts = count(values.reshape(-1))
        self.counts[SIDE - 1 - offset :] += counts

    def merge(self, other: Self) -> None:
        """Add the counts of ``other``."""
        self._widen(other.exponent)
        self.counts += _coarser(other.counts, self.exponent - other.exponent)

    def _widen(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _coarser(self.counts, exponent - self.exponent)
            self.exponent = exponent


def _count(values: torch.Tensor, reciprocal: float, offset: int) -> NDArray[np.int64]:
    """Counts of the bins from ``-offset`` on, shape (SIDE + offset,)."""
    total = np.zeros(SIDE + offset, np.int64)
    size = min(CHUNK, values.numel())
    scaled = torch.empty(size, dtype=torch.float32, device=values.device)
    bins = torch.empty(size, dtype=torch.int16, device=values.device)
    for chunk in torch.split(values, size):
        index = bins[: chunk.numel()]
        index.copy_(torch.mul(chunk, reciprocal, out=scaled[: chunk.numel()]))
        if offset:
            index.add_(offset)
        total += torch.bincount(index, minlength=total.size).cpu().numpy()
    return total


def exponent_for(largest: float) -> int:
    """log2 of the narrowest power-of-two width with ``largest < SIDE * width``."""
    return int(np.frexp(max(largest / SIDE, 2.0 ** (SMALLEST_EXPONENT - 1)))[1])


def _coarser(counts: NDArray[Any], doublings: int) -> NDArray[Any]:
    """The counts in bins that are ``2**doublings`` times as wide."""
    if doublings == 0:
        return counts
    bins = np.arange(1 - SIDE, SIDE)
    bins = np.sign(bins) * (np.abs(bins) >> min(doublings, SIDE.bit_length()))
    merged = np.zeros_like(counts)
    np.add.at(merged, bins + SIDE - 1, counts)
    return merged
