"""Operations that move values and never change them: the same code for codes and real values."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from halfstep.core.execution import BATCH
from halfstep.program.batch import repeats
from halfstep.program.kernels.setup import Array, Setup, Step

# PyTorch's names of the ways to pad, and numpy's.
_REPEATING: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def reshape(setup: Setup) -> Step:
    """To the shape of the output; ``BATCH`` is whatever is left."""
    return lambda x: setup.xp.reshape(x, setup.attrs["shape"])


def transpose(setup: Setup) -> Step:
    """Permute the axes."""
    return lambda x: setup.xp.permute_dims(x, setup.attrs["perm"])


def slice_(setup: Setup) -> Step:
    """``[start:stop:step]`` along one axis."""
    window = slice(setup.attrs["start"], setup.attrs["stop"], setup.attrs["step"])
    index = (slice(None),) * setup.attrs["axis"] + (window,)
    return lambda x: x[index]


def pad(setup: Setup) -> Step:
    """Pad every axis by (before, after): real zero is the code ``zero_point``."""
    margins, mode = setup.attrs["padding"], setup.attrs["mode"]
    codes = setup.program.tensor(setup.op.inputs[0]).grid is not None
    if mode == "constant":
        value = setup.zero(0) if codes else setup.attrs["value"]
        return lambda x: padded(setup.xp, x, margins, value)

    def run(x: Array) -> Array:
        for axis, margin in enumerate(margins):
            if margin != (0, 0):
                index = np.pad(np.arange(x.shape[axis]), margin, mode=_REPEATING[mode])
                x = setup.xp.take(x, setup.constant(index, "int64"), axis=axis)
        return x

    return run


def padded(xp: Any, x: Array, margins: Sequence[tuple[int, int]], value: float) -> Array:
    """``x`` with its last axes padded by (before, after); negative margins crop."""
    n_leading = x.ndim - len(margins)
    head = (slice(None),) * n_leading
    kept = [
        slice(max(-before, 0), size - max(-after, 0))
        for (before, after), size in zip(margins, x.shape[n_leading:], strict=True)
    ]
    x = x[(*head, *kept)]
    outer = [(max(before, 0), max(after, 0)) for before, after in margins]
    if not any(map(any, outer)):
        return x
    inside = [
        slice(before, before + size)
        for (before, _), size in zip(outer, x.shape[n_leading:], strict=True)
    ]
    sizes = [
        before + size + after
        for (before, after), size in zip(outer, x.shape[n_leading:], strict=True)
    ]
    out = xp.full((*x.shape[:n_leading], *sizes), value, dtype=x.dtype, device=x.device)
    out[(*head, *inside)] = x
    return out


def concat(setup: Setup) -> Step:
    """Join along one axis."""
    return lambda *parts: setup.xp.concat(parts, axis=setup.attrs["axis"])


def minimum(setup: Setup) -> Step:
    """The smaller of two values: on one grid, the smaller of two codes."""
    smaller: Step = setup.xp.minimum
    return smaller


def expand(setup: Setup) -> Step:
    """Repeat axes of size 1, ``BATCH`` times by the number of samples, the last argument.

    An axis that grows with the batch already may be a multiple of it, and stays what it is.
    """
    sizes = repeats(setup.program, setup.op)

    def run(x: Array, batch: int) -> Array:
        own = (1,) * (len(sizes) - x.ndim) + tuple(x.shape)
        wanted = (batch if size == BATCH else size for size in sizes)
        return setup.xp.broadcast_to(x, tuple(map(max, wanted, own)))

    return run


def upsample_nearest(setup: Setup) -> Step:
    """Repeat each value along the spatial axes by an integer factor."""

    def run(x: Array) -> Array:
        for axis, factor in enumerate(setup.attrs["factors"], start=2):
            x = setup.xp.repeat(x, factor, axis=axis)
        return x

    return run


def embedding(setup: Setup) -> Step:
    """Rows of the table (first input) chosen by integer indices (second input)."""
    del setup
    return lambda table, index: table[index]
