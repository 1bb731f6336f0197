"""Programs of one operation, whose inputs may be codes, so that a kernel is run on its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core.execution import Execution
from halfstep.core.grid import Affine
from halfstep.core.qtype import INT8_NARROW, INT32, UINT8, QType
from halfstep.program.ir import IntProgram, Op, Tensor

Array = NDArray[Any]
N = -1


def grid(
    scale: Any = 1.0, zero_point: Any = 0, qtype: QType = UINT8, axis: int | None = None
) -> Affine:
    return Affine(qtype, np.float32(scale), np.int32(zero_point), axis)


def codes(name: str, shape: tuple[int, ...], on: Affine, data: Array | None = None) -> Tensor:
    return Tensor(name, shape, on, data=data)


def real(
    name: str, shape: tuple[int, ...], dtype: str = "float32", data: Array | None = None
) -> Tensor:
    return Tensor(name, shape, dtype=dtype, data=data)


def one_op(
    kind: str,
    inputs: Sequence[Tensor],
    out: Tensor,
    execution: Execution,
    accumulator_bits: int = 32,
    **fields: Any,
) -> IntProgram:
    """``out = kind(inputs)``; constants are not among the inputs of the program."""
    op = Op(kind, tuple(tensor.name for tensor in inputs), out.name, execution, **fields)
    given = tuple(tensor.name for tensor in inputs if tensor.data is None)
    tensors = {tensor.name: tensor for tensor in (*inputs, out)}
    return IntProgram("reference", given, (out.name,), tensors, (op,), accumulator_bits)


def weighted(
    kind: str,
    x: tuple[int, ...],
    out: tuple[int, ...],
    weight: Array,
    bias: Array | None = None,
    attrs: Mapping[str, Any] | None = None,
    *,
    x_grid: Affine | None = None,
    weight_grid: Affine | None = None,
    out_grid: Affine | None = None,
    bias_type: QType = INT32,
    **fields: Any,
) -> IntProgram:
    """A conv, transposed conv or linear on an input "x" of codes; the output is "y"."""
    x_grid = x_grid or grid(0.05, 7)
    weight_grid = weight_grid or grid(0.01, 0, INT8_NARROW)
    inputs = [codes("x", x, x_grid), codes("w", weight.shape, weight_grid, weight)]
    if bias is not None:
        scale = x_grid.scale * weight_grid.channel_scale
        if kind == "conv_transpose" and scale.ndim:
            scale = np.tile(scale, (attrs or {})["groups"])
        on = grid(scale, np.zeros(scale.shape), bias_type, 0 if scale.ndim else None)
        inputs.append(codes("b", bias.shape, on, bias))
    y = codes("y", out, out_grid or grid(0.4, 13))
    fields = {"formula": "float", **fields}
    return one_op(kind, inputs, y, Execution.INTEGER, attrs=attrs or {}, **fields)
