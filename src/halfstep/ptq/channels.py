"""Mean, deviation and range of the channels of a value, and what operations make of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halfstep.quant.normal import clipped, leaky, through

# Where a function of one value is looked at to find its range.
_SAMPLES = 1025


@dataclass(frozen=True, eq=False)
class Channels:
    """Statistics of one value, each of shape (channels,), float64.

    Attributes:
        mean: the mean.
        deviation: the standard deviation.
        low: the lower end of the range.
        high: the upper end.
        estimated: whether they rest on more than normally distributed batch norm outputs.
    """

    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor
    estimated: bool = False

    @classmethod
    def normal(
        cls, mean: Tensor, deviation: Tensor, deviations: float, estimated: bool = False
    ) -> "Channels":
        """Of normally distributed values, that many deviations to each side."""
        reach = deviations * deviation
        return cls(mean, deviation, mean - reach, mean + reach, estimated)

    @classmethod
    def constant(cls, values: Tensor) -> "Channels":
        """Of values that never change."""
        return cls(values, torch.zeros_like(values), values, values)

    def clip(self, low: Tensor | float | None, high: Tensor | float | None) -> "Channels":
        """Behind ``clip(x, low, high)``, ``None`` where it is open; ``(0, None)`` is ReLU."""
        ends = [self.low, self.high]
        for bound in (low, high):
            if bound is None:
                continue
            value = torch.as_tensor(bound, dtype=torch.float64)
            pick = torch.maximum if bound is low else torch.minimum
            ends = [pick(end, value.expand_as(end)) for end in ends]
        mean, variance = clipped(self.mean, self.deviation, low, high)
        return Channels(mean, variance.sqrt(), ends[0], ends[1], self.estimated)

    def leaky(self, slope: Tensor | float) -> "Channels":
        """Behind a leaky ReLU or a PReLU."""
        mean, variance = leaky(self.mean, self.deviation, slope)
        ends = [torch.where(end > 0, end, slope * end) for end in (self.low, self.high)]
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        crossing = (self.low < 0) & (self.high > 0)
        low = torch.where(crossing, low.clamp(max=0), low)
        return Channels(mean, variance.sqrt(), low, high, self.estimated)

    def through(self, function: Callable[[Tensor], Tensor]) -> "Channels":
        """Behind any function of one value."""
        mean, variance = through(function, self.mean, self.deviation)
        share = torch.linspace(0, 1, _SAMPLES, dtype=torch.float64)
        values = function(self.low[:, None] + (self.high - self.low)[:, None] * share)
        return Channels(mean, variance.sqrt(), values.amin(1), values.amax(1), self.estimated)

    def including_zero(self) -> "Channels":
        """With zeros around, which only the range shows."""
        return replace(self, low=self.low.clamp(max=0), high=self.high.clamp(min=0))

    def repeated(self, count: int) -> "Channels":
        """Every channel that many times in a row."""
        return self._each(lambda values: values.repeat_interleave(count))

    def taken(self, start: int, stop: int, step: int) -> "Channels":
        """Some of the channels."""
        return self._each(lambda values: values[start:stop:step])

    def negated(self) -> "Channels":
        """Of ``-x``."""
        return replace(self, mean=-self.mean, low=-self.high, high=-self.low)

    def plus(self, other: "Channels", deviations: float) -> "Channels":
        """Of the sum with an independent value: means and variances add."""
        constant = not (self.deviation.any() and other.deviation.any())
        total = Channels.normal(
            self.mean + other.mean,
            (self.deviation.square() + other.deviation.square()).sqrt(),
            deviations,
            self.estimated or other.estimated or not constant,
        )
        ends = self.low + other.low, self.high + other.high
        if constant:
            return replace(total, low=ends[0], high=ends[1])
        low, high = torch.maximum(total.low, ends[0]), torch.minimum(total.high, ends[1])
        return replace(total, low=low, high=high)

    def times(self, other: "Channels") -> "Channels":
        """Of the product with an independent value."""
        mean = self.mean * other.mean
        squares = (self.mean**2 + self.deviation**2) * (other.mean**2 + other.deviation**2)
        corners = torch.stack(
            [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        )
        constant = not (self.deviation.any() and other.deviation.any())
        return Channels(
            mean,
            (squares - mean**2).clamp(min=0).sqrt(),
            corners.amin(0),
            corners.amax(0),
            self.estimated or other.estimated or not constant,
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Channels":
        mean, deviation = change(self.mean), change(self.deviation)
        return Channels(mean, deviation, change(self.low), change(self.high), self.estimated)


def joined(parts: Sequence[Channels]) -> Channels:
    """The channels of all parts, in order."""
    return Channels(
        torch.cat([part.mean for part in parts]),
        torch.cat([part.deviation for part in parts]),
        torch.cat([part.low for part in parts]),
        torch.cat([part.high for part in parts]),
        any(part.estimated for part in parts),
    )
