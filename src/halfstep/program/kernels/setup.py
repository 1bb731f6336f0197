"""What a kernel is told before the first run, and the steps that many of them share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halfstep.core.grid import Affine
from halfstep.program.backends.base import Backend
from halfstep.program.ir import IntProgram, Op, Tensor

Array = Any


@dataclass(frozen=True, eq=False)
class Setup:
    """One operation of a program and the backend that runs it.

    Attributes:
        program: for the tensors that the operation reads and makes.
        op: what to compute.
        backend: where arrays live.
    """

    program: IntProgram
    op: Op
    backend: Backend

    @property
    def attrs(self) -> Any:
        """The attributes of the operation."""
        return self.op.attrs

    @property
    def xp(self) -> Any:
        """The array API of the backend."""
        return self.backend.xp

    @property
    def out(self) -> Tensor:
        """The tensor to make."""
        return self.program.tensor(self.op.output)

    @property
    def out_grid(self) -> Affine:
        """The grid of the output, which holds codes."""
        return self.program.grid(self.op.output)

    def grid(self, index: int) -> Affine:
        """The grid of an input that holds codes."""
        return self.program.grid(self.op.inputs[index])

    def zero(self, index: int) -> int:
        """The code of real zero of an input; 0 for an input of real values."""
        grid = self.program.tensor(self.op.inputs[index]).grid
        return 0 if grid is None else int(grid.zero_point)

    def constant(self, values: ArrayLike, dtype: str) -> Array:
        """Numpy ``values`` as an array of the backend."""
        return self.backend.asarray(np.asarray(values, dtype))

    def steps(self, index: int, codes: Array, dtype: str) -> Array:
        """``code - zero_point`` of an input in a float type that holds it exactly."""
        real = self.xp.astype(codes, self.backend.dtype(dtype))
        zero = self.zero(index)
        return real - zero if zero else real

    def along_channels(self, values: NDArray[Any], axis: int) -> NDArray[Any]:
        """Values of the channels, or one for all, in a shape that broadcasts over the output."""
        shape = [1] * len(self.out.shape)
        shape[axis] = -1
        return values.reshape(shape) if values.ndim else values

    def saturate(self, codes: Array) -> Array:
        """Clamp to the operation's bounds and to the output type; store as that type."""
        low, high = self.op.clamp or (self.out_grid.qtype.qmin, self.out_grid.qtype.qmax)
        return self.backend.saturate(codes, low, high, self.out.dtype)

    def dequantize(self, index: int, codes: Array) -> Array:
        """An input's real values, float32."""
        grid = self.grid(index)
        scale, zero = (grid.spread(v, codes.shape) for v in (grid.scale, grid.zero_point))
        steps = self.xp.astype(codes, self.xp.int32) - self.constant(zero, "int32")
        return self.xp.astype(steps, self.xp.float32) * self.constant(scale, "float32")


# A kernel is made once for each operation, with its constants ready; its step runs each batch on
# the operation's input arrays (codes are in their storage type) and returns the output array.
Step = Callable[..., Array]
Kernel = Callable[[Setup], Step]
