"""Where values lie in memory, and the loops that visit two or three arrays at once.

An array is row-major or *channels-last*: axis 1 moved behind all others, as pixels are stored. A
walk is a list of axes, each with a size and one step for every array; axes of size 1 are dropped
and neighbours that make one longer axis are merged, so that most walks have one or two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]
# The size of an axis and the steps of a, b and the output along it.
Axis = tuple[int, int, int, int]

MAX_AXES = 6


def order_of(rank: int, channels_last: bool) -> tuple[int, ...]:
    """The axes of an array in the order of memory, the fastest last."""
    axes = tuple(range(rank))
    return (axes[0], *axes[2:], axes[1]) if channels_last and rank > 2 else axes


def steps_of(shape: Shape, channels_last: bool) -> tuple[int, ...]:
    """How far apart neighbours along each axis lie."""
    steps = [0] * len(shape)
    distance = 1
    for axis in reversed(order_of(len(shape), channels_last)):
        steps[axis] = distance
        distance *= shape[axis]
    return tuple(steps)


def broadcast_steps(shape: Shape, steps: Sequence[int], out: Shape) -> tuple[int, ...]:
    """Steps of an operand along the axes of the output: 0 where it is repeated."""
    missing = len(out) - len(shape)
    return (0,) * missing + tuple(
        0 if size == 1 else step for size, step in zip(shape, steps, strict=True)
    )


@dataclass(frozen=True)
class Walk:
    """Axes from the outermost to the innermost; never none."""

    axes: tuple[Axis, ...]

    @classmethod
    def over(cls, sizes: Shape, a: Sequence[int], b: Sequence[int], out: Sequence[int]) -> "Walk":
        """The shortest walk over axes of these sizes and steps, in the order of the output."""
        axes = [axis for axis in zip(sizes, a, b, out, strict=True) if axis[0] != 1]
        merged: list[Axis] = []
        for size, *steps in sorted(axes, key=lambda axis: -axis[3]):
            whole = [step * size for step in steps]
            outer = merged.pop()[0] if merged and list(merged[-1][1:]) == whole else 1
            merged.append((outer * size, steps[0], steps[1], steps[2]))
        return cls(tuple(merged) or ((1, 0, 0, 0),))

    @property
    def size(self) -> int:
        """How many values are visited."""
        return math.prod(axis[0] for axis in self.axes)

    @property
    def is_contiguous(self) -> bool:
        """Whether the first array is visited like the output, one value after the other."""
        if self.size == 1:
            return True
        return len(self.axes) == 1 and self.axes[0][1] == self.axes[0][3] == 1

    def same_order(self, operand: int) -> bool:
        """Whether operand 0 or 1 lies in memory exactly like the output."""
        return all(axis[1 + operand] == axis[3] for axis in self.axes)
