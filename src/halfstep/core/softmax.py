"""Softmax of codes: the formulas of the runtimes.

Only differences of codes matter, so the exponentials come from a table with an entry for each
difference from the largest code. Where these are float32, they are added one after the other: the
same order everywhere gives the same bits everywhere. In integers the order does not matter. All
formulas return unbounded codes; the caller clamps.

Worked example, codes 10 and 10 of any scale: both probabilities are 1/2, code 128 of scale 1/256.

>>> import numpy as np
>>> codes, scales = np.asarray([10, 10]), [np.float32(s) for s in (0.1, 1 / 256)]
>>> [f(codes, 0, 256, *scales, 0).tolist() for f in SOFTMAX.values()]
[[128.0, 128.0], [128.0, 128.0], [128.0, 128.0], [128, 128], [128, 128]]
"""

import math
from collections.abc import Callable

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from halfstep.core.elementwise import quantize_division
from halfstep.core.exponential import INTEGER_BITS, LARGEST, exp_of_negative, reciprocal
from halfstep.core.requant import (
    Array,
    Scale,
    fixed_point_multiplier,
    like,
    look_up,
    rounding_divide_by_pot,
    srdhm,
)

# What a row of exponentials in fixed point may add up to, at most 2^12.
_SUM_BITS = 12


def softmax_table(
    codes: Array, axis: int, n_codes: int, scale_in: Scale, scale_out: Scale, zero_out: int
) -> Array:
    """ONNX Runtime: ``rint(f64(e) * floor(1 / s) / S) + z``, ``e`` from a table, ``S`` their sum.

    The table holds exponentials times the largest factor for which a row of the largest ones still
    has a float32 sum. The whole number of steps in 1 multiplies, so that for a scale whose
    reciprocal is not a whole number the result is not the softmax.

    Args:
        codes: integers.
        axis: the axis that sums to 1.
        n_codes: how many codes the type has: 256 in the runtime.
        scale_in: scale of the input; its zero point cancels.
        scale_out: scale of the output.
        zero_out: the output code of real zero.
    """
    xp = array_namespace(codes)
    length = codes.shape[axis]
    room = float(np.float32(math.log(np.finfo(np.float32).max / np.float32(length)))) - 5
    powers, total = _powers_and_sum(codes, axis, _exponentials(scale_in, n_codes, max(0.0, room)))
    steps = math.floor(np.float32(1) / np.float32(scale_out))
    return xp.round(xp.astype(powers, xp.float64) * float(steps) / total) + zero_out


def softmax_dequantized(
    codes: Array, axis: int, n_codes: int, scale_in: Scale, scale_out: Scale, zero_out: int
) -> Array:
    """In float32 between a dequantize and a quantize; see ``softmax_table`` for the arguments."""
    powers, total = _powers_and_sum(codes, axis, _exponentials(scale_in, n_codes, 0.0))
    return quantize_division(powers / total, scale_out, zero_out)


def softmax_reciprocal(
    codes: Array, axis: int, n_codes: int, scale_in: Scale, scale_out: Scale, zero_out: int
) -> Array:
    """LiteRT's optimized kernel: ``floor(f32(f32(e * R) + 0.5)) + z``, ``R = f32(1 / f32(S * s))``.

    The exponentials are those of the float32 product of difference and scale; see
    ``softmax_table`` for the arguments.
    """
    xp = array_namespace(codes)
    differences = np.arange(1 - n_codes, 1, dtype=np.float32) * np.float32(scale_in)
    table = np.exp(differences.astype(np.float64)).astype(np.float32)
    powers, total = _powers_and_sum(codes, axis, table)
    one = xp.ones_like(total)
    return xp.floor(powers * (one / (total * like(scale_out, total, "float32"))) + 0.5) + zero_out


