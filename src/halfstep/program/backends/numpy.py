"""The reference backend: numpy on the CPU."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import array_api_compat.numpy
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class NumpyBackend:
    """Numpy arrays; a convolution is one matrix product for each kernel tap."""

    xp: Any = array_api_compat.numpy

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Too large is infinite, 0 / 0 is no number, without a word: as in torch and runtimes."""
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            yield

    def asarray(self, values: Array) -> Array:
        """The values themselves."""
        return np.asarray(values)

    def to_numpy(self, array: Array) -> Array:
        """The values themselves."""
        return np.asarray(array)

    def dtype(self, name: str) -> Any:
        """See ``Backend.dtype``."""
        return np.dtype(name)

    def saturate(self, codes: Array, low: int, high: int, dtype: str) -> Array:
        """See ``Backend.saturate``."""
        return np.asarray(np.clip(codes, low, high).astype(dtype))

    def erf(self, x: Array) -> Array:
        """See ``Backend.erf``."""
        return np.asarray(np.vectorize(math.erf, otypes=[x.dtype])(x))

    def matmul(self, a: Array, b: Array) -> Array:
        """See ``Backend.matmul``."""
        return np.asarray(a @ b)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """See ``Backend.linear``."""
        return np.asarray(x @ weight.T if bias is None else x @ weight.T + bias)

    def convolve(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
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
            at: Any = (..., *tap)
            out += np.matmul(grouped[at], patch)
        if bias is not None:
            out += bias.reshape(groups, -1, 1)
        return out.reshape(n, -1, *out_sizes)
