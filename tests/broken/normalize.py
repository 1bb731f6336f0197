"""Deliberately broken layer normalizations of codes: each has one fault, which a law must find."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core import normalize

Array = NDArray[Any]


def _parts(steps: Array, n_axes: int) -> tuple[Array, Array, int]:
    axes = tuple(range(-n_axes, 0))
    n = int(np.prod(steps.shape[-n_axes:]))
    centred = steps * n - steps.sum(axis=axes, keepdims=True)
    return centred, (centred**2).sum(axis=axes, keepdims=True), n


def _divided(centred: Array, root: Array, half: int) -> Array:
    size = ((np.abs(centred) << 18) + half * (root // 2)) // np.maximum(root, 1)
    return np.where(centred < 0, -size, size)


def _without_eps(steps: Array, n_axes: int, scale: Any, eps: float) -> Array:
    del scale, eps
    centred, squares, n = _parts(steps, n_axes)
    return _divided(centred, normalize.square_root((squares << 16) // n), 1)


def _eps_without_scale(steps: Array, n_axes: int, scale: Any, eps: float) -> Array:
    del scale
    return normalize.normalized(steps, n_axes, np.float32(1), eps)


def _cut_off(steps: Array, n_axes: int, scale: Any, eps: float) -> Array:
    centred, squares, n = _parts(steps, n_axes)
    variance = (squares << 16) // n + normalize.eps_term(n, scale, eps)
    return _divided(centred, normalize.square_root(variance), 0)


def _root_to_nearest(steps: Array, n_axes: int, scale: Any, eps: float) -> Array:
    centred, squares, n = _parts(steps, n_axes)
    variance = (squares << 16) // n + normalize.eps_term(n, scale, eps)
    return _divided(centred, np.rint(np.sqrt(variance)).astype(np.int64), 1)


def _of_the_last_axis(steps: Array, n_axes: int, scale: Any, eps: float) -> Array:
    del n_axes
    return normalize.normalized(steps, 1, scale, eps)


NORMALIZE_SPECIMENS: dict[str, Callable[..., Array]] = {
    "without eps": _without_eps,
    "eps without scale": _eps_without_scale,
    "cut off": _cut_off,
    "root to nearest": _root_to_nearest,
    "of the last axis": _of_the_last_axis,
}
