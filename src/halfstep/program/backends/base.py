"""What a backend adds to the array API."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = Any


class Backend(Protocol):
    """Arrays of one library on one device."""

    def asarray(self, values: NDArray[np.generic]) -> Array:
        """The values as an array of this backend."""
        ...

    def to_numpy(self, array: Array) -> NDArray[np.generic]:
        """The values as a numpy array."""
        ...

    def convolve(
        self, x: Array, weight: Array, stride: tuple[int, ...], dilation: tuple[int, ...], groups: int
    ) -> Array:
        """Cross-correlate (N, C, *spatial), already padded, with (O, C / groups, *kernel).

        The arrays hold integers, as float32 or float64; the result must be exact as long as
        every sum of absolute products fits the mantissa. So no fast algorithm (Winograd, FFT).
        """
        ...
