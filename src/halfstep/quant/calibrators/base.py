"""What every calibrator does: look at values, remember little, answer with a range.

    calibrator = Percentile(QType.parse("int8"), percentile=99.9)
    for batch in batches:
        calibrator.update(batch)          # nothing of ``batch`` is kept
    low, high = calibrator.range()        # float64, shape (), (channels,) or (channels, groups)

The range is what the grid has to cover; ``Affine.from_range`` widens it to hold zero. It never
exceeds the smallest and largest values that were seen. A power-of-two scale is rounded up, so that
it covers the range; a method that weighs errors looks at the grid that comes of it.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from halfstep.core.qtype import QType
from halfstep.errors import CalibrationError, unknown_name

Range = NDArray[np.floating]


class Calibrator(ABC):
    """Finds the range of one site.

    Attributes:
        qtype: the codes that the range will be divided into.
        axis: the axis that keeps one range an index; ``None`` is one range for the tensor.
        group_size: how many consecutive values of an index have one range; ``None`` is all.
        symmetric: the grid will be symmetric around zero.
        pow2: the scale of the grid will be a power of two.
        options: the options of the method, with its defaults filled in.
        updates: how many tensors were seen, here and in what was merged.
        low: the smallest values seen, shape (), (channels,) or (channels, groups).
        high: the largest values seen, the same shape.
    """

    defaults: ClassVar[Mapping[str, float]] = MappingProxyType({})
    """The options of the method and their default values."""

    depends_on_batches: ClassVar[bool] = False
    """Whether the range depends on how the same values are split into updates."""

    per_channel: ClassVar[bool] = True
    """Whether the method can keep one range per channel."""

    per_group: ClassVar[bool] = True
    """Whether the method can keep one range per group; zeros that fill one up must not matter."""

    channels_at_once: ClassVar[bool] = False
    """Whether channels are looked at directly: one update (a weight), and nothing to merge."""

    remembers: ClassVar[tuple[str, ...]] = ()
    """The attributes, beside ``low`` and ``high``, that hold what was seen, per tensor."""

    def __init__(
        self,
        qtype: QType,
        *,
        axis: int | None = None,
        group_size: int | None = None,
        symmetric: bool = False,
        pow2: bool = False,
        **options: float,
    ) -> None:
        for name in options.keys() - self.defaults.keys():
            raise unknown_name(f"option of the {self.name} calibrator", name, self.defaults)
        if axis is not None and not self.per_channel:
            raise CalibrationError(
                f"the {self.name} calibrator finds one range for a tensor, found axis {axis}: "
                "for channels use minmax, percentile or mse"
            )
        if group_size is not None and not (self.per_group and axis is not None):
            raise CalibrationError(
                f"the {self.name} calibrator finds no ranges of groups with axis={axis}: use "
                "minmax or mse along an axis"
            )
        self.qtype = qtype
        self.axis = axis
        self.group_size = group_size
        self.symmetric = symmetric
        self.pow2 = pow2
        self.options: Mapping[str, float] = {**self.defaults, **options}
        self.updates = 0
        self.low: Range = np.asarray(np.inf)
        self.high: Range = np.asarray(-np.inf)

    @property
    def name(self) -> str:
        """The name of the method, for messages."""
        return type(self).__name__.lower()

    def update(self, values: torch.Tensor) -> None:
        """Look at one batch of values, or at a weight; the tensor is not kept.

        Raises:
            CalibrationError: a value is NaN or infinite, there are no values, or their shape does
                not fit. The calibrator is then as it was before.
        """
        self._check_count(1)
        values = self._arrange(values.detach().to(torch.float32))
        low, high = _extremes(values, dim=None if self.axis is None else -1)
        self._check_channels(low)
        self._observe(values, low, high)
        self._widen(low, high, 1)

    def merge(self, other: Self) -> None:
        """Take over what ``other`` saw, as if it had been seen here too."""
        if self._settings() != other._settings():
            raise CalibrationError(f"cannot merge {other} into {self}: their settings differ")
        self._check_count(other.updates)
        if not other.updates:
            return
        self._check_channels(other.low)
        self._merge(other)
        self._widen(other.low, other.high, other.updates)

    def adopt(self, other: "Calibrator") -> Self:
        """Take over what ``other``, of any method, type and options, saw; it stays as it was.

        So one calibrator that watched can answer for several: for another number of bits, or for
        a method that remembers no more than it does.

        Raises:
            CalibrationError: this one has seen values itself, or needs to know what ``other`` does
                not remember.
        """
        enough = set(self.remembers) <= set(other.remembers) and self._rows() == other._rows()
        if self.axis is not None:
            enough = enough and not self.remembers
        if self.depends_on_batches:
            enough = enough and self.options == other.options
        if self.updates or not enough:
            raise CalibrationError(
                f"{self} cannot take over what {other} saw: asked for a new calibrator, and for "
                f"one that remembers {', '.join(self.remembers) or 'extremes along the same axis'}"
            )
        for name in ("low", "high", "updates", *self.remembers):
            setattr(self, name, copy.deepcopy(getattr(other, name)))
        return self

    def range(self) -> tuple[Range, Range]:
        """The smallest and largest values to represent, float64, in the shape of the scales.

        Raises:
            CalibrationError: nothing was seen yet.
        """
        if not self.updates:
            raise CalibrationError("no range: the calibrator has not seen any values")
        low, high = self._range()
        return np.asarray(low, np.float64), np.asarray(high, np.float64)

    @abstractmethod
    def _observe(self, values: torch.Tensor, low: Range, high: Range) -> None:
        """Remember what the method needs of finite float32 values.

        Args:
            values: shape (values,) per tensor, (channels, values of a channel) per channel, and
                (channels, groups, values of a group) with the last group filled up with zeros.
            low: their smallest values, without the last axis; ``self.low`` is still the old one.
            high: their largest values.
        """

    @abstractmethod
    def _merge(self, other: Self) -> None:
        """Take over what ``other._observe`` remembered; ``self.updates`` is still the old one."""

    @abstractmethod
    def _range(self) -> tuple[Range, Range]:
        """The range, after at least one update."""

    def _clip(self, largest: Range) -> tuple[Range, Range]:
        """``[-largest, largest]`` where values were seen."""
        return np.clip(-largest, self.low, self.high), np.clip(largest, self.low, self.high)

    def _widen(self, low: Range, high: Range, updates: int) -> None:
        self.low = np.minimum(self.low, low)
        self.high = np.maximum(self.high, high)
        self.updates += updates

    def _arrange(self, values: torch.Tensor) -> torch.Tensor:
        if values.numel() == 0:
            raise CalibrationError(f"no values in a tensor of shape {tuple(values.shape)}")
        if self.axis is None:
            # In the order of the memory: no copy of any dense layout, such as channels-last.
            order = sorted(range(values.ndim), key=values.stride, reverse=True)
            return values.permute(order).reshape(-1)
        if not -values.ndim <= self.axis < values.ndim:
            raise CalibrationError(f"no axis {self.axis} in shape {tuple(values.shape)}")
        rows = values.movedim(self.axis, 0).reshape(values.shape[self.axis], -1)
        if self.group_size is None:
            return rows
        # Zeros change no range, as every grid holds zero, and make no error.
        missing = -rows.shape[1] % self.group_size
        filled: torch.Tensor = torch.nn.functional.pad(rows, (0, missing))
        return filled.reshape(len(rows), -1, self.group_size)

    def _check_count(self, new: int) -> None:
        if self.channels_at_once and self.axis is not None and self.updates + new > 1:
            raise CalibrationError(
                f"{self.updates + new} updates: per channel, the {self.name} calibrator looks at "
                "all values of a weight at once; give one tensor, or use minmax"
            )

    def _check_channels(self, low: Range) -> None:
        if self.updates and low.shape != self.low.shape:
            raise CalibrationError(f"{low.size} channels after {self.low.size} channels")

    def _rows(self) -> tuple[int | None, int | None]:
        return self.axis, self.group_size

    def _settings(self) -> tuple[object, ...]:
        grid = self.qtype, self.axis, self.group_size, self.symmetric, self.pow2
        return type(self), *grid, self.options

    def __str__(self) -> str:
        words = [self.name, str(self.qtype), f"axis={self.axis}", f"symmetric={self.symmetric}"]
        words += [] if self.group_size is None else [f"group_size={self.group_size}"]
        words += ["pow2"] if self.pow2 else []
        return " ".join(words + [f"{name}={value:g}" for name, value in self.options.items()])


def _extremes(values: torch.Tensor, dim: int | None) -> tuple[Range, Range]:
    """The smallest and largest values, in the one pass that finds NaN and infinity as well."""
    ends = torch.aminmax(values) if dim is None else torch.aminmax(values, dim=dim)
    low, high = (end.double().cpu().numpy() for end in ends)
    both = np.stack([low, high])
    if not np.isfinite(both).all():
        bad = both[~np.isfinite(both)][0]
        raise CalibrationError(f"non-finite value ({bad}) in a tensor of {values.numel()} values")
    return low, high
