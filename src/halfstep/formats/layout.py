"""How the axes of a value in a file are permuted against those of the program."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]

# The metadata of a file that holds the layout of each of its values.
LAYOUT = "halfstep.layout"


@dataclass(frozen=True)
class Layout:
    """Where the values of one tensor are in the file.

    Attributes:
        shape: its sizes in the program, for one sample.
        split: the sizes that are permuted: ``shape``, or those that it was flattened from.
        perm: for each axis of the file, the axis of ``split``.
        batch: the axis of the program that grows with the samples; ``None`` for constants.
        outer: how often the samples follow one another along that axis.
    """

    shape: Shape
    split: Shape
    perm: Shape
    batch: int | None = None
    outer: int = 1

    @property
    def flattened(self) -> bool:
        """Whether several axes were permuted and are one."""
        return self.split != self.shape

    @property
    def in_order(self) -> bool:
        """Whether the file has the values as the program has them."""
        return keeps_order(self.split, self.perm)

    @property
    def file_shape(self) -> Shape:
        """The sizes in the file."""
        return self.shape if self.flattened else tuple(self.shape[axis] for axis in self.perm)

    def axis(self, axis: int) -> int:
        """The axis of the file that is ``axis`` in the program."""
        return self.perm.index(axis % len(self.shape))

    def to_file(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """The values of one sample as the file has them."""
        return values.reshape(self.split).transpose(self.perm).reshape(self.file_shape)

    def to_program(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """The values of one sample of the file as the program has them."""
        moved = values.reshape([self.split[axis] for axis in self.perm])
        return moved.transpose(np.argsort(self.perm)).reshape(self.shape)

    def joined(self, samples: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        """The values of one sample after the other as those of a batch, in the program's order."""
        return samples[0] if self.batch is None else joined(samples, self.batch, self.outer)


def joined(
    samples: Sequence[NDArray[np.generic]], axis: int, outer: int = 1
) -> NDArray[np.generic]:
    """Samples along ``axis``, which is (outer, samples, inner) in one."""
    shape = samples[0].shape
    split = (*shape[:axis], outer, shape[axis] // outer, *shape[axis + 1 :])
    stacked = np.stack([values.reshape(split) for values in samples], axis=axis + 1)
    return stacked.reshape(*shape[:axis], -1, *shape[axis + 1 :])


def channels_last(rank: int) -> Shape:
    """The permutation that moves axis 1 to the end."""
    return (0, *range(2, rank), 1)


def keeps_order(shape: Shape, perm: Shape) -> bool:
    """Whether a permutation moves nothing but axes of size 1."""
    moved = [axis for axis in perm if shape[axis] != 1]
    return moved == sorted(moved)
