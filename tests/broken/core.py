"""Deliberately broken number formats and formulas: each has one fault, which a law must find."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core.elementwise import SUB, quantize_division, quantize_reciprocal
from halfstep.core.grid import Affine, FloatArray, IntArray
from halfstep.core.qtype import QType
from halfstep.core.requant import (
    ACCUMULATOR,
    fixed_point_multiplier,
    float_multiplier,
    truncating_divide,
)
from halfstep.core.spec import QuantSpec

Array = NDArray[Any]
ONE_31 = 1 << 31


def half_up(values: Array) -> Array:
    return np.floor(values + 0.5)


def half_away(values: Array) -> Array:
    return np.sign(values) * np.floor(np.abs(values) + 0.5)


# Types


class NarrowIgnored(QType):
    @property
    def qmin(self) -> int:
        return -(2 ** (self.bits - 1)) if self.signed else 0


class OneCodeShort(QType):
    @property
    def qmax(self) -> int:
        return super().qmax - 1


class StoredTooSmall(QType):
    @property
    def storage(self) -> np.dtype:
        return np.dtype("int8" if self.signed else "uint8")


class NameWithoutNarrow(QType):
    @property
    def name(self) -> str:
        return super().name.removesuffix("_narrow")


# Specs


class ForgetsPow2(QuantSpec):
    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_dict().items() if key != "pow2"}


class ForgetsOptions(QuantSpec):
    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_dict().items() if key != "options"}


# Grids


class ScaleOffByOnePercent(Affine):
    def dequantize(self, codes: IntArray) -> FloatArray:
        return super().dequantize(codes) * np.float32(1.01)


class ZeroPointOffByOne(Affine):
    def quantize(self, real: NDArray[np.floating]) -> IntArray:
        codes = super().quantize(real).astype(np.int64) + 1
        return np.clip(codes, self.qtype.qmin, self.qtype.qmax).astype(self.qtype.storage)


class Rounded(Affine):
    """A grid with another rounding of ``x / s``."""

    def steps(self, real: NDArray[np.floating]) -> Array:
        raise NotImplementedError

    def quantize(self, real: NDArray[np.floating]) -> IntArray:
        codes = self.steps(real) + self.along(self.zero_point, real.ndim)
        return np.clip(codes, self.qtype.qmin, self.qtype.qmax).astype(self.qtype.storage)


class HalfUp(Rounded):
    def steps(self, real: NDArray[np.floating]) -> Array:
        return half_up(real / self.along(self.scale, real.ndim))


class Truncated(Rounded):
    def steps(self, real: NDArray[np.floating]) -> Array:
        return np.trunc(real / self.along(self.scale, real.ndim))


class TimesReciprocal(Rounded):
    def steps(self, real: NDArray[np.floating]) -> Array:
        return np.rint(real * (np.float32(1) / self.along(self.scale, real.ndim)))


class WrapsAround(Affine):
    def quantize(self, real: NDArray[np.floating]) -> IntArray:
        steps = np.rint(real / self.along(self.scale, real.ndim)).astype(np.int64)
        codes = steps + self.along(self.zero_point, real.ndim) - self.qtype.qmin
        n_codes = self.qtype.qmax - self.qtype.qmin + 1
        return (codes % n_codes + self.qtype.qmin).astype(self.qtype.storage)


class FirstChannelForAll(Affine):
    def along(self, values: Array, ndim: int) -> Array:
        return values if self.axis is None else values[:1]


class GroupsAcrossChannels(Affine):
    """Groups run along the channels instead of along the values of one."""

    def spread(self, values: Array, shape: tuple[int, ...]) -> Array:
        spread = super().spread(values, shape)
        if self.group_size is None or self.axis is None:
            return spread
        apart = np.moveaxis(spread, self.axis, 0)
        flat = apart.reshape(len(apart), -1)
        turned = flat.T.reshape(apart.shape)
        return np.moveaxis(turned, 0, self.axis)


class GroupsOfEqualSize(Affine):
    """Divides the values of a channel evenly, as if no group could be smaller than the others."""

    def spread(self, values: Array, shape: tuple[int, ...]) -> Array:
        if self.group_size is None or self.axis is None:
            return super().spread(values, shape)
        others = [size for i, size in enumerate(shape) if i != self.axis % len(shape)]
        n, n_groups = int(np.prod(others)), values.shape[1]
        each = values[:, np.arange(n) * n_groups // n]
        return np.moveaxis(each.reshape(-1, *others), 0, self.axis)


class LogarithmicPow2(Affine):
    """Rounds the scale up with a float32 logarithm, which cannot tell 8 from 8.000001."""

    @classmethod
    def from_range(cls, *args: Any, pow2: bool = False, **changes: Any) -> Affine:
        grid = super().from_range(*args, **changes)
        scale = np.exp2(np.ceil(np.log2(grid.scale))) if pow2 else grid.scale
        return cls(grid.qtype, scale, grid.zero_point, grid.axis)


# Multipliers and their two halves


def multiplier_truncated(real: Array) -> tuple[Array, Array]:
    mantissa, shift = np.frexp(np.where(real < 2.0**-32, 0, real))
    return np.floor(mantissa * ONE_31).astype(np.int64), shift.astype(np.int64)


def multiplier_overflowing(real: Array) -> tuple[Array, Array]:
    mantissa, shift = np.frexp(real)
    return np.floor(mantissa * ONE_31 + 0.5).astype(np.int64), shift.astype(np.int64)


def multiplier_with_any_shift(real: Array) -> tuple[Array, Array]:
    q, shift = multiplier_overflowing(real)
    return np.where(q == ONE_31, q // 2, q), shift + (q == ONE_31)


def srdhm_ties_away(a: Array, q: Array) -> Array:
    product = a * q
    nudge = np.where(product >= 0, 1 << 30, -(1 << 30))
    return np.clip(truncating_divide(product + nudge, ONE_31), -ONE_31, ONE_31 - 1)


def srdhm_unsaturated(a: Array, q: Array) -> Array:
    return (a * q + (1 << 30)) >> 31


def pot_ties_up(x: Array, exponent: Array) -> Array:
    return (x + ((1 << exponent) >> 1)) >> exponent


def pot_floor(x: Array, exponent: Array) -> Array:
    return x >> exponent


# Accumulator to code: (acc, scale_in, scale_weight, scale_out, zero_point)


def float_half_away(acc: Array, si: Any, sw: Any, so: Any, z: int) -> Array:
    return half_away(acc.astype(np.float32) * float_multiplier(si, sw, so)) + z


def float_offset_inside(acc: Array, si: Any, sw: Any, so: Any, z: int) -> Array:
    return np.rint(acc.astype(np.float32) * float_multiplier(si, sw, so) + np.float32(z))


def float_other_order(acc: Array, si: Any, sw: Any, so: Any, z: int) -> Array:
    return np.rint(acc.astype(np.float32) * (si * (sw / so))) + z


def float_exact_product(acc: Array, si: Any, sw: Any, so: Any, z: int) -> Array:
    return np.rint(acc * (np.float64(si) * np.float64(sw) / np.float64(so))) + z


def float_exact_accumulator(acc: Array, si: Any, sw: Any, so: Any, z: int) -> Array:
    return np.rint((acc * np.float64(float_multiplier(si, sw, so))).astype(np.float32)) + z


def _truncated_fixed_point(acc: Array, si: Any, sw: Any, so: Any, z: int) -> Array:
    q, shift = multiplier_truncated(np.float64(si) * np.float64(sw) / np.float64(so))
    return ((acc.astype(np.int64) * q + (1 << (30 - shift))) >> (31 - shift)) + z


ACCUMULATOR_SPECIMENS = {
    "half_away": ("float", float_half_away),
    "offset_inside": ("float", float_offset_inside),
    "other_order": ("float", float_other_order),
    "exact_product": ("float", float_exact_product),
    "exact_accumulator": ("float", float_exact_accumulator),
    "single_for_double": ("double_rounding", ACCUMULATOR["single_rounding"]),
    "double_for_single": ("single_rounding", ACCUMULATOR["double_rounding"]),
    "up_for_away": ("single_rounding_away", ACCUMULATOR["single_rounding"]),
    "float_for_double": ("double_rounding", ACCUMULATOR["float"]),
    "truncated_multiplier": ("single_rounding", _truncated_fixed_point),
}


# Sums of accumulators with different scales: (terms, scale_in, scale_out, zero_point)


def _terms(terms: Any, si: Any, so: Any) -> list[Array]:
    return [acc.astype(np.float32) * float_multiplier(si, sw, so) for acc, sw in terms]


def sum_from_the_right(terms: Any, si: Any, so: Any, z: int) -> Array:
    return np.rint(sum(_terms(terms, si, so)[::-1], np.float32(0))) + z


def sum_in_float64(terms: Any, si: Any, so: Any, z: int) -> Array:
    return np.rint(sum(t.astype(np.float64) for t in _terms(terms, si, so))) + z


def sum_of_codes(terms: Any, si: Any, so: Any, z: int) -> Array:
    return sum(np.rint(t) for t in _terms(terms, si, so)) + z


def sum_without_the_last(terms: Any, si: Any, so: Any, z: int) -> Array:
    return np.rint(sum(_terms(terms, si, so)[:-1], np.float32(0))) + z


def sum_offset_inside(terms: Any, si: Any, so: Any, z: int) -> Array:
    return np.rint(sum(_terms(terms, si, so), np.float32(0)) + np.float32(z))


SUM_SPECIMENS = {
    "from the right": sum_from_the_right,
    "in float64": sum_in_float64,
    "of codes": sum_of_codes,
    "without the last": sum_without_the_last,
    "offset inside": sum_offset_inside,
}


# Fused multiply-add


def sum_not_to_odd(a: Array, b: Array) -> Array:
    return a + b


def sum_always_odd(a: Array, b: Array) -> Array:
    return ((a + b).view(np.int64) | 1).view(np.float64)


def fma_through_float64(a: Array, b: Array, c: Array) -> Array:
    """Rounds the exact product plus ``c`` to float64 and once more to float32."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def fma_unfused(a: Array, b: Array, c: Array) -> Array:
    return a * b + c


