"""Windows over space, channels last: what convolutions and pools have in common.

What has one axis of space gets a second one of size 1, in front. Padding is part of the operator
where the format's "same" is what was asked for, and an operator of its own otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from halfstep.export.litert_moves import padded
from halfstep.program.ir import Op

if TYPE_CHECKING:
    from halfstep.export.litert import Writer

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """A window over two axes of space, all fields as (vertical, horizontal)."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: tuple[Pair, Pair]

    @classmethod
    def of(cls, op: Op, kernel: tuple[int, ...]) -> "Window":
        """That of an operation over one or two axes."""
        dilation = op.attrs.get("dilation", (1,) * len(kernel))
        margins = tuple(map(tuple, op.attrs["padding"]))
        sizes = (_two(kernel, 1), _two(op.attrs["stride"], 1), _two(dilation, 1))
        return cls(*sizes, padding=_two(margins, (0, 0)))

    def same_as_format(self, sizes: Pair, out: Pair) -> bool:
        """Whether the padding is what the format calls "same"."""
        for axis in range(2):
            stride, size = self.stride[axis], sizes[axis]
            span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            total = max((out[axis] - 1) * stride + span - size, 0)
            wanted = (total // 2, total - total // 2)
            if out[axis] != -(-size // stride) or self.padding[axis] != wanted:
                return False
        return True


def _two(values: Any, missing: Any) -> Any:
    return tuple(values) if len(values) == 2 else (missing, *values)


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(N, H, W, C), also of (N, L, C)."""
    return shape if len(shape) == 4 else (shape[0], 1, *shape[1:])


def as_image(writer: "Writer", name: str) -> tuple[int, tuple[int, ...]]:
    """A value with two axes of space, and its shape."""
    layout = writer.layouts[name]
    source, shape = writer.own(name), image_shape(layout.file_shape)
    if shape == layout.file_shape:
        return source, shape
    image = writer.temporary(f"{name}/image", shape, name)
    writer.reshaped(source, shape, image)
    return image, shape


def emit_image(writer: "Writer", op: Op, emit: Callable[[int], None]) -> None:
    """Let ``emit`` make the result with two axes of space, and drop the one that is not there."""
    shape = writer.layouts[op.output].file_shape
    if len(shape) == 4:
        emit(writer.begin(op))
        return
    image = writer.temporary(f"{op.output}/image", image_shape(shape), op.output)
    emit(image)
    writer.reshaped(image, shape, writer.begin(op))


def prepared(
    writer: "Writer", op: Op, window: Window, fill: np.generic | None = None
) -> tuple[int, tuple[int, ...], int]:
    """The input, padded unless the operator does it; its shape; and the operator's padding."""
    source, shape = as_image(writer, op.inputs[0])
    modes = writer.file.schema.Padding
    out = image_shape(writer.layouts[op.output].file_shape)
    if not any(map(any, window.padding)):
        return source, shape, modes.VALID
    if window.same_as_format((shape[1], shape[2]), (out[1], out[2])):
        return source, shape, modes.SAME
    margins = ((0, 0), *window.padding, (0, 0))
    wide = tuple(size + sum(pair) for size, pair in zip(shape, margins, strict=True))
    made = writer.temporary(f"{op.output}/padded", wide, op.inputs[0])
    padded(writer, source, margins, made, fill, op.inputs[0])
    return made, wide, modes.VALID
