"""The operators of each kind of operation: ``EMITTERS[kind](writer, op)``.

The same operators compute on codes and on real values; the types of their tensors decide.
Convolutions, pools and moves of values have files of their own.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from halfstep.core.grid import Affine
from halfstep.core.tables import hardswish_has_operator
from halfstep.export.litert_convolutions import CONVOLUTIONS
from halfstep.export.litert_functions import FLOAT_FUNCTIONS
from halfstep.export.litert_moves import MOVES
from halfstep.export.litert_pools import POOLS
from halfstep.export.litert_weights import bias_tensor, weight_tensor
from halfstep.program.ir import Op

if TYPE_CHECKING:
    from halfstep.export.litert import Writer

Emitter = Callable[["Writer", Op], None]
_FUSING = ("AddOptions", "SubOptions", "MulOptions")


def _unary(kind: str, options: str = "", **attrs: Any) -> Emitter:
    def emit(writer: "Writer", op: Op) -> None:
        source = writer.aligned(op.inputs[0], op.output)
        writer.file.operator(kind, [source], writer.begin(op), options, **attrs)

    return emit


def _binary(kind: str, options: str = "") -> Emitter:
    def emit(writer: "Writer", op: Op) -> None:
        sources = [writer.aligned(name, op.output) for name in op.inputs]
        fused = {"fusedActivationFunction": writer.fused(op)} if options in _FUSING else {}
        writer.file.operator(kind, sources, writer.begin(op), options, **fused)

    return emit


def _linear(writer: "Writer", op: Op) -> None:
    source, weight, *bias = op.inputs
    layout = writer.layouts[source]
    codes = writer.program.constant(weight)
    if layout.flattened:
        # The columns in the order in which the file has what was flattened.
        columns = codes.reshape(len(codes), *layout.split[1:])
        codes = columns.transpose(layout.perm).reshape(codes.shape)
    x = writer.own(source) if layout.flattened else writer.plain(source)
    operands = [x, weight_tensor(writer, weight, codes, 0)]
    operands += [bias_tensor(writer, name) for name in bias]
    fused = writer.fused(op)
    out = writer.begin(op, in_order=True)
    attrs = {"fusedActivationFunction": fused, "keepNumDims": len(layout.shape) > 2}
    writer.file.operator("FULLY_CONNECTED", operands, out, "FullyConnectedOptions", **attrs)


def _matmul(writer: "Writer", op: Op) -> None:
    """``alpha`` is part of the product's scale; the same codes then get the scale of the site."""
    operands = [writer.plain(name) for name in op.inputs]
    alpha = op.attrs["alpha"]
    shape = writer.layouts[op.output].shape
    out = writer.begin(op, in_order=True)
    if alpha == 1.0:
        writer.file.operator("BATCH_MATMUL", operands, out, "BatchMatMulOptions")
        return
    if writer.real(op):
        product = writer.temporary(f"{op.output}/product", shape, op.output)
        writer.file.operator("BATCH_MATMUL", operands, product, "BatchMatMulOptions")
        factor = writer.constant(np.asarray([alpha], np.float32))
        writer.file.operator("MUL", [product, factor], out, "MulOptions")
        return
    product = writer.file.tensor(f"{op.output}/product", shape, "int8", _before_alpha(writer, op))
    writer.file.operator("BATCH_MATMUL", operands, product, "BatchMatMulOptions")
    # XNNPACK leaves this move to LiteRT, which shares the memory; most others need equal scales.
    writer.file.operator("BITCAST", [product], out)


def _before_alpha(writer: "Writer", op: Op) -> Affine:
    """The grid of a product that ``alpha`` has not multiplied yet."""
    grid = writer.program.grid(op.output)
    return replace(grid, scale=grid.scale / np.float32(op.attrs["alpha"]))


def _softmax(writer: "Writer", op: Op) -> None:
    """Over the last axis of the file, wherever that is in the program."""
    layout = writer.layouts[op.output]
    source = writer.aligned(op.inputs[0], op.output)
    axis, shape = layout.axis(op.attrs["axis"]), layout.file_shape
    out = writer.begin(op)
    if axis == len(shape) - 1:
        writer.file.operator("SOFTMAX", [source], out, "SoftmaxOptions", beta=1.0)
        return
    perm = [i for i in range(len(shape)) if i != axis] + [axis]
    moved_shape = tuple(shape[i] for i in perm)
    moved = writer.temporary(f"{op.output}/scores", moved_shape, op.inputs[0])
    writer.transposed(source, shape, perm, moved)
    found = writer.temporary(f"{op.output}/shares", moved_shape, op.output)
    writer.file.operator("SOFTMAX", [moved], found, "SoftmaxOptions", beta=1.0)
    writer.transposed(found, moved_shape, np.argsort(perm), out)


