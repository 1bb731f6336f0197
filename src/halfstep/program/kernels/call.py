"""What a kernel is given, and the two steps that most of them share."""

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from halfstep.core.grid import Affine
from halfstep.core.requant import like
from halfstep.program.backends.base import Backend
from halfstep.program.ir import Op, Tensor

Array = Any


@dataclass(frozen=True, eq=False)
class Call:
    """One operation with its input arrays.

    Attributes:
        op: what to compute.
        inputs: arrays, in the order of ``op.inputs``; codes are in their storage type.
        grids: the grids of the inputs, ``None`` for real values.
        out: the tensor to make.
        batch: the number of samples.
        float32_is_exact: every sum of absolute products stays below 2^24.
        backend: for what the array API lacks.
    """

    op: Op
    inputs: tuple[Array, ...]
    grids: tuple[Affine | None, ...]
    out: Tensor
    batch: int
    float32_is_exact: bool
    backend: Backend

    @property
    def out_grid(self) -> Affine:
        """The grid of the output, which holds codes."""
        assert self.out.grid is not None, self.out
        return self.out.grid

    def grid(self, index: int) -> Affine:
        """The grid of an input that holds codes."""
        grid = self.grids[index]
        assert grid is not None, self.op
        return grid

    def steps(self, index: int) -> Array:
        """``code - zero_point`` of an input, as float32 or float64, whichever stays exact."""
        codes = self.inputs[index]
        xp = array_namespace(codes)
        real = xp.astype(codes, xp.float32 if self.float32_is_exact else xp.float64)
        zero_point = self.grid(index).zero_point
        return real - int(zero_point) if zero_point.any() else real

    def saturate(self, codes: Array) -> Array:
        """Clamp to the operation's bounds and to the output type; store as that type."""
        xp = array_namespace(codes)
        low, high = self.op.clamp or (self.out_grid.qtype.qmin, self.out_grid.qtype.qmax)
        return xp.astype(xp.clip(codes, low, high), getattr(xp, self.out.dtype))

    def quantize(self, real: Array) -> Array:
        """Float32 values as codes of the output: true division, half to even."""
        xp = array_namespace(real)
        steps = xp.round(real / like(self.out_grid.scale, real, "float32"))
        return self.saturate(steps + int(self.out_grid.zero_point))

    def dequantize(self, index: int) -> Array:
        """An input's real values, float32."""
        codes, grid = self.inputs[index], self.grid(index)
        xp = array_namespace(codes)
        scale, zero_point = (grid.along(v, codes.ndim) for v in (grid.scale, grid.zero_point))
        steps = xp.astype(codes, xp.int32) - like(zero_point, codes, "int32")
        return xp.astype(steps, xp.float32) * like(scale, codes, "float32")
