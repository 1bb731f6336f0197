"""What was found for a site: the grid that its values lie on.

One equation everywhere, with integer zero points, so that real zero is always on the grid:

    real = scale * (code - zero_point)
"""

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
    """A uniform grid, per tensor or per index of one axis.

    Attributes:
        qtype: the codes.
        scale: float32, shape () or (channels,); positive and finite.
        zero_point: int32, the shape of ``scale``; the code of real zero.
        axis: the axis that the scales run along; ``None`` for shape ().
    """

    qtype: QType
    scale: FloatArray
    zero_point: NDArray[np.int32]
    axis: int | None = None

    def __post_init__(self) -> None:
        scale = np.array(self.scale, dtype=np.float32)
        zero_point = np.broadcast_to(np.array(self.zero_point, dtype=np.int32), scale.shape).copy()
        if scale.ndim != (0 if self.axis is None else 1):
            raise CalibrationError(f"axis {self.axis} with scales of shape {scale.shape}")
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
        symmetric: bool = False,
        pow2: bool = False,
    ) -> "Affine":
        """The grid that covers ``[low, high]``, widened to hold zero.

        A width of zero (a constant 0, a dead channel) gives scale 1. The zero point is rounded,
        so one end of an asymmetric range moves by up to half a step.

        Args:
            low: smallest real values, shape () or (channels,).
            high: largest real values, the same shape.
            qtype: the codes.
            axis: the axis that the ranges run along.
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
            # Not ceil(log2): a float32 logarithm cannot tell 8 from the next number above it.
            mantissa, exponent = np.frexp(scale)
            scale = np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
        if symmetric:
            zero_point = np.zeros(scale.shape, np.int32)
        else:
            zero_point = np.clip(np.rint(qtype.qmin - low / scale), qtype.qmin, qtype.qmax)
        return cls(qtype, scale, zero_point.astype(np.int32), axis)

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

    def quantize(self, real: NDArray[np.floating]) -> IntArray:
        """Codes of float32 values: true division, round half to even, saturate."""
        real = np.asarray(real, np.float32)
        with np.errstate(over="ignore"):  # too many steps for float32: saturates like any other
            steps = np.rint(real / self.along(self.scale, real.ndim))
        codes = steps + self.along(self.zero_point, real.ndim)
        codes = np.clip(codes, self.qtype.qmin, self.qtype.qmax)
        return np.asarray(codes, self.qtype.storage)

    def dequantize(self, codes: IntArray) -> FloatArray:
        """Real values of codes: one float32 multiplication, as every runtime does it."""
        steps = codes.astype(np.int32) - self.along(self.zero_point, codes.ndim)
        return np.asarray(self.along(self.scale, codes.ndim) * steps.astype(np.float32))

    def same_as(self, other: "Affine") -> bool:
        """Whether both grids give every code the same real value."""
        return (
            (self.qtype, self.axis) == (other.qtype, other.axis)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def __str__(self) -> str:
        if self.axis is None:
            return f"{self.qtype} scale={self.scale:.6g} zero_point={self.zero_point}"
        return (
            f"{self.qtype} {self.scale.size} scales in [{self.scale.min():.6g}, "
            f"{self.scale.max():.6g}] on axis {self.axis}"
        )
