"""TensorRT's form: every rule finds its specimen, and what Halfstep writes breaks none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import halfstep as hs
from halfstep.errors import PlanError
from halfstep.export.tensorrt_lint import lint
from tests.models import Call, Residual
from tests.pipeline import Inputs, Lowered, arrays, lowered, normal_inputs

F = np.float32


class Inverted(nn.Module):
    """Expand, depthwise, project, with ReLU6 and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(4, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project = nn.Conv2d(12, 4, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Any) -> Any:
        inside = nn.functional.relu6(self.expand(x))
        return self.pool(x + self.project(nn.functional.relu6(self.depthwise(inside))))


class Block(nn.Module):
    """Pre-norm attention and a perceptron."""

    def __init__(self, dim: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Any) -> Any:
        n, tokens, dim = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, tokens, dim))
        return x + self.down(nn.functional.gelu(self.up(x)))


MODELS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "residual": (Residual, normal_inputs((3, 6, 6))),
    "inverted": (Inverted, normal_inputs((4, 6, 6))),
    "transformer": (Block, normal_inputs((5, 8))),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 2, stride=2),
        normal_inputs((4, 3, 3)),
    ),
    "copies": (
        lambda: Call(
            lambda conv, x: conv(nn.functional.pad(x, (1, 1, 1, 1))).flatten(1), nn.Conv2d(3, 4, 3)
        ),
        normal_inputs((3, 5, 5)),
    ),
}


def made(name: str) -> Lowered:
    module, inputs = MODELS[name]
    return lowered(module(), inputs, target="tensorrt")


def unfused(path: Path, lowered_: Lowered) -> tuple[dict[str, Any], list[Any]]:
    """The sites and outputs of the file in ONNX Runtime without optimizations, and the inputs."""
    model = onnx.load(path)
    for site in lowered_.program.sites:
        model.graph.output.append(onnx.ValueInfoProto(name=site))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = arrays(lowered_.inputs(6, 60))
    named = dict(zip(lowered_.program.inputs, inputs, strict=True))
    names = [value.name for value in model.graph.output]
    return dict(zip(names, session.run(None, named), strict=True)), inputs


@pytest.mark.parametrize("name", MODELS)
def test_the_file_has_the_form_and_means_the_program(name: str, tmp_path: Path) -> None:
    """Codes are at most one step from the engine's: real values are added in another order."""
    model = made(name)
    path = model.export(tmp_path)
    assert lint(onnx.load(path)) == ()
    found, inputs = unfused(path, model)
    anchors = {site: found[site] for site in model.program.sites}
    run = hs.Engine(model.program).run(inputs, keep=model.program.sites, anchors=anchors)
    for site, codes in run.kept.items():
        if model.program.tensors[site].grid is None:
            np.testing.assert_allclose(found[site], codes, rtol=1e-5, atol=1e-6, err_msg=site)
            continue
        distance = np.abs(found[site].astype(int) - codes.astype(int))
        assert distance.max() <= 1, site
        assert np.mean(distance > 0) < 0.02, site


def test_activations_are_int8_with_zero_point_0_and_biases_float(tmp_path: Path) -> None:
    model = made("residual")
    graph = onnx.load(model.export(tmp_path)).graph
    codes = {t.name: t for t in graph.initializer if t.data_type != TensorProto.FLOAT}
    zeros = [numpy_helper.to_array(codes[n]) for n in codes if n.endswith("zero_point")]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert not [t.name for t in graph.initializer if t.data_type == TensorProto.INT32]
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Relu") == 2, "activations stand in front of the quantize"


def test_other_activations_are_refused() -> None:
    model = made("residual")
    with pytest.raises(PlanError, match="accepts activations with zero point 0 only"):
        model.plan.edit("add:out", symmetric=False)
    with pytest.raises(PlanError, match="accepts activations of 8 to 8 bits"):
        model.plan.edit("add:out", qtype="int4")


def test_there_is_no_runtime_to_compare_with(tmp_path: Path) -> None:
    model = made("residual")
    with pytest.raises(PlanError, match="target 'tensorrt' has no runtime"):
        model.prove(tmp_path)


# The linter


class Graph:
    """A convolution as TensorRT wants it; ``change`` breaks one thing."""

    def __init__(self) -> None:
        self.constants = {
            "s": F(0.1), "z": np.int8(0), "sw": np.full(4, F(0.1)), "zw": np.zeros(4, np.int8),
            "w": np.ones((4, 3, 1, 1), np.int8), "b": np.zeros(4, F),
        }  # fmt: skip
        self.nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["qx"], "qx"),
            helper.make_node("DequantizeLinear", ["qx", "s", "z"], ["dx"], "dx"),
            helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["dw"], "dw", axis=0),
            helper.make_node("Conv", ["dx", "dw", "b"], ["c"], "conv"),
            helper.make_node("Relu", ["c"], ["r"], "relu"),
            helper.make_node("QuantizeLinear", ["r", "s", "z"], ["qr"], "qr"),
            helper.make_node("DequantizeLinear", ["qr", "s", "z"], ["dr"], "dr"),
            helper.make_node("Sigmoid", ["dr"], ["y"], "y"),
        ]

    def node(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.nodes if node.name == name)

    def model(self) -> onnx.ModelProto:
        ends = [
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)] for name in ("x", "y")
        ]
        constants = [numpy_helper.from_array(np.asarray(v), n) for n, v in self.constants.items()]
        return helper.make_model(helper.make_graph(self.nodes, "g", *ends, constants))


