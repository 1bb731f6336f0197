"""Numbers as the C runtime wants them: packed weights, and scales as pairs of integers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halfstep.core.grid import Affine
from halfstep.core.pooling import divided_multiplier, divided_scale
from halfstep.core.qtype import QType
from halfstep.core.requant import (
    Scale,
    fixed_point_multiplier,
    float_multiplier,
    real_multiplier,
)

ROUNDINGS = {
    "float": "HS_FLOAT_ROUNDING",
    "divided_scale": "HS_FLOAT_ROUNDING",
    "double_rounding": "HS_DOUBLE_ROUNDING",
}
# Codes of 8 unsigned bits are stored as int8, less this; their zero point as well.
_UNSIGNED_OFFSET = 128


@dataclass(frozen=True)
class Ratios:
    """Positive real numbers in C: ``multiplier * 2^shift``, or ``2^(shift - 31)`` in fixed point.

    Attributes:
        multiplier: int32 values.
        shift: int8 values.
        rounding: the name of the arithmetic in C.
    """

    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    rounding: str

    @property
    def one(self) -> str:
        """The only one, as an initializer in C."""
        return f"{{{int(self.multiplier.ravel()[0])}, {int(self.shift.ravel()[0])}}}"


def stored_offset(qtype: QType) -> int:
    """What is taken from a code so that an int8 holds it."""
    return _UNSIGNED_OFFSET if qtype.qmax > np.iinfo(np.int8).max else 0


def stored_zero(grid: Affine) -> int:
    """The zero point of stored codes."""
    return int(grid.zero_point) - stored_offset(grid.qtype)


def packed_bits(qtype: QType) -> int:
    """The bits that a weight of this type takes: 8, 4, 2 or 1."""
    return next(bits for bits in (1, 2, 4, 8) if bits >= qtype.bits)


def packed(rows: NDArray[Any], bits: int) -> NDArray[np.int8]:
    """Rows of codes, each in whole bytes, the first code in the lowest bits.

    >>> packed(np.asarray([[1, -2, 3]]), 4).tolist()
    [[-31, 3]]
    """
    if bits == 8:
        return rows.astype(np.int8)
    each = 8 // bits
    fields = np.pad(rows.astype(np.int64) & ((1 << bits) - 1), ((0, 0), (0, -rows.shape[1] % each)))
    parts = fields.reshape(len(rows), -1, each) << (np.arange(each) * bits)
    return np.asarray(parts.sum(axis=2).astype(np.uint8).view(np.int8))


def sum_ratios(formula: str, scale_in: Scale, scale_weight: Scale, scale_out: Scale) -> Ratios:
    """What takes an accumulator to steps of the output, for a formula of ``ACCUMULATOR``."""
    if formula == "float":
        return _of_floats(float_multiplier(scale_in, scale_weight, scale_out))
    return _of_reals(real_multiplier(scale_in, scale_weight, scale_out))


def product_ratio(formula: str, scale_a: Scale, scale_b: Scale, scale_out: Scale) -> Ratios:
    """The same for a formula of ``MUL``, whose multiplier is float32 before it is anything else."""
    multiplier = float_multiplier(scale_a, scale_b, scale_out)
    return _of_floats(multiplier) if formula == "float" else _of_reals(multiplier)


def mean_ratios(formula: str, counts: list[int], scale_in: Scale, scale_out: Scale) -> Ratios:
    """One for each number of values, for a formula of ``MEAN``."""
    if formula == "divided_scale":
        return _of_floats([divided_scale(count, scale_in, scale_out) for count in counts])
    pairs = np.asarray([divided_multiplier(count, scale_in, scale_out) for count in counts])
    return Ratios(pairs[:, 0], pairs[:, 1], ROUNDINGS[formula])


def fixed_ratio(real: float) -> str:
    """One real number in gemmlowp's fixed point, as an initializer in C."""
    return _of_reals(real).one


def _of_floats(values: ArrayLike) -> Ratios:
    """24 bits and an exponent: a float32 as it is."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    multiplier = np.ldexp(mantissa, 24).astype(np.int64)
    return Ratios(multiplier, exponent.astype(np.int64) - 24, ROUNDINGS["float"])


def _of_reals(values: ArrayLike) -> Ratios:
    return Ratios(*fixed_point_multiplier(values), ROUNDINGS["double_rounding"])
