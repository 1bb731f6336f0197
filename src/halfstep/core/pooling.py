"""Averages of codes: the formulas of the runtimes.

``total`` is the exact integer sum of ``codes - zero_point`` over the window, ``count`` the number
of summed values. All return unbounded codes; the caller clamps.

Worked example, codes 3, 4, 4, 5 with zero point 0 and equal scales: the sum is 16, the mean 4 in
every formula. Codes 3, 4: the mean 3.5 is a tie, 4 for all that round half to even or away from 0.

>>> import numpy as np
>>> s = np.float32(0.1)
>>> [int(f(np.asarray([16]), 4, s, s, 0, 0)[0]) for f in MEAN.values()]
[4, 4, 4, 4]
"""

from collections.abc import Callable, Iterable

import numpy as np
from array_api_compat import array_namespace

from halfstep.core.requant import (
    Array,
    Scale,
    fixed_point_multiplier,
    like,
    multiply_double_rounding,
    truncating_divide,
)


def mean_divided_scale(
    total: Array, count: int, scale_in: Scale, scale_out: Scale, zero_in: int, zero_out: int
) -> Array:
    """ONNX Runtime's global average pool: ``rint(f32(S) * f32(s_in / f32(s_out * n))) + z``."""
    xp = array_namespace(total)
    multiplier = divided_scale(count, scale_in, scale_out)
    return xp.round(xp.astype(total, xp.float32) * like(multiplier, total, "float32")) + zero_out


def divided_scale(count: int, scale_in: Scale, scale_out: Scale) -> np.float32:
    """``f32(s_in / f32(s_out * n))``, the multiplier of ``mean_divided_scale``."""
    return np.float32(np.float32(scale_in) / (np.float32(scale_out) * np.float32(count)))


def mean_offset_inside(
    total: Array, count: int, scale_in: Scale, scale_out: Scale, zero_in: int, zero_out: int
) -> Array:
    """``rint(f32(f32(S * m) + z))``, ``m = f32(f32(s_in / s_out) * f32(1 / n))``.

    Nearly XNNPACK's: its own sums raw codes, see ``mean_of_raw_codes``.
    """
    xp = array_namespace(total)
    ratio = np.float32(scale_in) / np.float32(scale_out)
    multiplier = ratio * (np.float32(1) / np.float32(count))
    scaled = xp.astype(total, xp.float32) * like(multiplier, total, "float32")
    return xp.round(scaled + np.float32(zero_out).item())


def mean_of_raw_codes(
    total: Array, count: int, scale_in: Scale, scale_out: Scale, zero_in: int, zero_out: int
) -> Array:
    """XNNPACK: ``rint(f32(f32(R * m) + b))`` of the sum ``R`` of the codes themselves.

    ``m = f32(f32(s_in / s_out) * f32(1 / n))``, and ``b = f32(z_out - f32(f32(n * z_in) * m))``:
    the zero points of all codes at once, rounded in float32.
    """
    xp = array_namespace(total)
    ratio = np.float32(scale_in) / np.float32(scale_out)
    multiplier = ratio * (np.float32(1) / np.float32(count))
    offset = np.float32(zero_out) - np.float32(count * zero_in) * multiplier
    raw = xp.astype(xp.astype(total, xp.int64) + count * zero_in, xp.float32)
    return xp.round(raw * like(multiplier, total, "float32") + like(offset, total, "float32"))


def mean_double_rounding(
    total: Array, count: int, scale_in: Scale, scale_out: Scale, zero_in: int, zero_out: int
) -> Array:
    """LiteRT's reference kernel: the 31-bit multiplier is divided by ``n`` after a left shift."""
    xp = array_namespace(total)
    parts = divided_multiplier(count, scale_in, scale_out)
    q, shift = (like(part, total, "int64") for part in parts)
    return multiply_double_rounding(xp.astype(total, xp.int64), q, shift) + zero_out


def divided_multiplier(count: int, scale_in: Scale, scale_out: Scale) -> tuple[int, int]:
    """The multiplier and the shift of ``mean_double_rounding``.

    The left shift ``k`` is the largest that keeps the quotient within 31 bits: at most 32, at most
    ``31 + shift``, and at most the number of bits in ``n`` below its leading one.
    """
    ratio = np.float64(scale_in) / np.float64(scale_out)
    q, shift = (int(part) for part in fixed_point_multiplier(ratio))
    k = min(count.bit_length() - 1, 32, 31 + shift)
    return (q << k) // count, shift - k


def average_half_away(
    total: Array,
    count: int | Array,
    scale_in: Scale,
    scale_out: Scale,
    zero_in: int,
    zero_out: int,
) -> Array:
    """LiteRT's average pool: raw codes averaged half away from zero; equal grids in and out.

    ``count`` may be an int64 array that broadcasts, where windows reach over the edge.
    """
    xp = array_namespace(total)
    raw = xp.astype(total, xp.int64) + count * zero_in
    half = xp.where(raw >= 0, count // 2, -(count // 2))
    return truncating_divide(raw + half, count)


def average_dequantized(
    windows: Iterable[Array], count: Array, scale_out: Scale, zero_out: int
) -> Array:
    """ONNX Runtime's average pool, in float32: ``rint(f32(f32(S / n) / s) + z)``.

    Args:
        windows: for each position in the window, in row order, the real values there, float32,
            with 0 where the window reaches over the edge. They are added one after the other.
        count: ``n``, how many of them each window averages, float32.
        scale_out: scale of the output.
        zero_out: the output code of real zero, added before the rounding.
    """
    first, *others = windows
    total = sum(others, start=first)
    scale = like(scale_out, total, "float32")
    return array_namespace(total).round(total / count / scale + float(zero_out))


MEAN: dict[str, Callable[..., Array]] = {
    "divided_scale": mean_divided_scale,
    "offset_inside": mean_offset_inside,
    "raw_codes": mean_of_raw_codes,
    "double_rounding": mean_double_rounding,
}
AVERAGE: dict[str, Callable[..., Array]] = {"dequantized": average_dequantized}
# Formulas of kernels that add codes, and have one grid for input and output.
AVERAGE_OF_CODES: dict[str, Callable[..., Array]] = {"half_away": average_half_away}
