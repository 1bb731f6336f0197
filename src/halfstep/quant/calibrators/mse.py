"""The range with the smallest squared quantization error.

Reference: M. Nagel et al., "A white paper on neural network quantization", arXiv 2106.08295, 2021,
section 3.1 (range setting by mean squared error).

Equation, with ``Q`` the grid that ``Affine.from_range`` makes of a range:

    low, high = argmin  sum over x of (x - Q(x; low, high))^2

Per tensor, the sum is over the streaming histogram, with the values of a bin spread evenly over it,
integrated exactly. For ``u = x / scale + zero_point``, ``c = clip(u, qmin, qmax)`` and
``n = round(c)``, the squared error in units of the scale has the antiderivative

    G(u) = n / 12 + (c - n)^3 / 3 + (u - c)^3 / 3

so a bin of ``h`` values between codes ``a`` and ``b`` adds ``scale^2 h (G(b) - G(a)) / (b - a)``.
The ends are searched over factors of the observed ends, on a logarithmic grid that is refined
around the best pair: by octaves, then by 1/4, 1/16 and 1/64 of an octave. A symmetric grid has one
factor, of the largest magnitude.

Per channel or group, the sum is over the values themselves, and the factor, one for both ends, is
one of 1/80, 2/80, ... 80/80.

With a power-of-two scale, ``Q`` is the grid that rounding the scale up gives, so the error decides
between neighbouring powers. Per tensor, nine powers are tried from the one that clips nothing on
downwards, each with its best zero point: how much a zero point clips is convex in it, so steps of
64, 16, 4 and 1 (for 8 bits) find it. Per channel, the factors are 1, 1/2, ... 1/256.

All searches include the observed range, widened to hold zero: the result is never worse than
min-max by this measure. Among equals a wider range wins.

Deviations: the paper leaves the search open. The bin around zero counts as free of error: it is
mostly exact zeros, which every grid represents.
"""

from typing import Any, Self

import numpy as np
import torch

from halfstep.core.grid import Affine
from halfstep.core.qtype import QType
from halfstep.quant.calibrators.base import Calibrator, Range
from halfstep.quant.calibrators.histogram import SIDE, Histogram

REFINEMENTS = (1.0, 1 / 4, 1 / 16, 1 / 64)
"""Steps of the search per tensor, in octaves."""

FACTORS = np.arange(80, 0, -1) / 80
"""Factors of the range that are tried per channel."""

HALVINGS = 0.5 ** np.arange(9)
"""Factors that are tried of a power-of-two scale."""

# Quantized at a time per channel, candidates times values: 4 MiB of float32.
CHUNK = 1 << 20


