"""An integer program as the QDQ model that OpenVINO runs as it is written.

OpenVINO reads what ``onnx_qdq`` writes, with one exception: it fuses a convolution with the
addition that alone reads it, and then does not round the codes between the two. What is fused
also depends on who looks at these codes, so the file that a verifier looks into would not be the
one that runs. Between a convolution and an addition this writer therefore puts the maximum of the
codes and 0, which is those codes, and which the runtime neither removes nor fuses.
"""

from pathlib import Path

import numpy as np
import onnx

from halfstep.core.execution import Execution
from halfstep.export import onnx_ops
from halfstep.export.onnx_qdq import Writer, to_model
from halfstep.files import write_atomically
from halfstep.program.ir import IntProgram, Op


def export(program: IntProgram, path: str | Path) -> None:
    """Write ``program`` to ``path``; complete or not at all.

    Raises:
        ExportError: an operation without an ONNX form, or a file that cannot be written.
    """
    model = to_model(program, OpenVinoWriter(program))
    onnx.checker.check_model(model)
    write_atomically(Path(path), model.SerializeToString())


class OpenVinoWriter(Writer):
    """Keeps the rounding between a convolution and an addition."""

    def __init__(self, program: IntProgram) -> None:
        super().__init__(program)
        self.convolved = {op.output for op in program.ops if op.kind == "conv"}

    def write(self, op: Op) -> None:
        """Append the nodes of one operation."""
        if op.kind != "add" or op.execution is not Execution.INTEGER:
            super().write(op)
            return
        inputs = [self.dequantized(name, self._rounded(name)) for name in op.inputs]
        self.quantize(op, onnx_ops.EMITTERS[op.kind](self, op, inputs), op.output)

    def _rounded(self, name: str) -> str | None:
        """The codes of a convolution, out of reach of fusion; ``None`` for those of others."""
        if name not in self.convolved:
            return None
        lowest = self.constant("uint8/lowest", np.array(0, np.uint8))
        return self.node("Max", [name, lowest], f"{name}/rounded{len(self.nodes)}")
