"""The ONNX form of each kind of operation: ``EMITTERS[kind](writer, op, inputs) -> output name``.

``inputs`` are names of real values for operations that compute, and of codes for those that move
them; the writer puts dequantize and quantize nodes around.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from halfstep.core.execution import BATCH
from halfstep.export.onnx_functions import FUNCTIONS
from halfstep.export.onnx_windows import conv, pads, pool
from halfstep.program.batch import repeats
from halfstep.program.ir import Op

if TYPE_CHECKING:
    from halfstep.export.onnx_qdq import Writer

Emitter = Callable[["Writer", Op, list[str]], str]


def _out(op: Op) -> str:
    return f"{op.output}/result"


def _ints(values: Any) -> np.ndarray:
    return np.asarray(values, np.int64)


def _simple(kind: str, **names: str) -> Emitter:
    """One node; ``names`` maps ONNX attributes to ours."""

    def emit(writer: "Writer", op: Op, inputs: list[str]) -> str:
        attrs = {theirs: op.attrs[ours] for theirs, ours in names.items()}
        return writer.node(kind, inputs, _out(op), **attrs)

    return emit


def _fixed(kind: str, **attrs: Any) -> Emitter:
    return lambda writer, op, inputs: writer.node(kind, inputs, _out(op), **attrs)


def _linear(writer: "Writer", op: Op, inputs: list[str]) -> str:
    """A float linear of more than two axes is a product and an addition; Gemm takes two."""
    x, weight, *bias = inputs
    if len(writer.program.tensor(op.inputs[0]).shape) == 2:
        return writer.node("Gemm", [x, weight, *bias], _out(op), transB=1)
    weights = writer.node("Transpose", [weight], f"{op.output}/weight", perm=[1, 0])
    product = writer.node("MatMul", [x, weights], f"{op.output}/product")
    return writer.node("Add", [product, *bias], _out(op)) if bias else product


def _matmul(writer: "Writer", op: Op, inputs: list[str]) -> str:
    product = writer.node("MatMul", inputs, _out(op))
    if writer.program.tensor(op.output).grid is not None or op.attrs["alpha"] == 1.0:
        return product
    alpha = writer.constant(f"{op.output}/alpha", np.asarray(op.attrs["alpha"], np.float32))
    return writer.node("Mul", [product, alpha], f"{op.output}/scaled")


def _clamp(writer: "Writer", op: Op, inputs: list[str]) -> str:
    ends = [
        writer.constant(f"float/{end}", np.asarray(end, np.float32)) if end is not None else None
        for end in (op.attrs["low"], op.attrs["high"])
    ]
    if ends[0] is None:
        assert ends[1] is not None
        return writer.node("Min", [*inputs, ends[1]], _out(op))
    return writer.node("Clip", [*inputs, *(end for end in ends if end)], _out(op))


def _prelu(writer: "Writer", op: Op, inputs: list[str]) -> str:
    """ONNX counts axes from the last, PyTorch has the slopes on axis 1."""
    shape = (-1, *[1] * (len(writer.program.tensor(op.output).shape) - 2))
    slopes = reshaped(writer, inputs[1], shape, f"{op.output}/slopes")
    return writer.node("PRelu", [inputs[0], slopes], _out(op))


def _reshape(writer: "Writer", op: Op, inputs: list[str]) -> str:
    return reshaped(writer, inputs[0], op.attrs["shape"], _out(op))


def reshaped(writer: "Writer", value: str, shape: tuple[int, ...], out: str) -> str:
    """``value`` in another shape, real values or codes; ``BATCH`` is whatever is left."""
    return writer.node("Reshape", [value, _sizes(writer, shape)], out)


def _sizes(writer: "Writer", shape: tuple[int, ...]) -> str:
    return writer.constant("shape/" + "x".join(map(str, shape)), _ints(shape))


def _slice(writer: "Writer", op: Op, inputs: list[str]) -> str:
    attrs = op.attrs
    window = [
        writer.constant(f"index/{value}", _ints([value]))
        for value in (attrs["start"], attrs["stop"], attrs["axis"], attrs["step"])
    ]
    return writer.node("Slice", [*inputs, *window], _out(op))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad(writer: "Writer", op: Op, inputs: list[str]) -> str:
    margins = writer.constant(f"{op.output}/pads", _ints(pads(op.attrs["padding"])))
    grid = writer.program.tensor(op.output).grid
    value: np.ndarray = np.asarray(op.attrs["value"], np.float32)
    if grid is not None:
        value = grid.zero_point.astype(grid.qtype.storage)
    fill = writer.constant(f"{op.output}/fill", value)
    return writer.node(
        "Pad", [inputs[0], margins, fill], _out(op), mode=_PAD_MODES[op.attrs["mode"]]
    )


def _expand(writer: "Writer", op: Op, inputs: list[str]) -> str:
    """The batch, where the value has none yet, is read from the first input of the program."""
    shape = repeats(writer.program, op)
    if BATCH not in shape:
        return writer.node("Expand", [inputs[0], _sizes(writer, shape)], _out(op))
    batch = writer.node("Shape", [writer.program.inputs[0]], f"{op.output}/batch", start=0, end=1)
    parts = [
        batch if size == BATCH else writer.constant(f"index/{size}", _ints([size]))
        for size in shape
    ]
    sizes = writer.node("Concat", parts, f"{op.output}/sizes", axis=0)
    return writer.node("Expand", [inputs[0], sizes], _out(op))


def _upsample_nearest(writer: "Writer", op: Op, inputs: list[str]) -> str:
    """Repetition of neighbours as reshape, expand, reshape would cost more than Resize on codes."""
    return _resize(
        writer,
        op,
        inputs,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _upsample_linear(writer: "Writer", op: Op, inputs: list[str]) -> str:
    mode = "align_corners" if op.attrs["align_corners"] else "half_pixel"
    return _resize(writer, op, inputs, mode="linear", coordinate_transformation_mode=mode)


def _resize(writer: "Writer", op: Op, inputs: list[str], **attrs: Any) -> str:
    factors = np.asarray([1, 1, *op.attrs["factors"]], np.float32)
    name = "factors/" + "x".join(map(str, op.attrs["factors"]))
    region = writer.constant("factors/no_region", np.asarray([], np.float32))
    return writer.node(
        "Resize", [inputs[0], region, writer.constant(name, factors)], _out(op), **attrs
    )


def _reduction(kind: str) -> Emitter:
    def emit(writer: "Writer", op: Op, inputs: list[str]) -> str:
        axes = writer.constant(
            "axes/" + "x".join(map(str, op.attrs["axes"])), _ints(op.attrs["axes"])
        )
        return writer.node(kind, [inputs[0], axes], _out(op), keepdims=int(op.attrs["keepdim"]))

    return emit


def _layer_norm(writer: "Writer", op: Op, inputs: list[str]) -> str:
    if len(inputs) == 1:
        shape = writer.program.tensor(op.inputs[0]).shape[-op.attrs["n_axes"] :]
        inputs = [*inputs, writer.constant(f"{op.output}/ones", np.ones(shape, np.float32))]
    attrs = {"axis": -op.attrs["n_axes"], "epsilon": op.attrs["eps"]}
    return writer.node("LayerNormalization", inputs, _out(op), **attrs)


def _cast(writer: "Writer", op: Op, inputs: list[str]) -> str:
    import onnx_ir as ir

    to = ir.DataType.from_numpy(np.dtype(writer.program.tensor(op.output).dtype))
    return writer.node("Cast", inputs, _out(op), to=int(to))


def _embedding(writer: "Writer", op: Op, inputs: list[str]) -> str:
    return writer.node("Gather", inputs, _out(op), axis=0)


def _quantize(writer: "Writer", op: Op, inputs: list[str]) -> str:
    writer.quantize(op, inputs[0], op.output)
    return op.output


def _dequantize(writer: "Writer", op: Op, inputs: list[str]) -> str:
    del inputs
    return writer.dequantized(op.inputs[0])


def _softmax(writer: "Writer", op: Op, inputs: list[str]) -> str:
    return writer.node("Softmax", inputs, _out(op), axis=op.attrs["axis"])


EMITTERS: dict[str, Emitter] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "conv": conv,
    "conv_transpose": conv,
    "linear": _linear,
    "matmul": _matmul,
    "lookup": _fixed("Identity"),
    "add": _fixed("Add"),
    "sub": _fixed("Sub"),
    "mul": _fixed("Mul"),
    "div": _fixed("Div"),
    "neg": _fixed("Neg"),
    "exp": _fixed("Exp"),
    "sqrt": _fixed("Sqrt"),
    "erf": _fixed("Erf"),
    "equal": _fixed("Equal"),
    "logical_and": _fixed("And"),
    "logical_not": _fixed("Not"),
    "where": _fixed("Where"),
    "cast": _cast,
    "relu": _fixed("Relu"),
    "clamp": _clamp,
    "leaky_relu": _simple("LeakyRelu", alpha="slope"),
    "prelu": _prelu,
    "minimum": _fixed("Min"),
    "sigmoid": _fixed("Sigmoid"),
    "tanh": _fixed("Tanh"),
    "hardswish": _fixed("HardSwish"),
    "hardsigmoid": _fixed("HardSigmoid", alpha=1 / 6, beta=0.5),
    "gelu": _simple("Gelu", approximate="approximate"),
    **FUNCTIONS,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "mean": _reduction("ReduceMean"),
    "sum": _reduction("ReduceSum"),
    "max_pool": pool,
    "avg_pool": pool,
    "global_avg_pool": _fixed("GlobalAveragePool"),
    "reshape": _reshape,
    "transpose": _simple("Transpose", perm="perm"),
    "slice": _slice,
    "pad": _pad,
    "concat": _simple("Concat", axis="axis"),
    "expand": _expand,
    "upsample_nearest": _upsample_nearest,
    "upsample_linear": _upsample_linear,
    "embedding": _embedding,
}