def uint8(graph: Graph) -> None:
    graph.constants["z"] = np.uint8(0)


def no_zero_point(graph: Graph) -> None:
    del graph.node("qx").input[2]


def zero_point(graph: Graph) -> None:
    graph.constants["z"] = np.int8(3)


def channels(graph: Graph) -> None:
    graph.constants |= {"s3": np.full(3, F(0.1)), "z3": np.zeros(3, np.int8)}
    for name in ("qx", "dx"):
        graph.node(name).input[1:] = ["s3", "z3"]


def other_axis(graph: Graph) -> None:
    graph.constants |= {"sw": np.full(3, F(0.1)), "zw": np.zeros(3, np.int8)}
    graph.node("dw").attribute[0].i = 1


def on_codes(graph: Graph) -> None:
    graph.nodes.insert(1, helper.make_node("Transpose", ["qx"], ["t"], "t", perm=[0, 1, 3, 2]))
    graph.node("dx").input[0] = "t"


def float_input(graph: Graph) -> None:
    graph.node("conv").input[0] = "x"


def int32_bias(graph: Graph) -> None:
    graph.constants |= {"b32": np.zeros(4, np.int32), "z32": np.zeros(4, np.int32)}
    bias = helper.make_node("DequantizeLinear", ["b32", "sw", "z32"], ["db"], "db", axis=0)
    graph.nodes.insert(0, bias)
    graph.node("conv").input[2] = "db"


def before_relu(graph: Graph) -> None:
    for name, ends in {"q2": ("c", "q2"), "d2": ("q2", "d2")}.items():
        kind = "QuantizeLinear" if name == "q2" else "DequantizeLinear"
        node = helper.make_node(kind, [ends[0], "s", "z"], [ends[1]], name)
        graph.nodes.insert(4 if name == "q2" else 5, node)
    graph.node("relu").input[0] = "d2"


def half_addition(graph: Graph) -> None:
    graph.nodes[-1:] = [
        helper.make_node("Sigmoid", ["x"], ["sx"], "sx"),
        helper.make_node("Add", ["dr", "sx"], ["y"], "add"),
    ]


def dangling(graph: Graph) -> None:
    graph.nodes.append(helper.make_node("DequantizeLinear", ["qx", "s", "z"], ["d9"], "d9"))


BROKEN: dict[Callable[[Graph], None], tuple[str, str]] = {
    uint8: ("type", "qx: type: codes of type UINT8, not INT8"),
    no_zero_point: ("type", "qx: type: codes of type UINT8, not INT8"),
    zero_point: ("zero_point", "qx: zero_point: a zero point other than 0"),
    channels: ("activation_scale", "qx: activation_scale: an activation with 3 scales, not one"),
    other_axis: ("weight_axis", "conv: weight_axis: scales along axis 1 of the weight, not 0"),
    on_codes: ("codes_computed", "qx: codes_computed: Transpose reads codes, not their real"),
    float_input: ("half_quantized", "its weight is dequantized, its input comes from input"),
    int32_bias: ("type", "db: type: codes of type INT32, not INT8"),
    before_relu: ("before_activation", "relu: before_activation: a quantize stands between Conv"),
    half_addition: ("addend", "add: addend: one input is dequantized, the other comes from Sigm"),
    dangling: ("unread", "d9: unread: nothing reads the result"),
}


def test_the_unbroken_graph_passes() -> None:
    assert lint(Graph().model()) == ()


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_every_rule_rejects_its_specimen(change: Callable[[Graph], None]) -> None:
    graph = Graph()
    change(graph)
    rule, text = BROKEN[change]
    findings = lint(graph.model())
    assert any(text in str(finding) for finding in findings), [str(f) for f in findings]
    assert {finding.rule for finding in findings} <= {rule, "unread"}


@pytest.mark.parametrize("others", [[], ["y"], ["add"]], ids=["softmax", "beside", "in front"])
def test_a_mask_is_added_to_scores_in_float(others: list[str]) -> None:
    """And to nothing else: where another operation reads the sum, both should be dequantized."""
    graph = Graph()
    half_addition(graph)
    graph.node("add").output[0] = "scores"
    graph.nodes += [
        helper.make_node("Mul", ["scores", "s"], ["scaled"], "mul"),
        helper.make_node("Softmax", ["scaled"], ["y"], "softmax"),
    ]
    for name in others:
        read = "scaled" if name == "y" else "scores"
        graph.nodes.append(helper.make_node("Relu", [read], [f"other_{name}"], f"other_{name}"))
    assert {finding.rule for finding in lint(graph.model())} == ({"addend"} if others else set())


def test_files_for_onnx_runtime_are_not_in_the_form(tmp_path: Path) -> None:
    path = lowered(*(Residual(), normal_inputs((3, 6, 6)))).export(tmp_path)
    rules = {finding.rule for finding in lint(onnx.load(path))}
    assert {"type", "zero_point"} <= rules


def test_a_deep_network_is_linted(tmp_path: Path) -> None:
    """Deeper than the interpreter's stack."""
    made = lowered(
        nn.Sequential(*[nn.Linear(2, 2) for _ in range(400)]),
        normal_inputs((2,)),
        target="tensorrt",
    )
    hs.export(made.program, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").exists()
