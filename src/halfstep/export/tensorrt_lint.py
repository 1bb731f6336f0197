"""Whether an ONNX file has the form that TensorRT's explicit quantization prescribes.

Read from the file alone, whoever wrote it. The rules are those of the chapter on quantized types
in TensorRT's documentation; this page has them as far as a file can show them:

| rule                    | what it finds                                                         |
|-------------------------|-----------------------------------------------------------------------|
| type                    | codes that are not int8, such as uint8 or int32 biases                |
| zero_point              | a zero point other than 0                                             |
| activation_scale        | an activation with a scale for each channel                           |
| weight_axis             | a weight with scales that are not those of its output channels        |
| codes_computed          | an operation on codes: a quantize not followed by a dequantize        |
| half_quantized          | a weight that is dequantized for an input that is not                 |
| addend                  | an addition with one input dequantized and the other computed in      |
|                         | float, except to the scores of a softmax                              |
| before_activation       | a quantize between a convolution and its activation or normalization  |
| unread                  | a quantize or dequantize whose result nothing reads                   |
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_AFTER_A_SUM = ("Relu", "Clip", "BatchNormalization")
# What leaves values as they are, between a weight's dequantize and its reader.
_MOVES = ("Transpose", "Identity")
# What may stand between the scores of attention and their softmax, all in float.
_BEFORE_SOFTMAX = ("Add", "Mul", "Reshape", "Transpose", "Where")


@dataclass(frozen=True)
class Finding:
    """One violation.

    Attributes:
        rule: its name in the table of this module.
        node: the name of the node, or of its output if it has none.
        found: what was found there, and what is asked for.
    """

    rule: str
    node: str
    found: str

    def __str__(self) -> str:
        return f"{self.node}: {self.rule}: {self.found}"


def lint(model: onnx.ModelProto) -> tuple[Finding, ...]:
    """Everything in ``model`` that breaks a rule, in the order of its nodes; empty if none does."""
    graph = _Graph(model.graph)
    return tuple(finding for node in model.graph.node for finding in _findings(graph, node))


class _Graph:
    """A graph with its nodes by what they make, and by what they read."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}
        self.constants: Mapping[str, TensorProto] = {t.name: t for t in graph.initializer}

    def maker(self, name: str) -> NodeProto | None:
        return self.makers.get(name)

    def kind(self, name: str) -> str:
        """What makes a value: the kind of node, "constant" or "input"."""
        node = self.maker(name)
        if node is not None:
            return str(node.op_type)
        return "constant" if name in self.constants else "input"

    def values(self, name: str) -> NDArray[Any] | None:
        constant = self.constants.get(name)
        return None if constant is None else numpy_helper.to_array(constant)

    def is_constant(self, name: str) -> bool:
        """Whether a value is computed from constants alone."""
        waiting, seen = [name], {name}
        while waiting:
            value = waiting.pop()
            node = self.maker(value)
            if node is None and value not in self.constants:
                return False
            found = set() if node is None else set(node.input) - seen
            seen |= found
            waiting += found
        return True

    def are_scores(self, name: str) -> bool:
        """Whether a softmax alone reads a value: what is added to its scores is a mask."""
        waiting = [name]
        while waiting:
            value = waiting.pop()
            readers = self.readers.get(value, [])
            if not readers or value in self.outputs:
                return False
            if any(node.op_type not in ("Softmax", *_BEFORE_SOFTMAX) for node in readers):
                return False
            waiting += [node.output[0] for node in readers if node.op_type != "Softmax"]
        return True

    def dequantize_of(self, name: str) -> tuple[NodeProto, list[int] | None] | None:
        """The dequantize behind a value, and the permutation of axes in between."""
        perm: list[int] | None = None
        node = self.maker(name)
        while node is not None and node.op_type in _MOVES:
            perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), perm)
            node = self.maker(node.input[0])
        return (node, perm) if node is not None and node.op_type == DEQUANTIZE else None