# Codes and codes to a code: (a, b, sa, sb, sy, za, zb, zy)


def _ratios(sa: Any, sb: Any, sy: Any) -> tuple[Any, Any]:
    return np.float32(sa) / np.float32(sy), np.float32(sb) / np.float32(sy)


def add_offset_outside(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    ra, rb = _ratios(sa, sb, sy)
    return np.rint((a - za) * ra + (b - zb) * rb) + zy


def add_unfused(a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int) -> Array:
    ra, rb = _ratios(sa, sb, sy)
    offset = np.float32(zy) - (ra * np.float32(za) + rb * np.float32(zb))
    return np.rint(a.astype(np.float32) * ra + (b.astype(np.float32) * rb + offset))


def add_other_operand_first(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    ra, rb = _ratios(sa, sb, sy)
    inner = np.float32(np.float64(rb) * zb + ra * np.float32(za))
    partial = (a.astype(np.float64) * ra + (np.float32(zy) - inner)).astype(np.float32)
    return np.rint((b.astype(np.float64) * rb + partial).astype(np.float32))


def add_nineteen_bits(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    ra, rb = _ratios(sa, sb, sy)
    shift = 20 - int(np.frexp(max(ra, rb))[1])
    ma, mb = int(np.rint(ra * 2.0**shift)), int(np.rint(rb * 2.0**shift))
    total = (a.astype(np.int64) - za) * ma + (b.astype(np.int64) - zb) * mb
    return ((total + (1 << (shift - 1))) >> shift) + zy


def add_sum_then_single_rounding(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    real = (a.astype(np.float64) - za) * sa + (b.astype(np.float64) - zb) * sb
    return half_up(real / sy) + zy


def add_dequantized_in_float64(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    real = (a.astype(np.float64) - za) * sa + (b.astype(np.float64) - zb) * sb
    return np.rint(real / sy) + zy


def sub_of_the_other_order(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    """The negative of the other difference: ties go the other way."""
    return 2 * zy - SUB["twenty_bits"](b, a, sb, sa, sy, zb, za, zy)


def sub_dequantized_for_double_rounding(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    return SUB["dequantized"](a, b, sa, sb, sy, za, zb, zy)


SUB_SPECIMENS = {
    "other_order": ("twenty_bits", sub_of_the_other_order),
    "dequantized": ("double_rounding", sub_dequantized_for_double_rounding),
}

ADD_SPECIMENS = {
    "offset_outside": ("fused", add_offset_outside),
    "unfused": ("fused", add_unfused),
    "other_operand_first": ("fused", add_other_operand_first),
    "nineteen_bits": ("twenty_bits", add_nineteen_bits),
    "single_rounding": ("double_rounding", add_sum_then_single_rounding),
    "float64": ("dequantized", add_dequantized_in_float64),
}


def sub_of_rounded_steps(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    """Each operand on the output's scale before they meet."""
    steps = [
        half_away((x.astype(np.float64) - z) * s / sy) for x, s, z in ((a, sa, za), (b, sb, zb))
    ]
    return steps[0] - steps[1] + zy


def sub_single_rounding(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    real = (a.astype(np.float64) - za) * sa - (b.astype(np.float64) - zb) * sb
    return half_up(real / sy) + zy


SUB_SPECIMENS = {
    "of rounded steps": ("double_rounding", sub_of_rounded_steps),
    "single rounding": ("double_rounding", sub_single_rounding),
}


def _product(a: Array, b: Array, za: int, zb: int) -> Array:
    return (a.astype(np.int64) - za) * (b.astype(np.int64) - zb)


def mul_offset_outside(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    product = _product(a, b, za, zb).astype(np.float32)
    return np.rint(product * float_multiplier(sa, sb, sy)) + zy


def mul_offset_inside(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    product = _product(a, b, za, zb).astype(np.float32)
    return np.rint(product * float_multiplier(sa, sb, sy) + np.float32(zy))


def mul_single_rounding(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    q, shift = fixed_point_multiplier(np.float64(np.float32(sa) * np.float32(sb) / np.float32(sy)))
    return ((_product(a, b, za, zb) * q + (1 << (30 - shift))) >> (31 - shift)) + zy


def mul_with_float64_multiplier(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    product = _product(a, b, za, zb)
    return ACCUMULATOR["double_rounding"](product, sa, sb, sy, zy)


def mul_in_float64(
    a: Array, b: Array, sa: Any, sb: Any, sy: Any, za: int, zb: int, zy: int
) -> Array:
    return np.rint(_product(a, b, za, zb) * np.float64(sa) * sb / sy) + zy


MUL_SPECIMENS = {
    "offset_outside": ("offset_inside", mul_offset_outside),
    "offset_inside": ("float", mul_offset_inside),
    "single_rounding": ("double_rounding", mul_single_rounding),
    "float64_multiplier": ("double_rounding", mul_with_float64_multiplier),
    "float64": ("dequantized", mul_in_float64),
}

QUANTIZE_SPECIMENS = {
    "reciprocal_for_division": ("division", quantize_reciprocal),
    "division_for_reciprocal": ("reciprocal", quantize_division),
    "even_for_away": ("half_away", quantize_division),
    "half_up": ("half_away", lambda real, s, z: half_up(real / s) + z),
}

RESCALE_SPECIMENS = {
    "nine_bits": (
        "eight_bits",
        lambda c, sa, sy, za, zy: half_up((c - za) * np.rint(512 * sa / sy) / 512) + zy,
    ),
    "half_even": (
        "double_rounding",
        lambda c, sa, sy, za, zy: np.rint((c - za) * (np.float64(sa) / sy)) + zy,
    ),
}


# Sums to a code: (total, count, scale_in, scale_out, zero_in, zero_out)


def mean_offset_outside(total: Array, count: int, si: Any, so: Any, zi: int, zo: int) -> Array:
    multiplier = (si / so) * (np.float32(1) / np.float32(count))
    return np.rint(total.astype(np.float32) * multiplier) + zo


def mean_with_zeros_taken_off_first(
    total: Array, count: int, si: Any, so: Any, zi: int, zo: int
) -> Array:
    """As XNNPACK was believed to compute: right for most codes."""
    multiplier = (si / so) * (np.float32(1) / np.float32(count))
    return np.rint(total.astype(np.float32) * multiplier + np.float32(zo))


def mean_multiplied_in_turn(total: Array, count: int, si: Any, so: Any, zi: int, zo: int) -> Array:
    return np.rint(total.astype(np.float32) * (si / so) / np.float32(count)) + zo


def mean_undivided_multiplier(total: Array, n: int, si: Any, so: Any, zi: int, zo: int) -> Array:
    q, shift = fixed_point_multiplier(np.float64(si) / np.float64(so) / n)
    return ((total.astype(np.int64) * q + (1 << (30 - shift))) >> (31 - shift)) + zo


MEAN_SPECIMENS = {
    "multiplied_in_turn": ("divided_scale", mean_multiplied_in_turn),
    "offset_outside": ("offset_inside", mean_offset_outside),
    "zeros_taken_off_first": ("raw_codes", mean_with_zeros_taken_off_first),
    "undivided_multiplier": ("double_rounding", mean_undivided_multiplier),
}


def average_half_up(total: Array, count: int, si: Any, so: Any, zi: int, zo: int) -> Array:
    return half_up(total / count) + zi


def average_around_zero_point(
    total: Array, count: int, si: Any, so: Any, zi: int, zo: int
) -> Array:
    return half_away(total / count) + zi
