"""The flatbuffer of a ``.tflite`` file: tensors, operators, signature and metadata.

It knows nothing of programs: names, shapes, grids and operators go in, bytes come out.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core.execution import BATCH
from halfstep.core.grid import Affine
from halfstep.errors import RuntimeUnavailableError

IDENTIFIER = b"TFL3"
SIGNATURE = "serving_default"
# The version of an operator says which types it takes. Those that are not here take int8 since
# their second version, or, without int8, exist in their first one alone.
_VERSIONS = {
    "BATCH_MATMUL": 2,
    "BITCAST": 1,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "TRANSPOSE_CONV": 3,
    "HARD_SWISH": 1,
    "RESHAPE": 1,
    **dict.fromkeys(
        ("ABS", "LOG", "CAST", "SQUARED_DIFFERENCE", "RSQRT", "SQRT", "EXP", "NEG", "DIV", "PRELU"),
        1,
    ),
    **dict.fromkeys(("SUM", "RESIZE_BILINEAR", "SELECT_V2", "EQUAL"), 1),
    **dict.fromkeys(("LOGICAL_AND", "LOGICAL_NOT", "RELU", "RELU6"), 1),
}
_VERSION = 2
# Operators that write over what they read, where LiteRT believes that nobody else reads it, and
# those that only give it another form.
_OVERWRITING = frozenset({"ADD", "SUB", "MUL", "DIV", "SQUARED_DIFFERENCE", "SOFTMAX"})
_SHARING = frozenset({"RESHAPE", "BITCAST"})


def schema() -> ModuleType:
    """The classes of the file format.

    Raises:
        RuntimeUnavailableError: the package is missing.
    """
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise RuntimeUnavailableError(
            "a .tflite file needs ai-edge-litert and flatbuffers: pip install 'halfstep[litert]'"
        ) from error
    del flatbuffers  # imported by name, so that a missing one is found here
    found: ModuleType = schema_py_generated
    return found


class LiteRTFile:
    """One subgraph while it grows."""

    def __init__(self) -> None:
        self.schema = schema()
        self.model = self.schema.ModelT()
        self.model.version = 3
        self.model.description = "halfstep"
        self.model.buffers = [self.schema.BufferT()]  # the first one means "no data"
        self.model.operatorCodes, self.model.metadata = [], []
        self.graph = self.schema.SubGraphT()
        self.graph.name = "main"
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]
        self._codes: dict[str, int] = {}
        self._reshaped: dict[int, int] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        grid: Affine | None = None,
        data: NDArray[Any] | None = None,
    ) -> int:
        """Append a tensor; return its index. ``BATCH`` sizes are 1 until the runtime is told."""
        tensor = self.schema.TensorT()
        tensor.name = name
        tensor.shape = [1 if size == BATCH else size for size in shape]
        if BATCH in shape:
            tensor.shapeSignature = list(shape)
        tensor.hasRank = True
        tensor.type = self._type(dtype)
        tensor.buffer = 0 if data is None else self._buffer(np.asarray(data, dtype))
        if grid is not None:
            tensor.quantization = self._quantization(grid)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(
        self, kind: str, inputs: Sequence[int], out: int, options: str = "", **attrs: Any
    ) -> None:
        """Append an operator of the kind, such as ``"CONV_2D"``.

        Args:
            kind: its name in the format.
            inputs: indices of tensors, -1 for an optional one that is left out.
            out: the index of the tensor that it makes.
            options: the name of its options, such as ``"Conv2DOptions"``; "" if it has none.
            **attrs: the options.
        """
        if kind == "RESHAPE":
            # A reshape may share the memory of what it reads. Where one reads another, LiteRT frees
            # that memory behind the last reader of the second, though the first has others to come.
            inputs = [self._reshaped.get(inputs[0], inputs[0]), *inputs[1:]]
            self._reshaped[out] = inputs[0]
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._code(kind)
        operator.inputs, operator.outputs = list(inputs), [out]
        if options:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self.schema, f"{options}T")()
            for name, value in attrs.items():
                setattr(operator.builtinOptions, name, value)
        self.graph.operators.append(operator)

    def note(self, name: str, text: str) -> None:
        """Append metadata."""
        entry = self.schema.MetadataT()
        entry.name, entry.buffer = name, self._buffer(np.frombuffer(text.encode(), np.uint8))
        self.model.metadata.append(entry)

    def sign(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """Say what goes in and comes out, by the names that the program has for it."""
        self.graph.inputs, self.graph.outputs = list(inputs.values()), list(outputs.values())
        signature = self.schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
        signature.inputs, signature.outputs = self._named(inputs), self._named(outputs)
        self.model.signatureDefs = [signature]

    def to_bytes(self) -> bytes:
        """The finished file; it cannot grow any more."""
        self._keep_what_is_read_again()
        return packed(self.model)

    def _keep_what_is_read_again(self) -> None:
        """Copy what LiteRT would write over although there are other readers.

        It counts the readers of the memory's first tensor and of the last one. A value that has its
        memory from another and gives it to a third one has its readers forgotten.
        """
        kinds = {index: kind for kind, index in self._codes.items()}
        made = {o.outputs[0]: kinds[o.opcodeIndex] for o in self.graph.operators}
        readers: dict[int, list[Any]] = {}
        for operator in self.graph.operators:
            for index in operator.inputs:
                readers.setdefault(index, []).append(operator)

        def is_written_over(index: int) -> bool:
            if len(readers.get(index, ())) != 1:
                return False
            (out,) = readers[index][0].outputs
            return made[out] in _OVERWRITING or (made[out] in _SHARING and is_written_over(out))

        for operator in list(self.graph.operators):
            source, (out,) = operator.inputs[0], operator.outputs
            shared = made.get(source) in _SHARING | _OVERWRITING and len(readers[source]) > 1
            if made[out] in _SHARING and shared and is_written_over(out):
                self._copy_in_front(operator)

    def _copy_in_front(self, operator: Any) -> None:
        source = self.graph.tensors[operator.inputs[0]]
        copied = copy(source)
        copied.name = f"{source.name}/copied{len(self.graph.tensors)}"
        self.graph.tensors.append(copied)
        index = len(self.graph.tensors) - 1
        self.operator("CONCATENATION", operator.inputs[:1], index, "ConcatenationOptions", axis=0)
        self.graph.operators.insert(
            self.graph.operators.index(operator), self.graph.operators.pop()
        )
        operator.inputs = [index, *operator.inputs[1:]]

    def _named(self, tensors: Mapping[str, int]) -> list[Any]:
        entries = []
        for name, index in tensors.items():
            entry = self.schema.TensorMapT()
            entry.name, entry.tensorIndex = name, index
            entries.append(entry)
        return entries

    def _type(self, dtype: str) -> int:
        found: int = getattr(self.schema.TensorType, dtype.upper())
        return found

    def _buffer(self, data: NDArray[Any]) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def _quantization(self, grid: Affine) -> Any:
        found = self.schema.QuantizationParametersT()
        found.scale = grid.scale.reshape(-1)
        found.zeroPoint = grid.zero_point.reshape(-1).astype(np.int64)
        found.quantizedDimension = grid.axis or 0
        return found

    def _code(self, kind: str) -> int:
        if kind not in self._codes:
            code = self.schema.OperatorCodeT()
            code.builtinCode = getattr(self.schema.BuiltinOperator, kind)
            # Readers of the first format look at 8 bits, where this means "look further".
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = _VERSIONS.get(kind, _VERSION)
            self._codes[kind] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(code)
        return self._codes[kind]


def packed(model: Any) -> bytes:
    """A model of the schema's object classes as bytes."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())
