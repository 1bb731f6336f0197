"""An integer program as the ONNX model that TensorRT's explicit quantization reads.

TensorRT takes quantize and dequantize nodes as they stand and moves them through the graph itself,
so every operation here is a float operation between a dequantize and a quantize, copies included:
no operation acts on a tensor of int8. Zero points are 0 and types int8; weights are int8 codes
behind a dequantize with a scale for each output channel; a bias is float32; a fused activation
stands between its operation and the quantize.

Nothing of TensorRT can run where Halfstep is tested. What is tested is the form
(``tensorrt_lint``), and that the file means the program: ONNX Runtime without optimizations.
"""

from pathlib import Path

import numpy as np
import onnx

from halfstep.core.execution import Execution
from halfstep.errors import ExportError
from halfstep.export import onnx_ops
from halfstep.export.onnx_qdq import Writer, to_model
from halfstep.export.tensorrt_lint import lint
from halfstep.files import write_atomically
from halfstep.program.ir import IntProgram, Op

# What TensorRT 10 reads.
OPSET = 20


def export(program: IntProgram, path: str | Path) -> None:
    """Write ``program`` to ``path``; complete or not at all.

    Raises:
        ExportError: an operation without an ONNX form, a model that TensorRT's rules refuse, or a
            file that cannot be written.
    """
    model = to_model(program, TensorRtWriter(program), OPSET)
    onnx.checker.check_model(model)
    findings = lint(model)
    if findings:
        raise ExportError(f"{path}: not in the form that TensorRT reads: {findings[0]}")
    write_atomically(Path(path), model.SerializeToString())


class TensorRtWriter(Writer):
    """Writes every operation on real values, between dequantize and quantize."""

    def __init__(self, program: IntProgram) -> None:
        super().__init__(program)
        self.fused_anyway = frozenset()

    def write(self, op: Op) -> None:
        """Append the nodes of one operation."""
        if op.execution in (Execution.EDGE, Execution.FLOAT):
            super().write(op)
            return
        if op.kind not in onnx_ops.EMITTERS:
            raise ExportError(f"{op.output}: {op.kind} has no form in ONNX yet")
        kind = op.attrs["function"] if op.kind == "lookup" else op.kind
        names = op.inputs[:1] if op.kind == "lookup" else op.inputs
        real = onnx_ops.EMITTERS[kind](self, op, [self._real(name) for name in names])
        if op.execution is Execution.SCALED:
            self._rename(real, op.output)
        else:
            self.quantize(op, self._activated(op, self._scaled(op, real)), op.output)

    def _real(self, name: str) -> str:
        """The real values of an input; those of a bias are written as they are."""
        tensor = self.program.tensor(name)
        if tensor.grid is None:
            return self.name_of(name)
        if tensor.data is not None and tensor.grid.qtype.bits > 8:
            return self.constant(f"{name}/real", tensor.grid.dequantize(tensor.data))
        return self.dequantized(name)

    def _scaled(self, op: Op, real: str) -> str:
        if op.kind != "matmul" or op.attrs["alpha"] == 1.0:
            return real
        alpha = self.constant(f"{op.output}/alpha", np.asarray(op.attrs["alpha"], np.float32))
        return self.node("Mul", [real, alpha], f"{op.output}/scaled")

    def _activated(self, op: Op, real: str) -> str:
        """``real`` within the real values of the operation's clamp."""
        if op.clamp is None:
            return real
        grid = self.program.grid(op.output)
        low, high = op.clamp
        if low == 0 and high == grid.qtype.qmax:
            return self.node("Relu", [real], f"{op.output}/activated")
        ends = [
            self.constant(
                f"{op.output}/{end}", np.asarray(grid.scale * np.float32(code), np.float32)
            )
            for end, code in (("low", low), ("high", high))
        ]
        return self.node("Clip", [real, *ends], f"{op.output}/activated")

    def quantize(self, op: Op, real: str, name: str) -> None:
        """Quantize ``real`` on the output grid of ``op``, whose type alone bounds the codes."""
        grid = self.program.grid(op.output)
        self.node("QuantizeLinear", [real, *self._grid(op.output, grid)], name)
        self.annotate(name)
