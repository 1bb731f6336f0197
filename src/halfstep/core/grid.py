"""What was found for a site: the grid that its values lie on.

One equation everywhere, with integer zero points, so that real zero is always on the grid:

    real = scale * (code - zero_point)
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core.qtype import QType
from halfstep.errors import CalibrationError

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.integer]

# The smallest scale that is still a normal float32 with room for products of two scales.
SMALLEST_SCALE = np.float32(2.0**-60)


@dataclass(frozen=True, eq=False)
class Affine:
    """A uniform grid: per tensor, per index of one axis, or per group within each index.

    Attributes:
        qtype: the codes.
        scale: float32, shape (), (channels,) or (channels, groups); positive and finite.
        zero_point: int32, the shape of ``scale``; the code of real zero.
        axis: the axis that the channels run along; ``None`` for shape ().
        group_size: how many consecutive values of a channel, in the order of the memory, have one
            scale; the last group holds what is left. ``None`` is one scale a channel.
    """

    qtype: QType
    scale: FloatArray
    zero_point: NDArray[np.int32]
    axis: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        scale = np.array(self.scale, dtype=np.float32)
        zero_point = np.broadcast_to(np.array(self.zero_point, dtype=np.int32), scale.shape).copy()
        if scale.ndim != (self.axis is not None) + (self.group_size is not None):
            found = f"axis {self.axis} with scales of shape {scale.shape}"
            if self.group_size is not None:
                found += f" and groups of {self.group_size}"
            raise CalibrationError(found)
        if not np.all(np.isfinite(scale) & (scale > 0)):
            raise CalibrationError(f"scales must be positive and finite, found {scale.min()}")
        if np.any((zero_point < self.qtype.qmin) | (zero_point > self.qtype.qmax)):
            raise CalibrationError(f"zero point {zero_point} is outside of {self.qtype}")
        for name, value in (("scale", scale), ("zero_point", zero_point)):
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    @classmethod
    def from_range(
        cls,
        low: FloatArray,
        high: FloatArray,
        qtype: QType,
        *,
        axis: int | None = None,
        group_size: int | None = None,
        symmetric: bool = False,
        pow2: bool = False,
    ) -> "Affine":
        """The grid that covers ``[low, high]``, widened to hold zero.

        A width of zero (a constant 0, a dead channel) gives scale 1. The zero point is rounded,
        so one end of an asymmetric range moves by up to half a step.

        Args:
            low: smallest real values, shape (), (channels,) or (channels, groups).
            high: largest real values, the same shape.
            qtype: the codes.
            axis: the axis that the channels run along.
            group_size: the size of a group, for ranges of groups.
            symmetric: zero point 0, and the smallest scale that covers both ends.
            pow2: round the scale up to a power of two.
        """
        low = np.minimum(np.asarray(low, np.float64), 0)
        high = np.maximum(np.asarray(high, np.float64), 0)
        if not np.all(np.isfinite(high - low)):
            raise CalibrationError(f"a range must be finite, found [{low.min()}, {high.max()}]")
        if symmetric:
            scale = np.maximum(-low / max(-qtype.qmin, 1), high / max(qtype.qmax, 1))
        else:
            scale = (high - low) / (qtype.qmax - qtype.qmin)
        scale = np.where(scale > 0, np.maximum(scale, SMALLEST_SCALE), 1.0).astype(np.float32)
        if pow2:
            scale = power_of_two_above(scale)
        if symmetric:
            zero_point = np.zeros(scale.shape, np.int32)
        else:
            zero_point = np.clip(np.rint(qtype.qmin - low / scale), qtype.qmin, qtype.qmax)
        return cls(qtype, scale, zero_point.astype(np.int32), axis, group_size)

    @property
    def low(self) -> FloatArray:
        """The smallest real value on the grid, the shape of ``scale``."""
        return self.scale * (self.qtype.qmin - self.zero_point).astype(np.float32)

    @property
    def high(self) -> FloatArray:
        """The largest real value on the grid, the shape of ``scale``."""
        return self.scale * (self.qtype.qmax - self.zero_point).astype(np.float32)

    def along(self, values: NDArray[Any], ndim: int) -> NDArray[Any]:
        """Reshape per-channel ``values`` so that they broadcast over an array of ``ndim`` axes."""
        if self.axis is None:
            return values
        return values.reshape([-1 if axis == self.axis % ndim else 1 for axis in range(ndim)])

    def spread(self, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """``values`` of the shape of ``scale``, so that they broadcast over an array of ``shape``.

        Raises:
            CalibrationError: the array has another number of groups.
        """
        if self.group_size is None:
            return self.along(values, len(shape))
        assert self.axis is not None, "groups are parts of a channel"
        axis = self.axis % len(shape)
        channels, *others = shape[axis], *shape[:axis], *shape[axis + 1 :]
        n_values = math.prod(others)
        if values.shape != (channels, group_count(n_values, self.group_size)):
            raise CalibrationError(
                f"scales of shape {values.shape} in groups of {self.group_size} for values of "
                f"shape {shape} with channels on axis {axis}"
            )
        each = np.repeat(values, self.group_size, axis=1)[:, :n_values]
        return np.moveaxis(each.reshape(channels, *others), 0, axis)

    @property
    def channel_scale(self) -> FloatArray:
        """The largest scale of each channel: that of the channel, or of one of its groups."""
        return self.scale if self.group_size is None else self.scale.max(axis=1)

    def quantize(self, real: NDArray[np.floating]) -> IntArray:
        """Codes of float32 values: true division, round half to even, saturate."""
        real = np.asarray(real, np.float32)
        with np.errstate(over="ignore"):  # too many steps for float32: saturates like any other
            steps = np.rint(real / self.spread(self.scale, real.shape))
        codes = steps + self.spread(self.zero_point, real.shape)
        codes = np.clip(codes, self.qtype.qmin, self.qtype.qmax)
        return np.asarray(codes, self.qtype.storage)

    def dequantize(self, codes: IntArray) -> FloatArray:
        """Real values of codes: one float32 multiplication, as every runtime does it."""
        wide = np.int64 if self.qtype.bits > 32 else np.int32
        steps = codes.astype(wide) - self.spread(self.zero_point, codes.shape)
        return np.asarray(self.spread(self.scale, codes.shape) * steps.astype(np.float32))

    def nearest(self, real: NDArray[np.floating]) -> FloatArray:
        """The values on the grid that ``real`` is rounded to."""
        return self.dequantize(self.quantize(real))

    def same_as(self, other: "Affine") -> bool:
        """Whether both grids give every code the same real value."""
        return (
            (self.qtype, self.axis, self.group_size) == (other.qtype, other.axis, other.group_size)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def __str__(self) -> str:
        if self.axis is None:
            return f"{self.qtype} scale={self.scale:.6g} zero_point={self.zero_point}"
        return (
            f"{self.qtype} {self.scale.size} scales in [{self.scale.min():.6g}, "
            f"{self.scale.max():.6g}] on axis {self.axis}"
            + ("" if self.group_size is None else f" in groups of {self.group_size}")
        )


def group_count(n_values: int, group_size: int) -> int:
    """How many groups so many values of a channel make; the last may be smaller."""
    return -(-n_values // group_size)


def power_of_two_above(values: FloatArray) -> FloatArray:
    """The smallest power of two that is not below each of positive ``values``; 0 stays 0."""
    # Not ceil(log2): a float32 logarithm cannot tell 8 from the next number above it.
    mantissa, exponent = np.frexp(values)
    power = np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
    return np.where(values == 0, values, power)
