"""An integer program as the QDQ model that OpenVINO runs as it is written.

OpenVINO reads what ``onnx_qdq`` writes, with two exceptions.

It fuses a convolution with the addition that alone reads it, and then does not round the codes
between the two. What is fused also depends on who looks at these codes, so the file that a verifier
looks into would not be the one that runs. Between a convolution and an addition this writer
therefore puts the maximum of the codes and 0, which is those codes, and which the runtime neither
removes nor fuses.

Where a constant is expanded to the number of samples, which is asked of an input's shape, it gives
all channels of a convolution elsewhere in the file the bias of the first. Here such a constant is
broadcast by its maximum with one 0 a sample.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from halfstep.core.execution import BATCH, Execution
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
    """Keeps the rounding between a convolution and an addition, and asks for no shape."""

    def __init__(self, program: IntProgram) -> None:
        super().__init__(program)
        self.convolved = {op.output for op in program.ops if op.kind == "conv"}

    def write(self, op: Op) -> None:
        """Append the nodes of one operation."""
        if op.kind == "expand" and op.execution is Execution.COPY and BATCH in op.attrs["shape"]:
            self._repeat(op)
            return
        if op.kind != "add" or op.execution is not Execution.INTEGER:
            super().write(op)
            return
        inputs = [self.dequantized(name, self._rounded(name)) for name in op.inputs]
        self.quantize(op, onnx_ops.EMITTERS[op.kind](self, op, inputs), op.output)

    def _rounded(self, name: str) -> str | None:
        """The codes of a convolution, out of reach of fusion; ``None`` for those of others."""
        if name not in self.convolved:
            return None
        return self.node("Max", [name, self._zero()], f"{name}/rounded{len(self.nodes)}")

    def _zero(self) -> str:
        return self.constant("uint8/lowest", np.array(0, np.uint8))

    def _repeat(self, op: Op) -> None:
        """An expansion of all axes but the batch, and one along the batch where there is none."""
        shape, out = op.attrs["shape"], op.output
        sizes = np.asarray([1 if size == BATCH else size for size in shape], np.int64)
        expanded = self.node(
            "Expand",
            [self.name_of(op.inputs[0]), self.constant(f"{out}/sizes", sizes)],
            f"{out}/one",
        )
        if BATCH not in self.program.tensor(op.inputs[0]).shape:
            expanded = self.node("Max", [expanded, self._zeros(shape, out)], f"{out}/all")
        self._rename(expanded, out)

    def _zeros(self, shape: tuple[int, ...], out: str) -> str:
        """The code 0 for each sample, of so many axes."""
        flat = self.node("Flatten", [self.program.inputs[0]], f"{out}/flat", axis=1)
        ends = [self.constant(f"index/{i}", np.asarray([i], np.int64)) for i in (0, 1, 1)]
        first = self.node("Slice", [flat, *ends], f"{out}/first")
        codes = self.node("Cast", [first], f"{out}/samples", to=int(TensorProto.UINT8))
        sizes = self.constant(f"{out}/axes", np.asarray([-1 if s == BATCH else 1 for s in shape]))
        column = self.node("Reshape", [codes, sizes], f"{out}/column")
        return self.node("Min", [column, self._zero()], f"{out}/zeros")
