"""Which ranges are unhealthy: spread between channels, clipping, outliers, codes without use.

Reference: M. Nagel et al., "A white paper on neural network quantization", arXiv 2106.08295, 2021,
section 3.7 (visualize the distributions, and fix the quantizers that are the cause).

For each site, over all values ``x`` that were seen, with ``m_c`` the largest magnitude of channel
``c``:

    spread  = max m_c / median m_c        of channels that are not dead
    crest   = max |x| / sqrt(mean x^2)    about 4 to 6 for a Gaussian
    clipped = share of values outside of the grid by more than half a step
    used    = width of what was seen / width of the grid

and what they mean, with the limits below: one scale for all channels wastes ``log2(spread)`` bits
on the median channel; a range that holds far outliers wastes as many bits on everything else.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfstep.core.grid import Affine
from halfstep.graph.insert import QuantizedModel
from halfstep.graph.placement import WEIGHTED
from halfstep.progress import Progress, silent
from halfstep.search.samples import stream
from halfstep.search.sqnr import Seen, side_by_side
from halfstep.search.walk import Walk

Array = NDArray[np.floating]

# Beyond these a range is called unhealthy.
LARGEST_SPREAD = 16.0  # four bits
LARGEST_CREST = 32.0
LARGEST_CLIPPED = 0.03  # more than the least squared error clips, even with few bits
SMALLEST_USED = 0.5  # one bit


@dataclass(frozen=True)
class RangeHealth:
    """What a site's values are like, and its grid.

    Attributes:
        site: its name.
        bits: of its codes.
        per_channel: whether it has a scale a channel.
        low: the smallest value that was seen.
        high: the largest.
        spread: how much larger the largest channel is than the median one.
        crest: the largest magnitude over the root mean square.
        clipped: share of values that the grid does not reach.
        used: share of the grid's width that values use.
    """

    site: str
    bits: int
    per_channel: bool
    low: float
    high: float
    spread: float
    crest: float
    clipped: float
    used: float

    @property
    def problems(self) -> tuple[str, ...]:
        """What is unhealthy, in words; empty if nothing is."""
        found = []
        if self.spread > LARGEST_SPREAD and not self.per_channel:
            found.append(f"channels differ {self.spread:.0f} times, and share one scale")
        if self.crest > LARGEST_CREST:
            found.append(f"outliers: the largest value is {self.crest:.0f} times the usual one")
        if self.clipped > LARGEST_CLIPPED:
            found.append(f"{self.clipped:.1%} of the values are clipped")
        if self.used < SMALLEST_USED:
            found.append(f"values use {self.used:.0%} of the grid")
        return tuple(found)


@dataclass
class RangeStatistics:
    """What ``RangeHealth`` is computed from, over the batches that were added.

    Attributes:
        low: the smallest values seen, (channels,).
        high: the largest.
        squares: sum of squares.
        clipped: how many values the grid does not reach.
        count: how many were seen.
    """

    low: Array | None = None
    high: Array | None = None
    squares: float = 0.0
    clipped: int = 0
    count: int = 0

    def add(self, values: Tensor, grid: Affine, axis: int) -> None:
        """Count values whose channels are on ``axis``."""
        channels = values.movedim(axis, 0).flatten(1) if values.ndim > 1 else values.reshape(1, -1)
        low, high = (end.cpu().numpy() for end in torch.aminmax(channels, dim=1))
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        self.squares += float(values.square().sum(dtype=torch.float64))
        self.clipped += clipped(values, grid)
        self.count += values.numel()

    def health(self, site: str, grid: Affine) -> RangeHealth:
        """What was found."""
        assert self.low is not None and self.high is not None, "something was added"
        largest = np.maximum(np.abs(self.low), np.abs(self.high))
        alive = largest[largest > 0]
        usual = float(np.sqrt(self.squares / self.count))
        widths = np.asarray(grid.high - grid.low, np.float64)
        whole = (min(self.low.min(), 0), max(self.high.max(), 0))
        seen = np.asarray(whole[1] - whole[0])
        if widths.ndim == 1:
            seen = np.maximum(self.high, 0) - np.minimum(self.low, 0)
        return RangeHealth(
            site,
            grid.qtype.bits,
            grid.axis is not None,
            float(self.low.min()),
            float(self.high.max()),
            spread=float(alive.max() / np.median(alive)) if alive.size else 1.0,
            crest=float(largest.max()) / usual if usual else 1.0,
            clipped=self.clipped / self.count,
            used=float(np.median(np.minimum(seen / widths, 1))) if widths.ndim < 2 else 1.0,
        )


def clipped(values: Tensor, grid: Affine) -> int:
    """How many values lie beyond the ends of the grid by more than half a step."""
    shape = tuple(values.shape)
    low, high = (
        torch.from_numpy(np.array(grid.spread(end, shape), np.float32)).to(values.device)
        for end in (grid.low - grid.scale / 2, grid.high + grid.scale / 2)
    )
    return int(((values < low) | (values > high)).sum())


def range_health(
    model: QuantizedModel, data: Iterable[Any], *, progress: Progress = silent
) -> tuple[RangeHealth, ...]:
    """Every weight, then every activation in order of execution.

    Args:
        model: calibrated; its weights are still those of the float model.
        data: batches; read once, one at a time.
        progress: wraps the batches.

    Raises:
        DataError: no batch, or one that does not fit the model.
    """
    walk = Walk(model)
    found = Ranges()
    for batch in stream(model, data, progress, "ranges"):
        side_by_side(walk, batch.inputs, found.add)
    return (*weight_health(model), *found.health())


def weight_health(model: QuantizedModel) -> tuple[RangeHealth, ...]:
    """Every quantized weight, in order of execution."""
    rows = {}
    for unit in model.weighted_units():
        assert unit.weight is not None
        site = model.weight_site(unit)
        grid = model.quantizer(site).grid()
        statistics = RangeStatistics()
        statistics.add(model.parameter_of(unit.weight).detach(), grid, WEIGHTED[unit.kind])
        rows[site] = statistics.health(site, grid)
    return tuple(rows.values())


class Ranges:
    """The statistics of every activation that was seen on its way through the model."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[RangeStatistics, Affine]] = {}

    def add(self, seen: Seen) -> None:
        """Count one batch of one site."""
        grid = seen.quantizer.grid()
        statistics, _ = self._found.setdefault(seen.site, (RangeStatistics(), grid))
        # Images have their channels on axis 1, features and tokens on the last.
        statistics.add(seen.real, grid, 1 if seen.real.ndim == 4 else -1)

    def health(self) -> tuple[RangeHealth, ...]:
        """Every site, in order of execution."""
        return tuple(stats.health(site, grid) for site, (stats, grid) in self._found.items())