def _reduction(kind: str) -> Emitter:
    def emit(writer: "Writer", op: Op) -> None:
        keep = op.attrs.get("keepdim", True)
        layout = writer.layouts[op.inputs[0]]
        axes = op.attrs.get("axes") or range(2, len(layout.shape))
        if keep:
            source = writer.own(op.inputs[0])
            axes = [layout.axis(axis) for axis in axes]
        else:
            source = writer.plain(op.inputs[0])
        which = writer.constant(np.asarray(sorted(axes), np.int32))
        out = writer.begin(op, in_order=not keep)
        writer.file.operator(kind, [source, which], out, "ReducerOptions", keepDims=keep)

    return emit


def _lookup(writer: "Writer", op: Op) -> None:
    """The runtime's own function where it has one, else its table."""
    function = op.attrs["function"]
    grid = writer.program.grid(op.output)
    if function in _FUNCTIONS and _has_operator(function, writer.program.grid(op.inputs[0]), grid):
        _FUNCTIONS[function](writer, op)
        return
    shape = writer.layouts[op.output].file_shape
    types = writer.file.schema.TensorType
    source = writer.aligned(op.inputs[0], op.output)
    codes, index = (
        writer.file.tensor(f"{op.output}/{name}", shape, "int32") for name in ("codes", "index")
    )
    attrs = {"inDataType": types.INT8, "outDataType": types.INT32}
    writer.file.operator("CAST", [source], codes, "CastOptions", **attrs)
    first = writer.constant(np.asarray([-writer.program.grid(op.inputs[0]).qtype.qmin], np.int32))
    writer.file.operator("ADD", [codes, first], index, "AddOptions")
    table = writer.constant(writer.program.constant(op.inputs[1]), grid)
    writer.file.operator("GATHER", [table, index], writer.begin(op), "GatherOptions", axis=0)


