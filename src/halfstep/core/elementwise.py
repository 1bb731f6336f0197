"""Addition, multiplication and (re)quantization of codes: the formulas of the runtimes.

All take integer-valued arrays of any array-API library and return unbounded codes; the caller
clamps. ``za, zb, zy`` are zero points, ``sa, sb, sy`` scales of the operands and the result.

Worked example, ``a = 130, b = 129, za = zb = zy = 128`` and all scales equal: the sum is 3 steps,
the code 131, in every formula. With ``sy`` twice as large the exact result is 129.5, a tie: ONNX
Runtime rounds it with the zero point inside, half to even: ``rint(129.5) = 130``; rounding before
adding the zero point would give ``rint(1.5) + 128 = 130`` as well, but with ``zy = 127``
``rint(128.5) = 128`` against ``rint(1.5) + 127 = 129``.

>>> import numpy as np
>>> a, b, scales = np.asarray([130.0]), np.asarray([129.0]), [np.float32(s) for s in (1, 1, 2)]
>>> [float(ADD["fused"](a, b, *scales, 128, 128, zy)[0]) for zy in (128, 127)]
[130.0, 128.0]
"""

from collections.abc import Callable

import numpy as np
from array_api_compat import array_namespace

from halfstep.core.requant import (
    Array,
    Scale,
    fixed_point_multiplier,
    like,
    multiply_double_rounding,
)


def round_to_odd_sum(a: Array, b: Array) -> Array:
    """``a + b`` in float64, rounded to odd where inexact.

    Rounding such a sum once more, to float32, gives the correctly rounded float32 sum (Boldo and
    Melquiond 2008): this is how a fused multiply-add is emulated without one.
    """
    xp = array_namespace(a, b)
    total = a + b
    virtual_b = total - a
    error = (a - (total - virtual_b)) + (b - virtual_b)
    even = (_float64_bits(total) & 1) == 0
    towards = xp.where(error > 0, xp.inf, -xp.inf)
    return xp.where((error != 0) & even, xp.nextafter(total, towards), total)


def _float64_bits(values: Array) -> Array:
    return values.view(array_namespace(values).int64)


def fma(a: Array, b: Array, c: Array) -> Array:
    """``f32(a * b + c)`` with a single rounding; float32 arrays, the product of which is exact."""
    xp = array_namespace(a, b, c)
    exact = xp.astype(a, xp.float64) * xp.astype(b, xp.float64)
    total = round_to_odd_sum(*xp.broadcast_arrays(exact, xp.astype(c, xp.float64)))
    return xp.astype(total, xp.float32)


def add_fused(
    a: Array, b: Array, sa: Scale, sb: Scale, sy: Scale, za: int, zb: int, zy: int
) -> Array:
    """ONNX Runtime on x86 (AVX2, FMA): the zero point is inside the rounding.

    ``F = f32(zy - f32(fma(ra, za, f32(rb * zb))))``, ``ra = f32(sa / sy)``;
    ``rint(fma(a, ra, fma(b, rb, F)))``.
    """
    xp = array_namespace(a, b)
    ra, rb = np.float32(sa) / np.float32(sy), np.float32(sb) / np.float32(sy)
    inner = fma(*(np.asarray([v], np.float32) for v in (ra, za, rb * np.float32(zb))))
    offset = np.float32(zy) - inner[0]
    a, b = xp.astype(a, xp.float32), xp.astype(b, xp.float32)
    partial = fma(b, like(rb, b, "float32"), like(offset, b, "float32"))
    return xp.round(fma(a, like(ra, a, "float32"), partial))


def fused_swaps(shape_a: tuple[int, ...], shape_b: tuple[int, ...]) -> bool:
    """Whether ONNX Runtime exchanges the operands of an addition, which ``add_fused`` can tell.

    It does where ``a`` has size 1 along the axis of its inner loop: the last of the axes that both
    shapes have (a scalar counts as one axis of size 1) along which either has more than one value,
    or the first of those axes if there is none.

    >>> [fused_swaps(*shapes) for shapes in (((3, 1), (3, 5)), ((3, 5), (3, 1)), ((5,), (3, 5)))]
    [True, False, False]
    >>> [fused_swaps(*shapes) for shapes in (((3, 1), (1,)), ((3, 1), (1, 1)), ((5,), ()))]
    [True, False, False]
    """
    shared = list(zip(reversed(shape_a or (1,)), reversed(shape_b or (1,)), strict=False))
    return next((pair for pair in shared if max(pair) > 1), shared[-1])[0] == 1


