"""An integer program as the QDQ model that OpenVINO runs as it is written.

OpenVINO reads what ``onnx_qdq`` writes, with eight exceptions:

- It has no circular padding, which becomes the places of its values here.
- Padding of a convolution in which a whole window fits may end the process, or gives too many
  values where there are strides. It becomes a node of its own.
- A convolution that makes several outputs of each channel alone gives other values for small
  inputs. Each channel is repeated here for each of its outputs.
- Its means and sums of values of three axes are right for the first few results alone, where
  anything is fused behind them. They are given four axes here, of which one has a single place.
- It clamps codes, at the nearest ones to the bounds where these lie between, averages codes
  without their zero point where there is padding, and pads that zero point with the codes, for
  their other readers too. What is to be done in float is kept from codes by a maximum that changes
  nothing.
- It takes the constant of the first channel for all where a product with a constant is behind a
  clamp. The codes of the other operand are kept apart by their maximum with 0.
- It fuses a convolution with the addition that alone reads it, and then does not round the codes
  between the two. What is fused also depends on who looks at these codes, so the file that a
  verifier looks into would not be the one that runs. Between a convolution and an addition this
  writer therefore puts the maximum of the codes and 0, which is those codes, and which
  the runtime neither removes nor fuses.
- Where a constant is expanded to the number of samples, which is asked of an input's shape, it
  gives all channels of a convolution elsewhere in the file the bias of the first. Here such a
  constant is broadcast by its maximum, or real values by their sum, with one 0 a sample.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto

from halfstep.core.execution import BATCH, Execution
from halfstep.export import onnx_ops
from halfstep.export.onnx_qdq import Writer, to_model
from halfstep.export.onnx_windows import Margins, padded
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


# Float operations that it would do on the codes in front of them.
_KEPT = ("avg_pool", "max_pool", "clamp", "pad")
_REDUCED = ("global_avg_pool", "mean", "sum")


class OpenVinoWriter(Writer):
    """Writes what OpenVINO would run otherwise in a form that it runs as it is written."""

    def __init__(self, program: IntProgram) -> None:
        super().__init__(program)
        self.convolved = {op.output for op in program.ops if op.kind == "conv"}

    def write(self, op: Op) -> None:
        """Append the nodes of one operation."""
        integer = op.execution is Execution.INTEGER
        if op.kind == "expand" and BATCH in op.attrs["shape"]:
            self._repeat(op)
        elif integer and (apart := self._kept_apart(op)):
            inputs = [
                self.dequantized(name, self._apart(name) if name in apart else None)
                for name in op.inputs
            ]
            self.quantize(op, onnx_ops.EMITTERS[op.kind](self, op, inputs), op.output)
        elif op.kind == "conv" and _pads_whole_windows(self.program, op):
            self._write_padded(op, integer)
        elif op.kind == "conv" and integer and _multiplies_channels(self.program, op):
            self._write_repeated(op, self.name_of(op.inputs[0]), op.attrs["padding"])
        elif op.kind in _REDUCED and len(self._shape(op.inputs[0])) == 3:
            self._write_reduced(op, integer)
        elif op.kind == "pad" and op.attrs["mode"] == "circular":
            self._rename(self._gathered(op), op.output)
        elif op.kind in _KEPT and op.execution is Execution.FLOAT:
            value = self._kept_unless_minimum(self._unfused_inputs(op)[0], op)
            self._rename(onnx_ops.EMITTERS[op.kind](self, op, [value]), op.output)
        elif op.kind == "lookup" and op.attrs["function"] == "clamp":
            value = self._kept_unless_minimum(self.dequantized(op.inputs[0]), op)
            self.quantize(op, onnx_ops.EMITTERS["clamp"](self, op, [value]), op.output)
        else:
            super().write(op)

    def _write_padded(self, op: Op, integer: bool) -> None:
        """The padding in a node of its own: on codes, or on real values out of reach of fusion."""
        name, *others = op.inputs
        if not integer:
            source = self._kept(self.name_of(name), op)
            zero = self.constant("float32/zero", np.array(0, np.float32))
        else:
            source, grid = self.name_of(name), self.program.grid(name)
            zero = self.constant(f"{name}/zero", grid.zero_point.astype(grid.qtype.storage))
        value = padded(self, op, source, zero)
        unpadded = ((0, 0),) * len(op.attrs["padding"])
        bare = replace(op, attrs={**op.attrs, "padding": unpadded})
        if integer and _multiplies_channels(self.program, op):
            self._write_repeated(op, value, unpadded)
        elif integer:
            inputs = [self.dequantized(name, value), *map(self.dequantized, others)]
            self.quantize(op, onnx_ops.EMITTERS["conv"](self, bare, inputs), op.output)
        else:
            inputs = [self._kept(value, op), *map(self.name_of, others)]
            self._rename(onnx_ops.EMITTERS["conv"](self, bare, inputs), op.output)

    def _write_repeated(self, op: Op, codes: str, padding: Margins) -> None:
        """A convolution with a channel of its own for each output."""
        name, *others = op.inputs
        groups, outputs = op.attrs["groups"], self._shape(op.output)[1]
        channels = np.repeat(np.arange(groups), outputs // groups)
        index = self.constant(f"{op.output}/channels", channels)
        repeated = self.node("Gather", [codes, index], f"{op.output}/repeated", axis=1)
        alone = replace(op, attrs={**op.attrs, "groups": outputs, "padding": padding})
        inputs = [self.dequantized(name, repeated), *map(self.dequantized, others)]
        self.quantize(op, onnx_ops.EMITTERS["conv"](self, alone, inputs), op.output)

    def _write_reduced(self, op: Op, integer: bool) -> None:
        """With one more axis, of one place."""
        first, *others = self._shape(op.inputs[0])
        at = 2 if op.kind == "global_avg_pool" else 1
        shape = (first, *others[: at - 1], 1, *others[at - 1 :])
        wide = onnx_ops.reshaped(self, self.name_of(op.inputs[0]), shape, f"{op.output}/wide")
        axes = tuple(axis + (axis >= at) for axis in op.attrs.get("axes", ()))
        wider = replace(op, attrs={**op.attrs, "axes": axes})
        value = self.dequantized(op.inputs[0], wide) if integer else wide
        value = onnx_ops.EMITTERS[op.kind](self, wider, [value])
        if integer:
            self.quantize(op, value, f"{op.output}/codes")
            value = f"{op.output}/codes"
        onnx_ops.reshaped(self, value, self._shape(op.output), op.output)
        self.annotate(op.output)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.program.tensor(name).shape

    def _gathered(self, op: Op) -> str:
        """Circular padding, which OpenVINO does not read, as the places of its values."""
        (value,) = self._unfused_inputs(op)
        shape = self._shape(op.inputs[0])
        for axis, margins in enumerate(op.attrs["padding"]):
            if margins != (0, 0):
                places = np.pad(np.arange(shape[axis]), margins, mode="wrap")
                index = self.constant(f"{op.output}/places{axis}", places)
                value = self.node("Gather", [value, index], f"{op.output}/axis{axis}", axis=axis)
        return value

    def _kept_unless_minimum(self, value: str, op: Op) -> str:
        """The same, except in front of a minimum, which stays in float without a maximum alone."""
        is_minimum = op.attrs.get("low", 0) is None
        return value if is_minimum else self._kept(value, op)

    def _kept(self, value: str, op: Op) -> str:
        """Real values, out of reach of fusion."""
        lowest = self.constant("float32/lowest", np.array(-np.inf, np.float32))
        return self.node("Max", [value, lowest], f"{op.output}/kept{len(self.nodes)}")

    def _kept_apart(self, op: Op) -> set[str]:
        """The inputs of an operation on codes that it must not be fused with or moved to."""
        if op.kind == "add":
            return self.convolved & set(op.inputs)
        computed = {name for name in op.inputs if self.program.tensor(name).data is None}
        return computed if op.kind == "mul" and computed != set(op.inputs) else set()

    def _apart(self, name: str) -> str:
        """The same codes, out of reach."""
        return self.node("Max", [name, self._zero()], f"{name}/apart{len(self.nodes)}")

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
            expanded = self._for_each_sample(expanded, op)
        self._rename(expanded, out)

    def _for_each_sample(self, value: str, op: Op) -> str:
        """Codes, numbers or truth values, with one zero a sample that changes none of them."""
        tensor, zeros = self.program.tensor(op.output), self._zeros(op.attrs["shape"], op.output)
        if tensor.grid is not None:
            return self.node("Max", [value, zeros], f"{op.output}/all")
        to = int(ir.DataType.from_numpy(np.dtype(tensor.dtype)))
        zeros = self.node("Cast", [zeros], f"{op.output}/of_type", to=to)
        kind = "Or" if tensor.dtype == "bool" else "Add"
        return self.node(kind, [value, zeros], f"{op.output}/all")

    def _zeros(self, shape: tuple[int, ...], out: str) -> str:
        """The code 0 for each sample, of so many axes."""
        flat = self.node("Flatten", [self.program.inputs[0]], f"{out}/flat", axis=1)
        ends = [self.constant(f"index/{i}", np.asarray([i], np.int64)) for i in (0, 1, 1)]
        first = self.node("Slice", [flat, *ends], f"{out}/first")
        codes = self.node("Cast", [first], f"{out}/samples", to=int(TensorProto.UINT8))
        sizes = self.constant(f"{out}/axes", np.asarray([-1 if s == BATCH else 1 for s in shape]))
        column = self.node("Reshape", [codes, sizes], f"{out}/column")
        return self.node("Min", [column, self._zero()], f"{out}/zeros")


def _pads_whole_windows(program: IntProgram, op: Op) -> bool:
    """Whether a window of a convolution may lie in the padding as a whole."""
    kernel = program.tensor(op.inputs[1]).shape[2:]
    axes = zip(op.attrs["padding"], kernel, op.attrs["dilation"], strict=True)
    return any(max(margins) > (size - 1) * step for margins, size, step in axes)


def _multiplies_channels(program: IntProgram, op: Op) -> bool:
    """Whether a convolution makes several outputs of each channel alone.

    One channel is wrong only where windows with a stride fit once into the last axis.
    """
    outputs, inputs, *_ = program.tensor(op.inputs[1]).shape
    once = program.tensor(op.output).shape[-1] == 1 and op.attrs["stride"][-1] > 1
    return inputs == 1 and outputs > op.attrs["groups"] and (op.attrs["groups"] > 1 or once)