def _has_operator(function: str, source: Affine, out: Affine) -> bool:
    """Whether the runtime's operator of a function takes these grids."""
    if function == "hardswish":
        return hardswish_has_operator(source, out)
    dictated = {"sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}
    found = (float(out.scale), int(out.zero_point))
    return dictated.get(function, found) == found


def _leaky_relu(writer: "Writer", op: Op) -> None:
    _unary("LEAKY_RELU", "LeakyReluOptions", alpha=op.attrs["slope"])(writer, op)


def _gelu(writer: "Writer", op: Op) -> None:
    by_tanh = op.attrs["approximate"] == "tanh"
    _unary("GELU", "GeluOptions", approximate=by_tanh)(writer, op)


def _clamp(writer: "Writer", op: Op) -> None:
    """Of real values; a bound that is open is not there."""
    source = writer.aligned(op.inputs[0], op.output)
    _clipped(writer, op, source, op.attrs["low"], op.attrs["high"])


def _clipped(writer: "Writer", op: Op, source: int, low: float | None, high: float | None) -> None:
    steps = [(k, e) for k, e in (("MAXIMUM", low), ("MINIMUM", high)) if e is not None]
    shape = writer.layouts[op.output].file_shape
    for index, (kind, end) in enumerate(steps):
        bound = writer.constant(np.asarray([end], np.float32))
        last = index == len(steps) - 1
        made = writer.begin(op) if last else writer.temporary(f"{op.output}/low", shape, op.output)
        writer.file.operator(kind, [source, bound], made, "MaximumMinimumOptions")
        source = made


def _chain(writer: "Writer", op: Op, source: int, *steps: tuple[str, str, float]) -> int:
    """Binary operators with scalars, one after the other."""
    shape = writer.layouts[op.output].file_shape
    for index, (kind, options, scalar) in enumerate(steps):
        made = writer.temporary(f"{op.output}/step_{index}", shape, op.output)
        other = writer.constant(np.asarray([scalar], np.float32))
        writer.file.operator(kind, [source, other], made, options)
        source = made
    return source


def _hardsigmoid(writer: "Writer", op: Op) -> None:
    source = writer.aligned(op.inputs[0], op.output)
    steps = ("MUL", "MulOptions", 1 / 6), ("ADD", "AddOptions", 0.5)
    _clipped(writer, op, _chain(writer, op, source, *steps), 0.0, 1.0)


def _prelu(writer: "Writer", op: Op) -> None:
    """The slopes lie along the axis of the channels."""
    layout = writer.layouts[op.output]
    slopes = writer.program.constant(op.inputs[1]).reshape(-1)
    rank = len(layout.shape)
    shape = [1] * (rank - 1)
    shape[layout.axis(1) - 1] = slopes.size
    source = writer.aligned(op.inputs[0], op.output)
    alpha = writer.constant(np.asarray(slopes.reshape(shape), np.float32))
    writer.file.operator("PRELU", [source, alpha], writer.begin(op))


def _cast(writer: "Writer", op: Op) -> None:
    types = writer.file.schema.TensorType
    before, after = (writer.program.tensor(n).dtype.upper() for n in (op.inputs[0], op.output))
    attrs = {"inDataType": getattr(types, before), "outDataType": getattr(types, after)}
    _unary("CAST", "CastOptions", **attrs)(writer, op)


def _layer_norm(writer: "Writer", op: Op) -> None:
    """Mean, variance and what is left, in float32."""
    source, *affine = (writer.plain(name) for name in op.inputs)
    shape, n_axes = writer.layouts[op.output].shape, op.attrs["n_axes"]
    axes = writer.constant(np.arange(len(shape) - n_axes, len(shape), dtype=np.int32))
    reduced = (*shape[: len(shape) - n_axes], *[1] * n_axes)

    def step(kind: str, inputs: list[int], options: str, small: bool, **attrs: Any) -> int:
        count = len(writer.file.graph.tensors)
        made = writer.file.tensor(
            f"{op.output}/{kind.lower()}_{count}", reduced if small else shape, "float32"
        )
        writer.file.operator(kind, inputs, made, options, **attrs)
        return made

    mean = step("MEAN", [source, axes], "ReducerOptions", True, keepDims=True)
    squares = step("SQUARED_DIFFERENCE", [source, mean], "SquaredDifferenceOptions", small=False)
    variance = step("MEAN", [squares, axes], "ReducerOptions", True, keepDims=True)
    eps = writer.constant(np.asarray([op.attrs["eps"]], np.float32))
    factor = step("RSQRT", [step("ADD", [variance, eps], "AddOptions", True)], "", True)
    value = step("SUB", [source, mean], "SubOptions", small=False)
    last = [("MUL", "MulOptions", factor)]
    last += list(zip(("MUL", "ADD"), ("MulOptions", "AddOptions"), affine, strict=False))
    for kind, options, other in last[:-1]:
        value = step(kind, [value, other], options, small=False)
    kind, options, other = last[-1]
    writer.file.operator(kind, [value, other], writer.begin(op, in_order=True), options)


def _silu(writer: "Writer", op: Op) -> None:
    source = writer.aligned(op.inputs[0], op.output)
    shape = writer.layouts[op.output].file_shape
    share = writer.temporary(f"{op.output}/share", shape, op.output)
    writer.file.operator("LOGISTIC", [source], share)
    writer.file.operator("MUL", [source, share], writer.begin(op), "MulOptions")


_FUNCTIONS: dict[str, Emitter] = {
    "relu": _unary("RELU"),
    "leaky_relu": _leaky_relu,
    "sigmoid": _unary("LOGISTIC"),
    "tanh": _unary("TANH"),
    "gelu": _gelu,
    "hardswish": _unary("HARD_SWISH", "HardSwishOptions"),
}
EMITTERS: dict[str, Emitter] = {
    "quantize": _unary("QUANTIZE", "QuantizeOptions"),
    "dequantize": _unary("DEQUANTIZE", "DequantizeOptions"),
    "linear": _linear,
    "matmul": _matmul,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "lookup": _lookup,
    "mean": _reduction("MEAN"),
    "sum": _reduction("SUM"),
    "global_avg_pool": _reduction("MEAN"),
    "add": _binary("ADD", "AddOptions"),
    "sub": _binary("SUB", "SubOptions"),
    "mul": _binary("MUL", "MulOptions"),
    "div": _binary("DIV", "DivOptions"),
    "equal": _binary("EQUAL", "EqualOptions"),
    "logical_and": _binary("LOGICAL_AND", "LogicalAndOptions"),
    "where": _binary("SELECT_V2", "SelectV2Options"),
    "minimum": _binary("MINIMUM", "MaximumMinimumOptions"),
    "logical_not": _unary("LOGICAL_NOT", "LogicalNotOptions"),
    "neg": _unary("NEG", "NegOptions"),
    "exp": _unary("EXP", "ExpOptions"),
    "sqrt": _unary("SQRT"),
    "cast": _cast,
    "clamp": _clamp,
    "hardsigmoid": _hardsigmoid,
    "silu": _silu,
    "prelu": _prelu,
    **_FUNCTIONS,
    **FLOAT_FUNCTIONS,
    **MOVES,
    **CONVOLUTIONS,
    **POOLS,
}
