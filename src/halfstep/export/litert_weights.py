"""Constant weights and biases as tensors of the format."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core.grid import Affine
from halfstep.core.qtype import INT32
from halfstep.program.ir import Op

if TYPE_CHECKING:
    from halfstep.export.litert import Writer


def weight_tensor(
    writer: "Writer",
    name: str,
    values: NDArray[Any],
    axis: int,
    channels: slice = slice(None),
    suffix: str = "",
) -> int:
    """A weight as the file has it.

    Always with a scale for each output channel: kernels have other paths for one scale, which were
    not measured.

    Args:
        writer: of the file.
        name: of the program's tensor.
        values: its codes, or real values, in the order of the file.
        axis: of the output channels, in the file.
        channels: which of them these are.
        suffix: behind the name, where several tensors are made of one.
    """
    tensor = writer.program.tensor(name)
    grid = _per_channel(tensor.grid, values.shape[axis], axis, channels)
    return writer.weight(f"{name}{suffix}", tensor.dtype, grid, values)


def bias_tensor(
    writer: "Writer", name: str, channels: slice = slice(None), suffix: str = ""
) -> int:
    """A bias, or the part of it for some channels."""
    tensor, values = writer.program.tensor(name), writer.program.constant(name)[channels]
    grid = _per_channel(tensor.grid, values.size, 0, channels)
    return writer.weight(f"{name}{suffix}", tensor.dtype, grid, values)


def no_bias(writer: "Writer", op: Op) -> int:
    """Zeros in place of a bias, for operators that need one."""
    source, weight = (writer.program.tensor(name) for name in op.inputs[:2])
    n_channels = writer.layouts[op.output].shape[1]
    if source.grid is None or weight.grid is None:
        return writer.constant(np.zeros(n_channels, np.float32))
    scale = source.grid.scale * np.broadcast_to(weight.grid.scale, n_channels)
    grid = Affine(INT32, scale, np.zeros(n_channels, np.int32), axis=0)
    return writer.file.tensor(
        f"{op.output}/no_bias", (n_channels,), "int32", grid, np.zeros(n_channels, np.int32)
    )


def _per_channel(grid: Affine | None, n_channels: int, axis: int, channels: slice) -> Affine | None:
    if grid is None:
        return None
    scale = grid.scale[channels] if grid.axis is not None else np.full(n_channels, grid.scale)
    if scale.size != n_channels:  # the groups of a transposed convolution share their scales
        scale = grid.scale
    return replace(grid, scale=scale, zero_point=np.zeros(scale.shape, np.int32), axis=axis)
