"""An integer program as a full-integer ``.tflite`` file, for one sample, channels last.

Every integer operation is one operator on int8 tensors with the program's own grids; weights are
int8 with a scale for each output channel, biases int32. The file is written with the schema's own
classes, no converter comes between. A tensor of codes has its site's name; the metadata
``halfstep.layout`` says how its axes are permuted against the program's.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from halfstep.core.execution import Execution
from halfstep.core.grid import Affine
from halfstep.errors import ExportError
from halfstep.export.litert_activation import bounds, fused_activation
from halfstep.export.litert_layout import find_layouts
from halfstep.export.litert_ops import EMITTERS
from halfstep.files import write_atomically
from halfstep.formats.layout import LAYOUT, keeps_order
from halfstep.formats.tflite import LiteRTFile
from halfstep.program.bounds import WEIGHTED
from halfstep.program.ir import IntProgram, Op

IO = ("float", "int8")
# An operator that follows another: its kind, its other inputs, its options and their values.
Step = tuple[str, list[int], str, dict[str, Any]]
_MAKES_BOUNDS = frozenset({"conv", "linear", "add", "sub", "mul"})


def export(program: IntProgram, path: str | Path, io: Literal["float", "int8"] = "float") -> None:
    """Write ``program`` to ``path``; complete or not at all.

    Args:
        program: of a target of LiteRT.
        path: the file.
        io: what goes in and comes out: real values, quantized by the file's first operator and
            dequantized by its last, or the codes themselves.

    Raises:
        ExportError: an operation without a form in the format, a value of ``io`` that is unknown
            or impossible here, or a file that cannot be written.
        RuntimeUnavailableError: ai-edge-litert or flatbuffers is missing.
    """
    if io not in IO:
        raise ExportError(f"io={io!r}: asked for one of {', '.join(map(repr, IO))}")
    writer = Writer(program, codes_outside=io == "int8")
    for op in program.ops:
        writer.write(op)
    write_atomically(Path(path), writer.to_bytes())


class Writer:
    """The tensors and operators of one file while it grows.

    Attributes:
        program: what is written.
        layouts: where the values of its tensors are in the file.
        file: the flatbuffer.
    """

    def __init__(self, program: IntProgram, codes_outside: bool) -> None:
        self.program = program
        self.layouts = find_layouts(program)
        self.file = LiteRTFile()
        self._own: dict[str, int] = {}
        self._others: dict[tuple[str, tuple[int, ...], tuple[int, ...]], int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes, bytes], int] = {}
        self._weights: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._pending: list[Step] = []
        self._edges = _outer_edges(program) if codes_outside else {}
        self.inputs = {name: self._edges.get(name, name) for name in program.inputs}
        for name in self.inputs.values():
            self._own[name] = self._named(name)

    def write(self, op: Op) -> None:
        """Append the operators of one operation."""
        if op.output in self._own or op.output in self._edges:
            return  # at an edge where codes go in and out
        if op.kind not in EMITTERS:
            raise ExportError(f"{op.output}: {op.kind} has no form in LiteRT")
        if op.kind in WEIGHTED and self.program.tensor(op.inputs[1]).data is None:
            raise ExportError(
                f"{op.output}: its weight is computed, and a {op.kind} of LiteRT has a constant one"
            )
        EMITTERS[op.kind](self, op)
        self._finish(op)

    def to_bytes(self) -> bytes:
        """The finished file."""
        outputs = {name: self._own[self._edges.get(name, name)] for name in self.program.outputs}
        self.file.sign({name: self._own[own] for name, own in self.inputs.items()}, outputs)
        self.file.note(LAYOUT, json.dumps(self._description()))
        return self.file.to_bytes()

    def _description(self) -> dict[str, Any]:
        formulas = {op.inputs[0]: op.formula for op in self.program.ops if op.kind == "quantize"}
        return {
            "schema": 1,
            "quantize": {name: formulas[name] for name in self.inputs if name in self._edges},
            "tensors": {name: vars(self.layouts[name]) for name in self._own},
        }

    # What emitters read --------------------------------------------------------------------------

    def real(self, op: Op) -> bool:
        """Whether an operation computes on real values."""
        return self.program.tensor(op.output).grid is None

    def own(self, name: str) -> int:
        """A value in its own layout."""
        return self._own[name] if name in self._own else self.plain(name)

    def plain(self, name: str) -> int:
        """A value in the program's order of axes."""
        layout = self.layouts[name]
        return self._as(name, layout.shape, tuple(range(len(layout.shape))))

    def aligned(self, name: str, like: str) -> int:
        """A value as an operand of an operation whose result lies as ``like`` does."""
        layout, out = self.layouts[name], self.layouts[like]
        missing = len(out.shape) - len(layout.shape)
        if out.flattened or out.perm == tuple(range(len(out.shape))):
            return self._as(name, layout.shape or (1,), tuple(range(len(layout.shape) or 1)))
        return self._as(name, (1,) * missing + layout.shape, out.perm)

    def _as(self, name: str, shape: tuple[int, ...], perm: tuple[int, ...]) -> int:
        """A value in a shape, permuted; a constant is written so, another one is transposed."""
        layout, tensor = self.layouts[name], self.program.tensor(name)
        if name in self._own and (layout.split, layout.perm) == (shape, perm):
            return self._own[name]
        key = (name, shape, perm)
        if key in self._others:
            return self._others[key]
        file_shape = tuple(shape[axis] for axis in perm)
        if tensor.data is not None:
            data = tensor.data.reshape(shape).transpose(perm)
            made = self.file.tensor(name, file_shape, tensor.dtype, tensor.grid, data)
        else:
            made = self.file.tensor(f"{name}/{perm}", file_shape, tensor.dtype, tensor.grid)
            self._move(name, shape, perm, made)
        self._others[key] = made
        return made

    def _move(self, name: str, shape: tuple[int, ...], perm: tuple[int, ...], made: int) -> None:
        """Operators from the own layout of a value to another one."""
        layout = self.layouts[name]
        inverse = [int(axis) for axis in np.argsort(layout.perm)]
        if shape == layout.shape and not layout.flattened:
            self.transposed(self._own[name], layout.file_shape, [inverse[axis] for axis in perm],
                            made)  # fmt: skip
            return
        plain = self.plain(name)
        viewed = plain
        if shape != layout.shape:
            viewed = self.temporary(f"{name}/viewed", shape, name)
            self.reshaped(plain, shape, viewed)
        self.transposed(viewed, shape, perm, made)

    # What emitters make --------------------------------------------------------------------------

    def begin(self, op: Op, *, in_order: bool = False) -> int:
        """The tensor that the operators of ``op`` make, in its own layout or the program's order.

        What it takes to get from there to the named tensor follows when ``op`` is written.
        """
        name, layout = op.output, self.layouts[op.output]
        steps: list[Step] = []
        in_order = in_order and layout.perm != tuple(range(len(layout.shape)))
        if in_order:
            steps.append(self._permutation(layout.shape, layout.perm))
        if self.activation(op) is None:
            grid = self.program.grid(name)
            for kind, code in zip(("MAXIMUM", "MINIMUM"), bounds(self.program, op), strict=True):
                end = self.constant(np.asarray([code], grid.qtype.storage), grid)
                steps.append((kind, [end], "MaximumMinimumOptions", {}))
        self._pending = steps
        if not steps:
            self._own[name] = self._named(name)
            return self._own[name]
        return self.temporary(f"{name}/0", layout.shape if in_order else layout.file_shape, name)

    def _finish(self, op: Op) -> None:
        last = len(self.file.graph.operators) - 1
        source = self.file.graph.operators[last].outputs[0]
        for index, (kind, others, options, attrs) in enumerate(self._pending, start=1):
            if index == len(self._pending):
                out = self._own[op.output] = self._named(op.output)
            else:
                shape = self.layouts[op.output].file_shape
                out = self.temporary(f"{op.output}/{index}", shape, op.output)
            self.file.operator(kind, [source, *others], out, options, **attrs)
            source = out

    def activation(self, op: Op) -> str | None:
        """The fused activation of an operation, or ``None`` if bounds have to follow it."""
        found = fused_activation(self.program, op)
        return found if found == "NONE" or op.kind in _MAKES_BOUNDS else None

    def fused(self, op: Op) -> int:
        """The fused activation as the format has it."""
        types = self.file.schema.ActivationFunctionType
        found: int = getattr(types, self.activation(op) or "NONE")
        return found

    def temporary(self, name: str, shape: tuple[int, ...], like: str) -> int:
        """A tensor of the type and grid of ``like``."""
        tensor = self.program.tensor(like)
        return self.file.tensor(name, shape, tensor.dtype, tensor.grid)

    def constant(self, values: NDArray[Any], grid: Affine | None = None) -> int:
        """A constant, written once."""
        meaning = b"" if grid is None else grid.scale.tobytes() + grid.zero_point.tobytes()
        key = (values.dtype.name, values.shape, values.tobytes(), meaning)
        if key not in self._constants:
            name = f"constant/{len(self._constants)}"
            self._constants[key] = self.file.tensor(
                name, values.shape, values.dtype.name, grid, values
            )
        return self._constants[key]

    def weight(self, name: str, dtype: str, grid: Affine | None, values: NDArray[Any]) -> int:
        """A constant with a name, written once for all operations that share it."""
        key = (name, values.shape, values.tobytes())
        if key not in self._weights:
            self._weights[key] = self.file.tensor(name, values.shape, dtype, grid, values)
        return self._weights[key]

    def reshaped(self, source: int, shape: tuple[int, ...], out: int) -> None:
        """``out`` is ``source`` in another shape."""
        sizes = self.constant(np.asarray(shape, np.int32))
        self.file.operator("RESHAPE", [source, sizes], out, "ReshapeOptions", newShape=list(shape))

    def transposed(self, source: int, shape: tuple[int, ...], perm: Any, out: int) -> None:
        """``out`` is ``source`` with its axes permuted."""
        kind, others, options, attrs = self._permutation(shape, perm)
        self.file.operator(kind, [source, *others], out, options, **attrs)

    def _permutation(self, shape: tuple[int, ...], perm: Any) -> Step:
        """A transpose, or a reshape where nothing but axes of size 1 moves."""
        perm = tuple(int(axis) for axis in perm)
        if keeps_order(shape, perm):
            sizes = [shape[axis] for axis in perm]
            numbers = self.constant(np.asarray(sizes, np.int32))
            return "RESHAPE", [numbers], "ReshapeOptions", {"newShape": sizes}
        axes = self.constant(np.asarray(perm, np.int32))
        return "TRANSPOSE", [axes], "TransposeOptions", {}

    def _named(self, name: str) -> int:
        tensor = self.program.tensor(name)
        return self.file.tensor(name, self.layouts[name].file_shape, tensor.dtype, tensor.grid)


def _outer_edges(program: IntProgram) -> dict[str, str]:
    """The codes that stand for each input and output outside of the file.

    Raises:
        ExportError: one has no codes, or something else needs its real values.
    """
    edges = {}
    for name in program.inputs:
        readers = [op for op in program.ops if name in op.inputs]
        if program.tensor(name).dtype != "float32":
            continue
        if [op.kind for op in readers] != ["quantize"]:
            raise ExportError(
                f"{name}: asked for io='int8', but a float operation reads it; export with "
                "io='float'"
            )
        edges[name] = readers[0].output
    for name in program.outputs:
        maker = next(op for op in program.ops if op.output == name)
        if maker.execution is not Execution.EDGE:
            raise ExportError(
                f"{name}: asked for io='int8', but a float operation makes it; export with "
                "io='float'"
            )
        edges[name] = maker.inputs[0]
    return edges
