"""The integer types that codes live in."""

import re
from dataclasses import dataclass

import numpy as np

from halfstep.errors import PlanError

_NAME = re.compile(r"(u?)int(\d+)(_narrow)?")
_STORAGE_BITS = (8, 16, 32, 64)

# An accumulator holds at least an int32, and at most what a float64 holds exactly.
ACCUMULATOR_BITS = range(32, 54)

# Bits of the sum of two products as x86 instructions of before VNNI make it.
PAIR_SUM_BITS = 16


@dataclass(frozen=True)
class QType:
    """A range of integer codes.

    | name          | qmin  | qmax | storage |
    |---------------|-------|------|---------|
    | ``uint8``       | 0     | 255  | uint8   |
    | ``int8``        | -128  | 127  | int8    |
    | ``int8_narrow`` | -127  | 127  | int8    |
    | ``int4_narrow`` | -7    | 7    | int8    |
    | ``int16``       | -2^15 | 2^15 - 1 | int16 |
    | ``int32``       | -2^31 | 2^31 - 1 | int32 |
    | ``int48``       | -2^47 | 2^47 - 1 | int64 |

    Attributes:
        bits: 1 to 16; 32 to 53 for biases, which are as wide as an accumulator.
        signed: whether codes may be negative.
        narrow: drop the lowest signed code, so that the range is symmetric.
    """

    bits: int
    signed: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        if not (1 <= self.bits <= 16 or self.bits in ACCUMULATOR_BITS):
            raise PlanError(
                f"bits={self.bits}: a type has 1 to 16 bits, or 32 to 53 for a bias that is as "
                "wide as its accumulator"
            )
        if self.narrow and (not self.signed or self.bits < 2):
            raise PlanError(
                f"{self.bits} bits, signed={self.signed}: only a signed type of 2 or more bits "
                "can be narrow"
            )

    @property
    def qmin(self) -> int:
        """The smallest code."""
        return -(1 << (self.bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The largest code."""
        return (1 << (self.bits - int(self.signed))) - 1

    @property
    def storage(self) -> np.dtype:
        """The numpy dtype of the smallest whole-byte integer that holds every code."""
        bits = next(b for b in _STORAGE_BITS if b >= self.bits)
        return np.dtype(f"{'' if self.signed else 'u'}int{bits}")

    @property
    def fills_storage(self) -> bool:
        """Whether saturating to the storage type saturates to this type as well."""
        info = np.iinfo(self.storage)
        return (self.qmin, self.qmax) == (info.min, info.max)

    @property
    def name(self) -> str:
        """The name that ``QType.parse`` reads back."""
        return f"{'' if self.signed else 'u'}int{self.bits}{'_narrow' if self.narrow else ''}"

    def __str__(self) -> str:
        return self.name

    @classmethod
    def parse(cls, name: str) -> "QType":
        """Read ``"int8"``, ``"uint4"``, ``"int8_narrow"``, ...

        Raises:
            PlanError: ``name`` is not of that form, or has an impossible number of bits.
        """
        found = _NAME.fullmatch(name)
        if not found:
            raise PlanError(f"{name!r} is no type: write 'int8', 'uint8', 'int4_narrow', ...")
        return cls(int(found[2]), not found[1], bool(found[3]))


UINT8 = QType(8, signed=False)
INT8 = QType(8)
INT8_NARROW = QType(8, narrow=True)
INT32 = QType(32)
