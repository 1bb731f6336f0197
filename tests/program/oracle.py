"""What weighted operations add up, by their definitions, in int64: slow and independent."""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Pairs = tuple[tuple[int, int], ...]


def convolution(
    x: Ints, weight: Ints, stride: Any, padding: Pairs, dilation: Any, groups: int
) -> Ints:
    """Each output is a sum over the inputs that its window sees."""
    x = np.pad(x, ((0, 0), (0, 0), *padding))
    outputs, per_group, *kernel = weight.shape
    sizes = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    y = np.zeros((x.shape[0], outputs, *sizes), np.int64)
    for o, at in itertools.product(range(outputs), np.ndindex(*sizes)):
        group = o // (outputs // groups)
        channels = slice(group * per_group, (group + 1) * per_group)
        window = tuple(
            slice(i * s, i * s + d * (k - 1) + 1, d)
            for i, s, d, k in zip(at, stride, dilation, kernel, strict=True)
        )
        seen = x[(slice(None), channels, *window)]
        y[(slice(None), o, *at)] = (seen * weight[o]).reshape(len(x), -1).sum(axis=1)
    return y


def transposed(
    x: Ints,
    weight: Ints,
    stride: Any,
    padding: Pairs,
    dilation: Any,
    groups: int,
    output_padding: Any,
) -> Ints:
    """Each input adds its kernel to the outputs."""
    inputs, per_group, *kernel = weight.shape
    full = [
        s * (size - 1) + d * (k - 1) + 1 + extra
        for size, s, d, k, extra in zip(
            x.shape[2:], stride, dilation, kernel, output_padding, strict=True
        )
    ]
    y = np.zeros((x.shape[0], groups * per_group, *full), np.int64)
    for i, at, tap in itertools.product(
        range(inputs), np.ndindex(*x.shape[2:]), np.ndindex(*kernel)
    ):
        group = i // (inputs // groups)
        channels = slice(group * per_group, (group + 1) * per_group)
        where = tuple(p * s + t * d for p, s, t, d in zip(at, stride, tap, dilation, strict=True))
        here = x[(slice(None), i, *at)][:, None] * weight[(i, slice(None), *tap)][None, :]
        y[(slice(None), channels, *where)] += here
    kept = tuple(slice(a, size - b) for (a, b), size in zip(padding, full, strict=True))
    return y[(slice(None), slice(None), *kept)]
