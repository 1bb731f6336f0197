"""From an exact integer accumulator to a code: the formulas of the runtimes.

An integer conv, linear or matmul leaves ``acc``, an exact int32 sum of products (bias included),
whose real value is ``acc * scale_in * scale_weight``. The code on the output grid is that value
over ``scale_out``, rounded, plus the zero point. Runtimes differ in how they multiply and round:

| formula        | multiplier                               | rounding                           |
|----------------|------------------------------------------|------------------------------------|
| float          | ``f32(f32(s_in * s_w) / s_out)``           | product in float32, half to even   |
| double_rounding| 31-bit integer and shift                 | nearest 2^-31, then nearest 2^-n   |
| double_rounding_product | of ``f32(s_in * s_w) / s_out`` | as double_rounding            |
| single_rounding| 31-bit integer and shift                 | once, half up                      |
| single_rounding_away | 31-bit integer and shift           | once, half away from zero          |

All functions are written against the array API: numpy arrays and torch tensors both work. They
leave clamping to the caller: codes come back unbounded, as an integer-valued array.

Worked example, ``acc = 1000, s_in = 0.5, s_w = 0.25, s_out = 3``: the multiplier is
``f32(0.125 / 3) = 0.041666668``, the product 41.666668, the code 42 (plus the zero point).
In fixed point, ``0.0416... = 0.666... * 2^-4``: ``q = 1431655765, shift = -4``;
``srdhm(1000, q) = 667``; ``667 / 2^4 = 41.69`` rounds to 42.

>>> import numpy as np
>>> scales = [np.float32(s) for s in (0.5, 0.25, 3)]
>>> [int(formula(np.asarray([1000]), *scales, zero_point=0)[0]) for formula in ACCUMULATOR.values()]
[42, 42, 42, 42, 42]
>>> [int(v) for v in fixed_point_multiplier(np.float64(0.125 / 3))]
[1431655765, -4]
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import ArrayLike, NDArray

# An array of any array-API library.
Array = Any
Scale = NDArray[np.float32]

_ONE_31 = 1 << 31


def like(values: ArrayLike, array: Array, dtype: str) -> Array:
    """Numpy ``values`` as an array of the library and on the device of ``array``."""
    xp = array_namespace(array)
    # A copy: torch cannot share memory that is read-only, as all constants of a program are.
    return xp.asarray(np.array(values, dtype), device=device(array))


def look_up(table: Array, index: Array) -> Array:
    """``table[index]`` for a table of one axis and an integer index of any shape."""
    xp = array_namespace(table, index)
    return xp.reshape(xp.take(table, xp.reshape(index, (-1,)), axis=0), index.shape)


def float_multiplier(scale_in: Scale, scale_weight: Scale, scale_out: Scale) -> Scale:
    """``f32(f32(scale_in * scale_weight) / scale_out)``: two roundings, in this order."""
    product = np.float32(scale_in) * np.asarray(scale_weight, np.float32)
    return (product / np.float32(scale_out)).astype(np.float32)


def float_scale(
    acc: Array, scale_in: Scale, scale_weight: Scale, scale_out: Scale, zero_point: int
) -> Array:
    """``rint(f32(acc) * M) + zero_point`` in float32: ONNX Runtime on x86, and XNNPACK.

    Args:
        acc: integer-valued accumulators, int32, float32 or float64; per-channel scales must
            already broadcast against it.
        scale_in: scale of the input, shape ().
        scale_weight: scale of the weights, shape () or one that broadcasts against ``acc``.
        scale_out: scale of the output, shape ().
        zero_point: the output code of real zero.
    """
    xp = array_namespace(acc)
    multiplier = like(float_multiplier(scale_in, scale_weight, scale_out), acc, "float32")
    return xp.round(xp.astype(acc, xp.float32, copy=False) * multiplier) + zero_point


def scaled_product(acc: Array, scale_in: Scale, scale_weight: Scale) -> Array:
    """``f32(acc) * f32(scale_in * scale_weight)``, a real value: ONNX Runtime, without a code.

    Arguments as for ``float_scale``.
    """
    xp = array_namespace(acc)
    product = np.float32(scale_in) * np.asarray(scale_weight, np.float32)
    return xp.astype(acc, xp.float32, copy=False) * like(product, acc, "float32")


def float_sum(
    terms: Iterable[tuple[Array, Scale]], scale_in: Scale, scale_out: Scale, zero_point: int
) -> Array:
    """``rint(r1 + r2 + ... + rn) + zero_point``, ``r = f32(f32(acc) * M)``, added from the left.

    Each product and each sum is rounded to float32, and only the last sum to an integer.

    Args:
        terms: the accumulator of each group of weights with the scale of its weights, in the order
            of the groups; the bias, on its own scale, comes last.
        scale_in: scale of the input, shape ().
        scale_out: scale of the output, shape ().
        zero_point: the output code of real zero.
    """
    total: Array = None
    for acc, scale_weight in terms:
        xp = array_namespace(acc)
        multiplier = like(float_multiplier(scale_in, scale_weight, scale_out), acc, "float32")
        term = xp.astype(acc, xp.float32, copy=False) * multiplier
        total = term if total is None else total + term
    return array_namespace(total).round(total) + zero_point


def real_multiplier(scale_in: Scale, scale_weight: Scale, scale_out: Scale) -> NDArray[np.float64]:
    """``scale_in * scale_weight / scale_out`` in float64: what a 31-bit multiplier is made of."""
    product = np.float64(scale_in) * np.asarray(scale_weight, np.float64)
    return np.asarray(product / np.float64(scale_out))


def fixed_point_multiplier(real: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``real = q * 2^(shift - 31)`` with ``q`` in [2^30, 2^31): the mantissa rounded to 31 bits.

    A multiplier below 2^-32, which takes every int32 to 0, gives ``q = shift = 0``: the shifts
    that it would need do not exist.

    Source: Jacob et al. 2018, section 2.2; gemmlowp, ``doc/quantization.md``.
    """
    mantissa, shift = np.frexp(np.asarray(real, np.float64))
    q = np.floor(mantissa * _ONE_31 + 0.5).astype(np.int64)
    overflow = q == _ONE_31
    q, shift = np.where(overflow, q // 2, q), shift.astype(np.int64) + overflow
    vanishes = shift < -31
    return np.where(vanishes, 0, q), np.where(vanishes, 0, shift)


def srdhm(a: Array, q: Array) -> Array:
    """Saturating rounding doubling high multiply: the nearest of ``a * q / 2^31``, ties up.

    ``a`` and ``q`` are int64 arrays of int32 values. The one product that does not fit, -2^31
    times itself, saturates. (ARM: SQRDMULH.)
    """
    xp = array_namespace(a, q)
    product = a * q
    nudge = xp.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = truncating_divide(product + nudge, _ONE_31)
    return xp.where(high == _ONE_31, _ONE_31 - 1, high)


def truncating_divide(a: Array, divisor: int | Array) -> Array:
    """Integer division that rounds towards zero, as in C."""
    xp = array_namespace(a)
    return xp.where(a >= 0, a // divisor, -((-a) // divisor))


def rounding_divide_by_pot(x: Array, exponent: Array) -> Array:
    """The nearest of ``x / 2^exponent``, ties away from zero (gemmlowp: RoundingDivideByPOT)."""
    xp = array_namespace(x, exponent)
    one = xp.ones_like(exponent)
    mask = xp.bitwise_left_shift(one, exponent) - 1
    threshold = xp.bitwise_right_shift(mask, one) + xp.astype(x < 0, xp.int64)
    quotient = xp.bitwise_right_shift(x, exponent)
    return quotient + xp.astype((x & mask) > threshold, xp.int64)


def multiply_double_rounding(x: Array, q: Array, shift: Array) -> Array:
    """``x * q * 2^(shift - 31)`` with gemmlowp's two roundings; all int64 arrays.

    A positive shift is applied to ``x`` first, a negative one after the multiplication. What the
    former makes is kept in an int32, where it saturates here; kernels may wrap around instead, so
    that a program in which it can leave the int32 is refused (``program.check``).
    """
    xp = array_namespace(x)
    left, right = xp.clip(shift, 0, 31), xp.clip(-shift, 0, None)
    shifted = xp.clip(xp.bitwise_left_shift(x, left), -_ONE_31, _ONE_31 - 1)
    return rounding_divide_by_pot(srdhm(shifted, q), right)


def multiply_single_rounding(x: Array, q: Array, shift: Array) -> Array:
    """``x * q * 2^(shift - 31)`` rounded once, half up; all int64 arrays."""
    xp = array_namespace(x)
    total = 31 - shift
    half = xp.bitwise_left_shift(xp.ones_like(total), total - 1)
    return xp.bitwise_right_shift(x * q + half, total)


def multiply_single_rounding_away(x: Array, q: Array, shift: Array) -> Array:
    """``x * q * 2^(shift - 31)`` rounded once, half away from zero; all int64 arrays."""
    xp = array_namespace(x)
    size = multiply_single_rounding(xp.abs(x), q, shift)
    return xp.where(x >= 0, size, -size)


def _fixed_point(multiply: Callable[[Array, Array, Array], Array]) -> Callable[..., Array]:
    def formula(
        acc: Array, scale_in: Scale, scale_weight: Scale, scale_out: Scale, zero_point: int
    ) -> Array:
        xp = array_namespace(acc)
        real = real_multiplier(scale_in, scale_weight, scale_out)
        q, shift = (like(part, acc, "int64") for part in fixed_point_multiplier(real))
        return multiply(xp.astype(acc, xp.int64), q, shift) + zero_point

    formula.__doc__ = f"Requantize with a 31-bit multiplier: {multiply.__doc__}"
    return formula


double_rounding = _fixed_point(multiply_double_rounding)


def double_rounding_product(
    acc: Array, scale_in: Scale, scale_weight: Scale, scale_out: Scale, zero_point: int
) -> Array:
    """``double_rounding`` with the product of scales in float32: LiteRT, of two activations."""
    product = np.float32(scale_in) * np.asarray(scale_weight, np.float32)
    one: Scale = np.ones((), np.float32)
    return double_rounding(acc, product, one, scale_out, zero_point)


single_rounding = _fixed_point(multiply_single_rounding)
single_rounding_away = _fixed_point(multiply_single_rounding_away)

ACCUMULATOR: dict[str, Callable[..., Array]] = {
    "float": float_scale,
    "double_rounding": double_rounding,
    "double_rounding_product": double_rounding_product,
    "single_rounding": single_rounding,
    "single_rounding_away": single_rounding_away,
}
# Formulas that add accumulators with different scales of weights; the others have no such form.
GROUPS: dict[str, Callable[..., Array]] = {"float": float_sum}

# Formulas of kernels that leave real values, for a reader that computes in float.
SCALED: dict[str, Callable[..., Array]] = {"product": scaled_product}

# Formulas that shift an accumulator to the left first, in an int32, if the multiplier is above 1/2.
SHIFTED_FIRST = frozenset({"double_rounding", "double_rounding_product"})

# Formulas whose multiplier has 31 bits: the product with a wider accumulator would overflow.
INT32_ONLY = frozenset(
    {
        "double_rounding",
        "double_rounding_product",
        "single_rounding",
        "single_rounding_away",
    }
)