def add_twenty_bits(
    a: Array, b: Array, sa: Scale, sb: Scale, sy: Scale, za: int, zb: int, zy: int
) -> Array:
    """XNNPACK: 20-bit integer multipliers, one shift, half up."""
    return _sum_of_twenty_bits(a, b, *_ratios(sa, sb, sy), za, zb) + zy


def sub_twenty_bits(
    a: Array, b: Array, sa: Scale, sb: Scale, sy: Scale, za: int, zb: int, zy: int
) -> Array:
    """XNNPACK: as the addition, with a negative second multiplier."""
    ra, rb = _ratios(sa, sb, sy)
    return _sum_of_twenty_bits(a, b, ra, -rb, za, zb) + zy


def _ratios(sa: Scale, sb: Scale, sy: Scale) -> tuple[np.float32, np.float32]:
    return np.float32(sa) / np.float32(sy), np.float32(sb) / np.float32(sy)


def _sum_of_twenty_bits(
    a: Array, b: Array, ra: np.float32, rb: np.float32, za: int, zb: int
) -> Array:
    xp = array_namespace(a, b)
    shift = 20 - (int(np.frexp(max(abs(ra), abs(rb)))[1]) - 1)
    ma, mb = (int(np.rint(np.ldexp(np.float64(r), shift))) for r in (ra, rb))
    bias = (1 << (shift - 1)) - ma * za - mb * zb
    total = bias + xp.astype(a, xp.int64) * ma + xp.astype(b, xp.int64) * mb
    return total >> shift


def add_double_rounding(
    a: Array, b: Array, sa: Scale, sb: Scale, sy: Scale, za: int, zb: int, zy: int
) -> Array:
    """LiteRT's reference kernel: both inputs times 2^20 on twice the larger input scale."""
    a, b, rescaled = _on_common_scale(a, b, (sa, sb, sy), (za, zb))
    return rescaled(a + b) + zy


def sub_double_rounding(
    a: Array, b: Array, sa: Scale, sb: Scale, sy: Scale, za: int, zb: int, zy: int
) -> Array:
    """As ``add_double_rounding``, with the second input taken from the first before the last."""
    a, b, rescaled = _on_common_scale(a, b, (sa, sb, sy), (za, zb))
    return rescaled(a - b) + zy


def common_scale_ratios(sa: Scale, sb: Scale, sy: Scale) -> tuple[float, float, float]:
    """What takes two operands, each times 2^20, to a common scale, and that to the result's."""
    common = 2 * max(np.float64(sa), np.float64(sb))
    ratios = np.float64(sa) / common, np.float64(sb) / common, common / (2**20 * np.float64(sy))
    return float(ratios[0]), float(ratios[1]), float(ratios[2])


def _on_common_scale(
    a: Array, b: Array, scales: tuple[Scale, Scale, Scale], zeros: tuple[int, int]
) -> tuple[Array, Array, Callable[[Array], Array]]:
    xp = array_namespace(a, b)
    ratios = common_scale_ratios(*scales)

    def scaled(values: Array, ratio: float) -> Array:
        q, shift = (like(part, values, "int64") for part in fixed_point_multiplier(ratio))
        return multiply_double_rounding(values, q, shift)

    first, second = (
        scaled((xp.astype(x, xp.int64) - zero) << 20, ratio)
        for x, zero, ratio in zip((a, b), zeros, ratios, strict=False)
    )
    return first, second, lambda total: scaled(total, ratios[2])


def add_dequantized(
    a: Array, b: Array, sa: Scale, sb: Scale, sy: Scale, za: int, zb: int, zy: int
) -> Array:
    """In float32 between a dequantize and a quantize: any runtime without an integer kernel."""
    return _quantize(_real(a, sa, za) + _real(b, sb, zb), sy) + zy


def sub_dequantized(
    a: Array, b: Array, sa: Scale, sb: Scale, sy: Scale, za: int, zb: int, zy: int
) -> Array:
    """In float32 between a dequantize and a quantize."""
    return _quantize(_real(a, sa, za) - _real(b, sb, zb), sy) + zy


def mul_dequantized(
    a: Array, b: Array, sa: Scale, sb: Scale, sy: Scale, za: int, zb: int, zy: int
) -> Array:
    """In float32 between a dequantize and a quantize."""
    return _quantize(_real(a, sa, za) * _real(b, sb, zb), sy) + zy


def _real(codes: Array, scale: Scale, zero_point: int) -> Array:
    xp = array_namespace(codes)
    # Converted first: unsigned codes below the zero point would wrap around.
    return (xp.astype(codes, xp.float32) - zero_point) * like(scale, codes, "float32")


def _quantize(real: Array, scale: Scale) -> Array:
    return array_namespace(real).round(real / like(scale, real, "float32"))


