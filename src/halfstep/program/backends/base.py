"""What a backend adds to the array API."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from numpy.typing import NDArray

Array = Any


class Backend(Protocol):
    """Arrays of one library on one device.

    Attributes:
        xp: the library, as ``array_api_compat`` shows it.
    """

    xp: Any

    def computing(self) -> AbstractContextManager[None]:
        """Settings of the library under which every kernel runs."""
        ...

    def asarray(self, values: NDArray[Any]) -> Array:
        """The values as an array of this backend."""
        ...

    def to_numpy(self, array: Array) -> NDArray[Any]:
        """The values as a numpy array."""
        ...

    def dtype(self, name: str) -> Any:
        """The dtype that stands for the numpy dtype ``name``; a wider one where that is missing."""
        ...

    def saturate(self, codes: Array, low: int, high: int, dtype: str) -> Array:
        """Clamp integer-valued ``codes`` and store them as ``dtype``."""
        ...

    def erf(self, x: Array) -> Array:
        """The error function, which the array API does not have."""
        ...

    def matmul(self, a: Array, b: Array) -> Array:
        """A product of matrices, or of stacks of them.

        Integers in float32 or float64 must give the exact result as long as every sum of absolute
        products fits the mantissa: no arithmetic of fewer bits, whatever the user has allowed.
        """
        ...

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """(..., in) times the transpose of (out, in), plus (out,); exact as ``matmul`` is."""
        ...

    def convolve(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Array:
        """Cross-correlate (N, C, *spatial), already padded, with (O, C / groups, *kernel).

        Exact as ``matmul`` is, so by no fast algorithm (Winograd, FFT).
        """
        ...
