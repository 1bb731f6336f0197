"""Functions of one value whose kernels in ONNX runtimes have bits that are not known.

On codes they are looked up in a table that the file holds; in float they are the operators that
there are.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from halfstep.errors import ExportError
from halfstep.program.ir import Op

if TYPE_CHECKING:
    from halfstep.export.onnx_qdq import Writer


def look_up(writer: "Writer", op: Op) -> None:
    """The codes of the output by those of the input, as places in a table."""
    codes, table = op.inputs
    grid, out = writer.program.grid(codes), writer.program.grid(op.output)
    index = writer.node(
        "Cast", [writer.name_of(codes)], f"{op.output}/index", to=int(TensorProto.INT32)
    )
    if grid.qtype.qmin:
        first = writer.constant(f"int32/{-grid.qtype.qmin}", np.asarray(-grid.qtype.qmin, np.int32))
        index = writer.node("Add", [index, first], f"{op.output}/place")
    values = writer.program.constant(table).astype(out.qtype.storage)
    writer.node("Gather", [writer.constant(table, values), index], op.output, axis=0)
    writer.annotate(op.output)


def _absolute(writer: "Writer", op: Op, inputs: list[str]) -> str:
    return writer.node("Abs", inputs, f"{op.output}/result")


def _elu(writer: "Writer", op: Op, inputs: list[str]) -> str:
    alpha, scale, input_scale = (op.attrs[name] for name in ("alpha", "scale", "input_scale"))
    out = f"{op.output}/result"
    if (scale, input_scale) == (1.0, 1.0):
        return writer.node("Elu", inputs, out, alpha=float(alpha))
    if input_scale == 1.0:
        return writer.node("Selu", inputs, out, alpha=float(alpha), gamma=float(scale))
    if scale == 1.0 and alpha * input_scale == 1.0:
        return writer.node("Celu", inputs, out, alpha=float(alpha))
    raise ExportError(f"{op.output}: an ELU with {dict(op.attrs)} has no form in ONNX")


def _softplus(writer: "Writer", op: Op, inputs: list[str]) -> str:
    beta = float(op.attrs["beta"])
    if beta == 1.0:
        return writer.node("Softplus", inputs, f"{op.output}/result")
    factor, divisor = (
        writer.constant(f"float/{v}", np.asarray(v, np.float32)) for v in (beta, 1 / beta)
    )
    scaled = writer.node("Mul", [*inputs, factor], f"{op.output}/scaled")
    plus = writer.node("Softplus", [scaled], f"{op.output}/plus")
    return writer.node("Mul", [plus, divisor], f"{op.output}/result")


def _mish(writer: "Writer", op: Op, inputs: list[str]) -> str:
    plus = writer.node("Softplus", inputs, f"{op.output}/plus")
    gate = writer.node("Tanh", [plus], f"{op.output}/gate")
    return writer.node("Mul", [*inputs, gate], f"{op.output}/result")


def _log_sigmoid(writer: "Writer", op: Op, inputs: list[str]) -> str:
    negative = writer.node("Neg", inputs, f"{op.output}/negative")
    plus = writer.node("Softplus", [negative], f"{op.output}/plus")
    return writer.node("Neg", [plus], f"{op.output}/result")


FUNCTIONS: dict[str, Callable[["Writer", Op, list[str]], str]] = {
    "abs": _absolute,
    "elu": _elu,
    "softplus": _softplus,
    "mish": _mish,
    "log_sigmoid": _log_sigmoid,
}
