"""An integer program as an ONNX model in QDQ form, shaped so that ONNX Runtime runs it in integers.

Every integer operation is written as dequantize -> float operation -> quantize, the form that the
runtime fuses into one integer kernel. Operations that only move codes act on the codes
themselves: no quantize or dequantize stands around them, so nothing about them can be rounded.
Weights are int8 codes with a scale for each channel, biases int32 on ``scale_in * scale_weight``.
The tensor of codes of a site has the site's name, so that a verifier can ask for it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from halfstep.core.execution import BATCH, Execution
from halfstep.core.grid import Affine
from halfstep.errors import ExportError
from halfstep.export import onnx_functions, onnx_ops
from halfstep.export.onnx_fusion import fused_anyway
from halfstep.files import write_atomically
from halfstep.program.batch import one_sample
from halfstep.program.ir import IntProgram, Op, Tensor
from halfstep.program.saturation import PROPERTY, PROVEN, prove_sums

OPSET = 21


def export(program: IntProgram, path: str | Path) -> None:
    """Write ``program`` to ``path``; complete or not at all.

    Raises:
        ExportError: an operation without an ONNX form, or a file that cannot be written.
    """
    model = to_model(program)
    onnx.checker.check_model(model)
    write_atomically(Path(path), model.SerializeToString())


def to_model(
    program: IntProgram, writer: "Writer | None" = None, opset: int = OPSET
) -> onnx.ModelProto:
    """The model of ``program``, in memory, by a ``writer`` of its own or by a plain one."""
    writer = writer or Writer(program)
    for op in program.ops:
        writer.write(op)
    graph = ir.Graph(
        [writer.values[name] for name in program.inputs],
        [writer.values[name] for name in program.outputs],
        nodes=writer.nodes,
        initializers=list(writer.initializers.values()),
        opset_imports={"": opset},
        name="halfstep",
    )
    proven = {PROPERTY: PROVEN} if prove_sums(program, "int16_pairs").safe else {}
    model = ir.Model(graph, ir_version=10, producer_name="halfstep", metadata_props=proven)
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto


class Writer:
    """The nodes and values of one model while it grows.

    Attributes:
        program: what is written.
        nodes: in order of execution.
        values: by name.
        initializers: constants by name.
        fused_anyway: float operations to protect from fusion, by their outputs.
    """

    def __init__(self, program: IntProgram) -> None:
        self.program = program
        self.nodes: list[ir.Node] = []
        self.values: dict[str, ir.Value] = {}
        self.initializers: dict[str, ir.Value] = {}
        self.fused_anyway = fused_anyway(program)
        self._one_sample = one_sample(program)
        for name in program.inputs:
            self._value(name, program.tensor(name).dtype, program.tensor(name).shape)

    def write(self, op: Op) -> None:
        """Append the nodes of one operation."""
        if op.kind not in onnx_ops.EMITTERS:
            raise ExportError(f"{op.output}: {op.kind} has no form in ONNX yet")
        emit: Callable[[Writer, Op, list[str]], str] = onnx_ops.EMITTERS[op.kind]
        on_codes = (Execution.INTEGER, Execution.SCALED, Execution.DEQUANTIZED)
        if op.execution not in on_codes:
            self._rename(emit(self, op, self._unfused_inputs(op)), op.output)
        elif op.kind == "linear" and len(self.program.tensor(op.inputs[0]).shape) > 2:
            self._write_flat_linear(op)
        elif op.execution is Execution.SCALED:
            inputs = [self.dequantized(name) for name in op.inputs]
            self._rename(emit(self, op, inputs), op.output)
        elif op.kind == "lookup" and op.attrs["function"] in onnx_functions.FUNCTIONS:
            onnx_functions.look_up(self, op)
        elif op.kind == "lookup":
            # ONNX Runtime makes the table for itself, from the function.
            function = onnx_ops.EMITTERS[op.attrs["function"]]
            self.quantize(op, function(self, op, [self.dequantized(op.inputs[0])]), op.output)
        else:
            real = emit(self, op, [self.dequantized(name) for name in op.inputs])
            self.quantize(op, real, op.output)

    def _unfused_inputs(self, op: Op) -> list[str]:
        """Inputs of an operation that stays float, or moves codes, so that it stays so."""
        names = [self.name_of(name) for name in op.inputs]
        if op.output in self.fused_anyway:
            # A maximum of one value is that value, and no optimizer looks through it.
            names[0] = self.node("Max", names[:1], f"{op.output}/in_float")
        return names

    def _write_flat_linear(self, op: Op) -> None:
        """Gemm adds an int32 bias but takes two axes: values are reshaped in front and behind."""
        shape = self.program.tensor(op.output).shape
        flat = onnx_ops.reshaped(
            self,
            self.name_of(op.inputs[0]),
            (BATCH, self.program.tensor(op.inputs[0]).shape[-1]),
            f"{op.output}/flat",
        )
        weights = [self.dequantized(name) for name in op.inputs[1:]]
        x = self.dequantized(op.inputs[0], flat)
        product = self.node("Gemm", [x, *weights], f"{op.output}/product", transB=1)
        if op.execution is Execution.INTEGER:
            flat_codes = f"{op.output}/codes"
            self.quantize(op, product, flat_codes)
            product = flat_codes
        onnx_ops.reshaped(self, product, shape, op.output)
        self.annotate(op.output)

    # Building blocks for the emitters ----------------------------------------------------------

    def node(self, kind: str, inputs: list[str], out: str, domain: str = "", **attrs: Any) -> str:
        """Append a node; return the name of its output."""
        values = [self.values[name] for name in inputs]
        self.values[out] = ir.Value(name=out)
        attributes = ir.convenience.convert_attributes(attrs)
        self.nodes.append(
            ir.Node(
                domain, kind, values, attributes, outputs=[self.values[out]], name=f"{out}/{kind}"
            )
        )
        return out

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """An initializer, made once for each name."""
        if name not in self.initializers:
            tensor = ir.Tensor(np.ascontiguousarray(values).reshape(values.shape), name=name)
            value = ir.Value(name=name, const_value=tensor)
            value.dtype, value.shape = tensor.dtype, tensor.shape
            self.initializers[name] = self.values[name] = value
        return name

    def name_of(self, name: str) -> str:
        """The value of a tensor; a constant becomes an initializer here."""
        tensor = self.program.tensor(name)
        return name if tensor.data is None else self.constant(name, tensor.data)

    def dequantized(self, name: str, codes: str | None = None) -> str:
        """A new dequantize node of a tensor of codes: each reader has its own, as fusion wants.

        ``codes`` is another value with the codes of the tensor, such as a reshaped one.
        """
        grid = self.program.grid(name)
        source = codes or self.name_of(name)
        out = f"{name}/real{len(self.nodes)}"
        axis: dict[str, Any] = {} if grid.axis is None else {"axis": grid.axis}
        return self.node("DequantizeLinear", [source, *self._grid(name, grid)], out, **axis)

    def quantize(self, op: Op, real: str, name: str) -> None:
        """Quantize ``real`` on the output grid of ``op``, and clamp where the type does not."""
        grid = self.program.grid(op.output)
        low, high = op.clamp or (grid.qtype.qmin, grid.qtype.qmax)
        info = np.iinfo(grid.qtype.storage)
        bounded = (low, high) == (info.min, info.max)
        out = name if bounded else f"{op.output}/unclamped"
        scale = None
        if op.kind == "matmul" and op.attrs["alpha"] != 1.0:
            scale = np.asarray(grid.scale / np.float32(op.attrs["alpha"]), np.float32)
        self.node("QuantizeLinear", [real, *self._grid(op.output, grid, scale)], out)
        if not bounded:
            ends = [
                self.constant(f"{grid.qtype.storage}/{end}", np.array(end, grid.qtype.storage))
                for end in (low, high)
            ]
            self.node("Clip", [out, *ends], name)
        if name == op.output:
            self.annotate(name)

    def _grid(self, name: str, grid: Affine, scale: NDArray[np.float32] | None = None) -> list[str]:
        kind = "scale" if scale is None else "scale_before_alpha"
        names = [self.constant(f"{name}/{kind}", grid.scale if scale is None else scale)]
        zero_point = grid.zero_point.astype(grid.qtype.storage)
        if grid.qtype.bits < 32:
            names.append(self.constant(f"{name}/zero_point", zero_point))
        return names

    def _rename(self, result: str, name: str) -> None:
        """Give the last value made the name of the tensor that it is."""
        value = self.values.pop(result)
        value.name = name
        self.values[name] = value
        self.annotate(name)

    def annotate(self, name: str) -> None:
        """Say what the value of this name is, as the program has it."""
        tensor = self.program.tensor(name)
        value = self.values[name]
        value.dtype, value.shape = (
            ir.DataType.from_numpy(np.dtype(tensor.dtype)),
            self._open(tensor),
        )

    def _value(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        value = ir.Value(name=name)
        value.dtype = ir.DataType.from_numpy(np.dtype(dtype))
        value.shape = self._open(self.program.tensor(name))
        self.values[name] = value

    def _open(self, tensor: Tensor) -> ir.Shape:
        """Sizes; the batch in front has a name, and a multiple of it has none, nor any elsewhere.

        The runtime plans its memory as if sizes of one name were one size.
        """
        sizes = [None if size == BATCH else size for size in tensor.shape]
        is_batch = tensor.shape[:1] == (BATCH,) and self._one_sample[tensor.name][0] == 1
        return ir.Shape(["N", *sizes[1:]] if is_batch else sizes)