def _findings(graph: _Graph, node: NodeProto) -> Iterator[Finding]:
    name = node.name or node.output[0]
    if node.op_type in (QUANTIZE, DEQUANTIZE):
        yield from (Finding(rule, name, found) for rule, found in _codes(graph, node))
    if node.op_type == QUANTIZE:
        yield from (Finding(rule, name, found) for rule, found in _quantize(graph, node))
    if node.op_type in _WEIGHTED:
        yield from (Finding(rule, name, found) for rule, found in _weighted(graph, node))
    if node.op_type == "Add":
        yield from (Finding(rule, name, found) for rule, found in _addition(graph, node))
    if node.op_type in _AFTER_A_SUM:
        yield from (Finding(rule, name, found) for rule, found in _activation(graph, node))


def _codes(graph: _Graph, node: NodeProto) -> Iterator[tuple[str, str]]:
    kind = _type_of_codes(graph, node)
    if kind != TensorProto.INT8:
        yield "type", f"codes of type {TensorProto.DataType.Name(kind)}, not INT8"
    zero = graph.values(node.input[2]) if len(node.input) > 2 else None
    if zero is not None and zero.any():
        yield "zero_point", "a zero point other than 0"
    scale = graph.values(node.input[1])
    if scale is not None and scale.size > 1 and not graph.is_constant(node.input[0]):
        yield "activation_scale", f"an activation with {scale.size} scales, not one"
    if node.output[0] not in graph.readers and node.output[0] not in graph.outputs:
        yield "unread", "nothing reads the result"


def _type_of_codes(graph: _Graph, node: NodeProto) -> int:
    if len(node.input) > 2 and node.input[2] in graph.constants:
        return graph.constants[node.input[2]].data_type
    if node.op_type == DEQUANTIZE and node.input[0] in graph.constants:
        return graph.constants[node.input[0]].data_type
    if node.op_type == DEQUANTIZE and graph.kind(node.input[0]) == QUANTIZE:
        return _type_of_codes(graph, graph.makers[node.input[0]])
    return int(TensorProto.UINT8)  # what ONNX says of a quantize without a zero point


def _quantize(graph: _Graph, node: NodeProto) -> Iterator[tuple[str, str]]:
    others = {n.op_type for n in graph.readers.get(node.output[0], ())} - {DEQUANTIZE}
    if others:
        yield "codes_computed", f"{', '.join(sorted(others))} reads codes, not their real values"
    if node.output[0] in graph.outputs:
        yield "codes_computed", "codes leave the model, not their real values"


def _weighted(graph: _Graph, node: NodeProto) -> Iterator[tuple[str, str]]:
    weight = graph.dequantize_of(node.input[1])
    if weight is None or not graph.is_constant(node.input[1]):
        return
    if graph.dequantize_of(node.input[0]) is None:
        found = f"its weight is dequantized, its input comes from {graph.kind(node.input[0])}"
        yield "half_quantized", found
    dequantize, perm = weight
    scale = graph.values(dequantize.input[1])
    if scale is None or scale.size == 1:
        return
    axis = _attribute(dequantize, "axis", 1)
    seen = axis if perm is None else perm.index(axis)
    wanted = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}.get(
        node.op_type, 0 if _attribute(node, "transB", 0) else 1
    )
    if seen != wanted:
        yield "weight_axis", f"scales along axis {seen} of the weight, not {wanted}"


def _addition(graph: _Graph, node: NodeProto) -> Iterator[tuple[str, str]]:
    dequantized = [graph.dequantize_of(name) is not None for name in node.input]
    constant = [graph.is_constant(name) for name in node.input]
    if sum(dequantized) == 1 and not any(constant) and not graph.are_scores(node.output[0]):
        other = graph.kind(node.input[dequantized.index(False)])
        if other not in _WEIGHTED:  # whose sum the addition is fused with
            yield "addend", f"one input is dequantized, the other comes from {other}"


def _activation(graph: _Graph, node: NodeProto) -> Iterator[tuple[str, str]]:
    dequantize = graph.dequantize_of(node.input[0])
    quantize = None if dequantize is None else graph.maker(dequantize[0].input[0])
    if quantize is not None and graph.kind(quantize.input[0]) in _WEIGHTED:
        source = graph.kind(quantize.input[0])
        yield "before_activation", f"a quantize stands between {source} and {node.op_type}"


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
