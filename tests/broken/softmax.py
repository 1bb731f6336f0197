"""Deliberately broken softmaxes of codes: each has one fault, which a law must find."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core import softmax

Array = NDArray[Any]
F = np.float32


def _parts(x: Array, axis: int, n_codes: int, scale_in: Any, largest: float) -> tuple[Any, Any]:
    table = softmax._exponentials(scale_in, n_codes, largest)
    return softmax._powers_and_sum(x, axis, table)


def _unscaled(x: Array, axis: int, n: int, scale_in: Any, scale_out: Any, zero: int) -> Array:
    """Exponentials of at most 1: their sums round elsewhere."""
    powers, total = _parts(x, axis, n, scale_in, 0.0)
    return np.rint(powers.astype(float) * np.floor(F(1) / scale_out) / total) + zero


def _reciprocal(x: Array, axis: int, n: int, scale_in: Any, scale_out: Any, zero: int) -> Array:
    """1 / scale, not a whole number of steps."""
    powers, total = _parts(x, axis, n, scale_in, 80.0)
    return np.rint(powers.astype(float) / float(scale_out) / total) + zero


def _offset_inside(x: Array, axis: int, n: int, scale_in: Any, scale_out: Any, zero: int) -> Array:
    """The zero point inside of the rounding."""
    powers, total = _parts(x, axis, n, scale_in, 0.0)
    return np.rint(powers / total / scale_out + F(zero))


def _sum_in_float64(x: Array, axis: int, n: int, scale_in: Any, scale_out: Any, zero: int) -> Array:
    powers, _ = _parts(x, axis, n, scale_in, 0.0)
    total = powers.sum(axis=axis, keepdims=True, dtype=float)
    return np.rint((powers / total).astype(F) / scale_out) + zero


def _half_down(x: Array, axis: int, n: int, scale_in: Any, scale_out: Any, zero: int) -> Array:
    """The quotient of integers cut off, not rounded."""
    powers = softmax.integer_powers(scale_in, n)[x.max(axis=axis, keepdims=True) - x]
    return powers * int(F(1) / scale_out) // powers.sum(axis=axis, keepdims=True) + zero


def _sixteen_bits(x: Array, axis: int, n: int, scale_in: Any, scale_out: Any, zero: int) -> Array:
    """A coarser table."""
    powers = np.rint(np.exp(-np.arange(n) * float(scale_in)) * 2**16).astype(np.int64)
    powers = powers[x.max(axis=axis, keepdims=True) - x]
    total = powers.sum(axis=axis, keepdims=True)
    return (powers * int(F(1) / scale_out) + total // 2) // total + zero


def _along_the_first_axis(x: Array, axis: int, *arguments: Any) -> Array:
    del axis
    return softmax.softmax_table(x, 0, *arguments)


SOFTMAX_SPECIMENS: dict[str, tuple[str, Callable[..., Array]]] = {
    "unscaled": ("table", _unscaled),
    "reciprocal": ("table", _reciprocal),
    "along the first axis": ("table", _along_the_first_axis),
    "offset inside": ("dequantized", _offset_inside),
    "sum in float64": ("dequantized", _sum_in_float64),
    "cut off": ("integer", _half_down),
    "sixteen bits": ("integer", _sixteen_bits),
}


def _nearest_even(x: Array, axis: int, n: int, scale_in: Any, scale_out: Any, zero: int) -> Array:
    """Rounded half to even, not by adding a half."""
    powers, total = _parts(x, axis, n, scale_in, 0.0)
    return np.rint(powers * (F(1) / (total * scale_out))) + zero


def exponential_of_float64(raw: Array) -> Array:
    """What fixed point approximates."""
    return np.minimum(np.rint(np.exp(raw / 2.0**26) * 2.0**31), 2**31 - 1)


def reciprocal_of_float64(raw: Array, integer_bits: int) -> tuple[Array, Array]:
    """What Newton's method approximates."""
    length = np.frexp(raw.astype(float))[1]
    return np.rint(2.0 ** (length + 30) / raw), length + integer_bits - 32


LITERT_SPECIMENS: dict[str, tuple[str, Callable[..., Array]]] = {
    "nearest even": ("reciprocal", _nearest_even),
}
