"""Deliberately broken functions of one code: each has one fault, which a law must find."""

from collections.abc import Callable
from typing import Any

import numpy as np

from halfstep.core import tables
from halfstep.core.grid import Affine

Array = Any


def _one_rounding(codes: Array, source: Affine, out: Affine) -> Array:
    steps = (codes - int(source.zero_point)) * np.float64(source.scale) / np.float64(out.scale)
    return np.maximum(np.rint(steps), 0) + int(out.zero_point)


def _around_code_zero(codes: Array, source: Affine, out: Affine, slope: float) -> Array:
    """The slope below code 0, not below the zero point."""
    above = tables.leaky_relu_double_rounding(codes, source, out, 1.0)
    below = tables.leaky_relu_double_rounding(codes, source, out, slope)
    return np.where(codes >= 0, above, below)


def _exact_multiplier(codes: Array, source: Affine, out: Affine, slope: float) -> Array:
    return tables.leaky_relu_double_rounding(codes, source, out, slope)


TABLE_SPECIMENS: dict[str, tuple[str, Callable[..., Array]]] = {
    "one rounding": ("relu_double_rounding", _one_rounding),
    "around code zero": ("leaky_relu_double_rounding", _around_code_zero),
    "exact multiplier": ("leaky_relu_eight_bits", _exact_multiplier),
}
