"""The reference backend: numpy on the CPU."""

import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


class NumpyBackend:
    """Numpy arrays; a convolution is one matrix product for each kernel tap."""

    def asarray(self, values: Array) -> Array:
        """The values themselves."""
        return np.asarray(values)

    def to_numpy(self, array: Array) -> Array:
        """The values themselves."""
        return np.asarray(array)

    def convolve(
        self, x: Array, weight: Array, stride: tuple[int, ...], dilation: tuple[int, ...], groups: int
    ) -> Array:
        """See ``Backend.convolve``."""
        n, channels, *sizes = x.shape
        kernel = weight.shape[2:]
        out_sizes = [
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)
        ]
        grouped = weight.reshape(groups, -1, channels // groups, *kernel)
        out = np.zeros((n, groups, grouped.shape[1], int(np.prod(out_sizes))), x.dtype)
        for tap in itertools.product(*map(range, kernel)):
            window = tuple(
                slice(t * d, t * d + s * (size - 1) + 1, s)
                for t, d, s, size in zip(tap, dilation, stride, out_sizes, strict=True)
            )
            patch = x[(slice(None), slice(None), *window)]
            patch = patch.reshape(n, groups, channels // groups, -1)
            out += np.matmul(grouped[(..., *tap)], patch)
        return out.reshape(n, -1, *out_sizes)