def _product(a: Array, b: Array, za: int, zb: int) -> Array:
    xp = array_namespace(a, b)
    return (xp.astype(a, xp.int64) - za) * (xp.astype(b, xp.int64) - zb)


def mul_offset_inside(
    a: Array, b: Array, sa: Scale, sb: Scale, sy: Scale, za: int, zb: int, zy: int
) -> Array:
    """ONNX Runtime: ``rint(f32(f32(p * M) + zy))``, ``p`` the integer product, no FMA."""
    xp = array_namespace(a, b)
    product = xp.astype(_product(a, b, za, zb), xp.float32)
    multiplier = np.float32(np.float32(sa) * np.float32(sb)) / np.float32(sy)
    return xp.round(product * like(multiplier, product, "float32") + np.float32(zy).item())


def mul_float(
    a: Array, b: Array, sa: Scale, sb: Scale, sy: Scale, za: int, zb: int, zy: int
) -> Array:
    """XNNPACK: ``rint(f32(p) * M) + zy``."""
    xp = array_namespace(a, b)
    product = xp.astype(_product(a, b, za, zb), xp.float32)
    multiplier = np.float32(np.float32(sa) * np.float32(sb)) / np.float32(sy)
    return xp.round(product * like(multiplier, product, "float32")) + zy


def mul_double_rounding(
    a: Array, b: Array, sa: Scale, sb: Scale, sy: Scale, za: int, zb: int, zy: int
) -> Array:
    """LiteRT's reference kernel, which finds the multiplier in float32."""
    product = _product(a, b, za, zb)
    real = np.float32(np.float32(sa) * np.float32(sb)) / np.float32(sy)
    q, shift = (like(part, product, "int64") for part in fixed_point_multiplier(real))
    return multiply_double_rounding(product, q, shift) + zy


def quantize_division(real: Array, scale: Scale, zero_point: int) -> Array:
    """``rint(x / s) + z``: ONNX Runtime, and the meaning of every grid in Halfstep."""
    return _quantize(real, scale) + zero_point


def quantize_reciprocal(real: Array, scale: Scale, zero_point: int) -> Array:
    """``rint(x * f32(1 / s)) + z``: XNNPACK."""
    reciprocal = like(np.float32(1) / np.float32(scale), real, "float32")
    return array_namespace(real).round(real * reciprocal) + zero_point


def quantize_half_away(real: Array, scale: Scale, zero_point: int) -> Array:
    """``x / s`` rounded half away from zero, plus z: LiteRT's reference kernel."""
    xp = array_namespace(real)
    steps = real / like(scale, real, "float32")
    whole = xp.trunc(steps)
    return whole + xp.sign(steps) * (xp.abs(steps - whole) >= 0.5) + zero_point


def rescale_eight_bits(codes: Array, sa: Scale, sy: Scale, za: int, zy: int) -> Array:
    """XNNPACK, codes to codes: an 8-bit multiplier, half up. Off by a step on 4 % of codes."""
    xp = array_namespace(codes)
    multiplier = int(np.rint(256 * np.float32(np.float32(sa) / np.float32(sy))))
    return ((xp.astype(codes, xp.int64) - za) * multiplier + (zy << 8) + 0x80) >> 8


def rescale_double_rounding(codes: Array, sa: Scale, sy: Scale, za: int, zy: int) -> Array:
    """LiteRT's reference kernel, codes to codes."""
    xp = array_namespace(codes)
    real = np.float64(sa) / np.float64(sy)
    q, shift = (like(part, codes, "int64") for part in fixed_point_multiplier(real))
    return multiply_double_rounding(xp.astype(codes, xp.int64) - za, q, shift) + zy


ADD: dict[str, Callable[..., Array]] = {
    "fused": add_fused,
    "twenty_bits": add_twenty_bits,
    "double_rounding": add_double_rounding,
    "dequantized": add_dequantized,
}
SUB: dict[str, Callable[..., Array]] = {
    "twenty_bits": sub_twenty_bits,
    "double_rounding": sub_double_rounding,
    "dequantized": sub_dequantized,
}
MUL: dict[str, Callable[..., Array]] = {
    "offset_inside": mul_offset_inside,
    "float": mul_float,
    "double_rounding": mul_double_rounding,
    "dequantized": mul_dequantized,
}
QUANTIZE: dict[str, Callable[..., Array]] = {
    "division": quantize_division,
    "reciprocal": quantize_reciprocal,
    "half_away": quantize_half_away,
}
RESCALE: dict[str, Callable[..., Array]] = {
    "eight_bits": rescale_eight_bits,
    "double_rounding": rescale_double_rounding,
}