def softmax_fixed_point(
    codes: Array, axis: int, n_codes: int, scale_in: Scale, scale_out: Scale, zero_out: int
) -> Array:
    """LiteRT's reference kernel: gemmlowp's exponentials and reciprocal, in units of 1/256.

    ``scale_out`` has to be 1/256. The runtime aborts where a row adds up to 512 or more, which
    takes as many codes. See ``softmax_table`` for the other arguments.
    """
    del scale_out
    xp = array_namespace(codes)
    table, live = _fixed_point_exponentials(scale_in, n_codes)
    codes = xp.astype(codes, xp.int32)
    index = codes - xp.max(codes, axis=axis, keepdims=True) + (n_codes - 1)
    powers = look_up(like(table, codes, "int64"), index)
    terms = rounding_divide_by_pot(powers, xp.full_like(powers, _SUM_BITS))
    share, bits = reciprocal(xp.sum(terms, axis=axis, keepdims=True), _SUM_BITS)
    product = srdhm(*xp.broadcast_arrays(share, powers))
    steps = rounding_divide_by_pot(product, xp.broadcast_to(bits + (31 - 8), product.shape))
    return xp.where(look_up(like(live, codes, "bool"), index), steps, 0) + zero_out


def _fixed_point_exponentials(
    scale: Scale, n_codes: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The exponential of each difference, raw, and which of them are large enough to count."""
    fraction_bits = 31 - INTEGER_BITS
    real = min(float(scale) * 2**fraction_bits, float(LARGEST))
    q, shift = (int(part) for part in fixed_point_multiplier(real))
    smallest = -math.floor(((1 << INTEGER_BITS) - 1) * 2.0 ** (fraction_bits - shift))
    differences = np.arange(1 - n_codes, 1, dtype=np.int64)
    live = differences >= smallest
    steps = np.where(live, differences, 0)
    rescaled = srdhm(steps << shift if shift >= 0 else steps, np.asarray(q))
    return np.where(live, exp_of_negative(rescaled), 0), live


def softmax_integer(
    codes: Array, axis: int, n_codes: int, scale_in: Scale, scale_out: Scale, zero_out: int
) -> Array:
    """Our own, for cores without a float unit: the quotient of integers, rounded half up.

    ``floor((e * n + floor(S / 2)) / S) + z``, ``e`` from a table of integers (``integer_powers``),
    ``S`` their sum, ``n`` the whole number of steps in 1. Nothing leaves 32 bits, unsigned, while
    ``n`` is at most 256 and a row has at most ``INTEGER_ROW`` values. See ``softmax_table`` for
    the arguments.
    """
    xp = array_namespace(codes)
    codes = xp.astype(codes, xp.int64)
    index = xp.max(codes, axis=axis, keepdims=True) - codes
    powers = look_up(like(integer_powers(scale_in, n_codes), codes, "int64"), index)
    total = xp.sum(powers, axis=axis, keepdims=True)
    steps = math.floor(np.float32(1) / np.float32(scale_out))
    return (powers * steps + total // 2) // total + zero_out


def integer_powers(scale: Scale, n_codes: int) -> NDArray[np.int64]:
    """``exp(-k * scale)`` times 2^22, to the nearest integer, for the differences ``k`` from 0."""
    powers = [math.exp(-k * float(scale)) for k in range(n_codes)]
    return np.asarray([math.floor(power * 2**22 + 0.5) for power in powers], np.int64)


# So many values, each at most 2^22, have a sum that 32 bits hold.
INTEGER_ROW = 1023


def _exponentials(scale: Scale, n_codes: int, largest: float) -> NDArray[np.float32]:
    """``exp(largest - k * scale)`` in float32, for the differences ``k`` from ``n_codes - 1`` to 0.

    Computed as ``exp((largest / scale - k) * scale)`` in float64, as the runtime does.
    """
    step = float(scale)
    shift = largest / step
    differences = range(1 - n_codes, 1)
    return np.asarray([math.exp((shift + k) * step) for k in differences]).astype(np.float32)


def _powers_and_sum(codes: Array, axis: int, table: NDArray[np.float32]) -> tuple[Array, Array]:
    """The exponential of each code, and their sums along ``axis``, which stays with size 1."""
    xp = array_namespace(codes)
    codes = xp.astype(codes, xp.int32)
    index = codes - xp.max(codes, axis=axis, keepdims=True) + (table.size - 1)
    powers = look_up(like(table, codes, "float32"), index)
    rows = xp.moveaxis(powers, axis, 0)
    total = rows[0, ...]
    for i in range(1, rows.shape[0]):
        total = total + rows[i, ...]
    return powers, xp.expand_dims(total, axis=axis)


SOFTMAX: dict[str, Callable[..., Array]] = {
    "table": softmax_table,
    "dequantized": softmax_dequantized,
    "reciprocal": softmax_reciprocal,
    "fixed_point": softmax_fixed_point,
    "integer": softmax_integer,
}