class Mse(Calibrator):
    """Weighs clipping against rounding; the best range for low bit widths."""

    channels_at_once = True
    remembers = ("histogram",)

    def __init__(self, qtype: QType, **settings: Any) -> None:
        super().__init__(qtype, **settings)
        self.histogram = Histogram()
        self.channel_factors: Range = np.ones(0)

    def _observe(self, values: torch.Tensor, low: Range, high: Range) -> None:
        if self.axis is None:
            self.histogram.add(values, float(low), float(high))
        else:
            self.channel_factors = self._best_factors(values, low, high)

    def _merge(self, other: Self) -> None:
        self.histogram.merge(other.histogram)
        self.channel_factors = other.channel_factors

    def _range(self) -> tuple[Range, Range]:
        low, high = np.minimum(self.low, 0), np.maximum(self.high, 0)
        if self.axis is not None:
            return self._shrink(low, high, self.channel_factors, self.channel_factors)
        return self._search_pow2(low, high) if self.pow2 else self._search(low, high)

    def squared_error(self, low: Range, high: Range) -> Range:
        """The squared error, summed over the histogram, of each range in 1-D arrays of ranges."""
        grid = self._grid(low, high)
        scales = grid.scale.astype(np.float64)
        edges, changes = self._density_changes()
        sums = [
            self._antiderivative(edges / scale + zero_point) @ changes
            for scale, zero_point in zip(scales, grid.zero_point, strict=True)
        ]
        errors: Range = np.array(sums) * _cube(scales) / self.histogram.width
        return errors

    def _grid(self, low: Range, high: Range) -> Affine:
        """The grids of ranges in 1-D arrays of them."""
        return Affine.from_range(
            low, high, self.qtype, axis=0, symmetric=self.symmetric, pow2=self.pow2
        )

    def _antiderivative(self, codes: Range) -> Range:
        """``G`` of real-valued codes."""
        clipped = np.clip(codes, self.qtype.qmin, self.qtype.qmax)
        nearest = np.rint(clipped)
        return nearest / 12 + (_cube(clipped - nearest) + _cube(codes - clipped)) / 3

    def _density_changes(self) -> tuple[Range, Range]:
        """Where the number of values in a bin changes, and by minus how much.

        With these the sum over bins of ``h (G(b) - G(a))`` is one over edges, of ``G`` times the
        count on the left less the count on the right.
        """
        positive, negative = self.histogram.counts[SIDE:], self.histogram.counts[: SIDE - 1]
        counts = np.concatenate([[0], negative, [0, 0], positive, [0]])
        changes = -np.diff(counts).astype(np.float64)
        edges = np.arange(-SIDE, SIDE + 1) * self.histogram.width
        return edges[changes != 0], changes[changes != 0]

    def _search(self, low: Range, high: Range) -> tuple[Range, Range]:
        one_factor = self.symmetric or low == 0 or high == 0
        best = np.zeros(2)
        steps = np.arange(0, -9, -1)
        for octave in REFINEMENTS:
            octaves = np.minimum(best[:, None] + octave * steps, 0)
            pairs = octaves if one_factor else np.stack(np.meshgrid(*octaves)).reshape(2, -1)
            errors = self.squared_error(*self._shrink(low, high, *(2.0**pairs)))
            best = pairs[:, errors.argmin()]
            steps = np.arange(4, -5, -1)
        return self._shrink(low, high, *(2.0**best))

    def _search_pow2(self, low: Range, high: Range) -> tuple[Range, Range]:
        """The best power of two with its best zero point, as the part of the range that it has."""
        qmin, qmax = self.qtype.qmin, self.qtype.qmax
        top = self._grid(low[None], high[None])
        scales = float(top.scale[0]) * HALVINGS[:, None]
        steps, zero = [0], 0
        if not self.symmetric:
            zero = qmin if low == 0 else qmax
            if low < 0 < high:
                # The first step reaches every code from every other.
                steps = [4**power for power in range((self.qtype.bits - 1) // 2, -1, -1)]
                zero = int(top.zero_point[0])
        zeros = np.full(scales.shape, zero)
        for step in steps:
            tried = np.clip(zeros + step * np.arange(-4, 5), qmin, qmax)
            ends = (
                np.maximum(low, scales * (qmin - tried)),
                np.minimum(high, scales * (qmax - tried)),
            )
            errors = self.squared_error(*(end.ravel() for end in ends)).reshape(tried.shape)
            zeros = np.take_along_axis(tried, errors.argmin(axis=1)[:, None], axis=1)
        best = np.unravel_index(errors.argmin(), errors.shape)
        # The zero point of the whole range is rounded, which may cut off part of a step.
        found = np.append(low, ends[0][best]), np.append(high, ends[1][best])
        winner = self.squared_error(*found).argmin()
        return found[0][winner], found[1][winner]

    def _shrink(
        self, low: Range, high: Range, low_factor: Range, high_factor: Range
    ) -> tuple[Range, Range]:
        """The range cut to factors of its ends; for a symmetric grid, of its larger end."""
        if not self.symmetric:
            return low * low_factor, high * high_factor
        largest = np.maximum(-low, high) * high_factor
        return np.maximum(low, -largest), np.minimum(high, largest)

    def _best_factors(self, values: torch.Tensor, low: Range, high: Range) -> Range:
        """The factor with the smallest error for each row, the last axis of ``values``."""
        tried = HALVINGS if self.pow2 else FACTORS
        factors = tried[:, None]
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        ends = self._shrink(low.ravel(), high.ravel(), factors, factors)
        grid = self._grid(ends[0].ravel(), ends[1].ravel())
        rows = values.flatten(end_dim=-2)
        shape = (len(tried), len(rows), 1)
        scales = torch.tensor(grid.scale, device=values.device).reshape(shape)
        zero_points = torch.tensor(grid.zero_point, device=values.device).reshape(shape)
        errors = []
        for some in torch.split(torch.arange(len(tried)), max(1, CHUNK // rows.numel())):
            scale, zero_point = scales[some], zero_points[some]
            steps = (rows / scale).round_()
            steps.clamp_(self.qtype.qmin - zero_point, self.qtype.qmax - zero_point)
            errors.append(steps.mul_(scale).sub_(rows).square_().sum(-1, dtype=torch.float64))
        best: Range = tried[torch.cat(errors).cpu().numpy().argmin(axis=0)].reshape(low.shape)
        return best


def _cube(values: Range) -> Range:
    return values * values * values
