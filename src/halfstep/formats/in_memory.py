"""How an artifact holds the codes of a site, against how the program has them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class InMemory:
    """Where the values of one sample are, and what is stored of each.

    Attributes:
        order: the axes of the program's tensor in the order of memory.
        offset: what a stored value is less than the program's code.
        dtype: numpy name of the type that is stored.
    """

    order: tuple[int, ...]
    offset: int
    dtype: str

    @classmethod
    def as_computed(cls, rank: int, dtype: str) -> "InMemory":
        """The program's own order and codes."""
        return cls(tuple(range(rank)), 0, dtype)

    def stored(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """The values of one sample as they lie in memory, little-endian."""
        moved = values.transpose(self.order)
        shifted = moved.astype(np.int64) - self.offset if self.offset else moved
        return np.ascontiguousarray(shifted.astype(np.dtype(self.dtype).newbyteorder("<")))
