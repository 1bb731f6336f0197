"""Deliberately broken averages of real values: each has one fault, which a law must find."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
F = np.float32


def _offset_outside(windows: list[Array], count: Array, scale: Any, zero: int) -> Array:
    return np.rint(sum(windows) / count / scale) + zero


def _sum_in_float64(windows: list[Array], count: Array, scale: Any, zero: int) -> Array:
    mean = (np.sum(windows, axis=0, dtype=float) / count).astype(F)
    return np.rint(mean / scale + F(zero))


def _last_tap_first(windows: list[Array], count: Array, scale: Any, zero: int) -> Array:
    return np.rint(sum(windows[::-1]) / count / scale + F(zero))


def _product_of_scale_and_count(windows: list[Array], count: Array, scale: Any, zero: int) -> Array:
    return np.rint(sum(windows) / (count * scale) + F(zero))


AVERAGE_SPECIMENS: dict[str, Callable[..., Array]] = {
    "offset outside": _offset_outside,
    "sum in float64": _sum_in_float64,
    "last tap first": _last_tap_first,
    "product of scale and count": _product_of_scale_and_count,
}
