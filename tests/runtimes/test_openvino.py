"""What OpenVINO computes: the formulas of the target, code for code, and what it does unseen.

Measured on a CPU with AVX512-VNNI and without AMX; other CPUs have other kernels.
"""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import halfstep as hs
from halfstep.core import fake_quantize
from halfstep.core.execution import BATCH, Execution
from halfstep.core.requant import ACCUMULATOR
from halfstep.errors import ExportError, PlanError
from halfstep.export import onnx_openvino, onnx_qdq
from halfstep.program.ir import IntProgram, Op, Tensor
from halfstep.runtimes.openvino import OpenVinoModel
from halfstep.verdict import Status
from tests.broken import fake_quantize as broken
from tests.models import Call, CallTwo, Residual
from tests.pipeline import Lowered, lowered, normal_inputs

pytest.importorskip("openvino", reason="needs the extra 'openvino'")


def cpu_flags() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(
        platform.machine() != "x86_64"
        or "avx512_vnni" not in cpu_flags()
        or "amx_int8" in cpu_flags(),
        reason="measured on x86-64 with AVX512-VNNI and without AMX",
    ),
]
Array = NDArray[Any]
F = np.float32


class File:
    """A model of one operation between dequantize and quantize, written and opened."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "one.onnx"
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []

    def constant(self, name: str, values: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def codes(self, name: str, scale: Any, zero: Any, shape: Sequence[Any] | None = None) -> str:
        """Dequantized codes: of an input of this shape, or of a constant made before."""
        if shape is not None:
            self.inputs.append(helper.make_tensor_value_info(name, TensorProto.UINT8, shape))
        ends = [self.constant(f"{name}_s", np.asarray(scale, F)), self.constant(f"{name}_z", zero)]
        axis = {"axis": 0} if np.ndim(scale) else {}
        real = f"{name}_real"
        self.nodes.append(helper.make_node("DequantizeLinear", [name, *ends], [real], **axis))
        return real

    def open(self, real: str, scale: Any, zero: int) -> OpenVinoModel:
        """The file, with ``real`` quantized as its output "y"."""
        ends = [self.constant("y_s", F(scale)), self.constant("y_z", np.uint8(zero))]
        self.nodes.append(helper.make_node("QuantizeLinear", [real, *ends], ["y"], "y"))
        out = helper.make_tensor_value_info("y", TensorProto.UINT8, None)
        graph = helper.make_graph(self.nodes, "one", self.inputs, [out], self.constants)
        opset = [helper.make_opsetid("", 21)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), self.path)
        return OpenVinoModel(self.path, threads=1)


def clamp(codes: Array) -> Array:
    return np.clip(codes, 0, 255)


# Formulas


def test_quantize_is_a_line(tmp_path: Path) -> None:
    wrong = dict.fromkeys(broken.FAKE_QUANTIZE, 0)
    for index, (scale, zero) in enumerate([(0.1, 3), (0.0123, 128), (0.37, 0), (0.0071, 255)]):
        halves = ((np.arange(-5, 261) + 0.5 - zero) * float(F(scale))).astype(F)
        near = [np.nextafter(halves, F(end)) for end in (np.inf, -np.inf)]
        real = np.concatenate([halves, *near])[None]
        file = File(tmp_path)
        file.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, real.size])]
        found = file.open("x", scale, zero).run([real])["y"]
        expected = fake_quantize.fake_quantize(real, F(scale), zero)
        np.testing.assert_array_equal(found, clamp(expected), f"{index}: {scale}, {zero}")
        for name, formula in broken.FAKE_QUANTIZE.items():
            wrong[name] += int(np.sum(found != clamp(formula(real, F(scale), zero))))
    assert all(wrong.values()), wrong


def convolution(
    folder: Path, seed: int, *, bias: bool, per_channel: bool, zero_point: int
) -> tuple[Array, Array, tuple[Any, ...]]:
    """The codes of a 1x1 convolution, its accumulators, and what requantizes them."""
    rng = np.random.default_rng(seed)
    n_out, n_in = 64, 16
    weight = rng.integers(-127, 128, (n_out, n_in, 1, 1)).astype(np.int8)
    sx, sw = F(np.exp(rng.uniform(-5, -2))), np.exp(rng.uniform(-6, -3, n_out)).astype(F)
    sw = sw if per_channel else F(0.0123)
    zx, sy = int(rng.integers(0, 256)), F(sx * np.exp(rng.uniform(-1, 2)))
    if not per_channel and seed % 2:
        sy = F(sx * sw * 64)  # ties
    addend = rng.integers(-5000, 5000, n_out).astype(np.int32) if bias else None
    x = rng.integers(0, 256, (4, n_in, 64, 64)).astype(np.uint8)
    file = File(folder)
    names = [file.codes("x", sx, np.uint8(zx), [None, n_in, None, None])]
    names.append(file.codes(file.constant("w", weight), sw, np.zeros_like(sw, np.int8)))
    if addend is not None:
        scale = (sx * sw).astype(F)
        zeros = np.zeros_like(scale, np.int32)
        names.append(file.codes(file.constant("b", addend), scale, zeros))
    file.nodes.append(helper.make_node("Conv", names, ["real"], "conv"))
    model = file.open("real", sy, zero_point)
    kernels = {layer.kernel for layer in model.layers if layer.kind == "Convolution"}
    assert kernels == {"brgconv_avx512_1x1_I8"}
    found = model.run([x])["y"]
    steps = (x.astype(F) - zx).transpose(0, 2, 3, 1)
    acc = steps @ weight[:, :, 0, 0].T.astype(F)
    real = None if addend is None else addend.astype(F) * (sx * sw)
    return found.transpose(0, 2, 3, 1), acc, (real, sx, sw, sy, zero_point)


@pytest.mark.parametrize("per_channel", [True, False], ids=["channels", "tensor"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "alone"])
def test_convolution(tmp_path: Path, bias: bool, per_channel: bool) -> None:
    wrong = 0
    for seed, zero_point in enumerate((0, 107, 238, 33, 171, 90, 201)):
        options = {"bias": bias, "per_channel": per_channel, "zero_point": zero_point}
        found, acc, (real, *rest) = convolution(tmp_path, seed, **options)
        expected = (
            fake_quantize.sum_and_bias(acc, real, *rest)
            if bias
            else fake_quantize.sum_alone(acc, *rest)
        )
        np.testing.assert_array_equal(found, clamp(expected))
        codes = 0 if real is None else np.rint(real / (rest[0] * rest[1]))
        wrong += int(np.sum(found != clamp(ACCUMULATOR["float"](acc + codes, *rest))))
    assert wrong, "the formula of ONNX Runtime is another one on this data"


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "alone"])
def test_linear(tmp_path: Path, bias: bool) -> None:
    wrong = 0
    for seed, zero_point in enumerate((0, 107, 238, 33, 171, 90)):
        rng = np.random.default_rng(seed)
        weight = rng.integers(-127, 128, (64, 64)).astype(np.int8)
        sx, sw = F(np.exp(rng.uniform(-5, -2))), np.exp(rng.uniform(-6, -3, 64)).astype(F)
        zx, sy = int(rng.integers(0, 256)), F(4 * sx * np.exp(rng.uniform(-1, 2)))
        x = rng.integers(0, 256, (6000, 64)).astype(np.uint8)
        file = File(tmp_path)
        names = [file.codes("x", sx, np.uint8(zx), [None, 64])]
        names.append(file.codes(file.constant("w", weight), sw, np.zeros(64, np.int8)))
        addend = rng.integers(-5000, 5000, 64).astype(np.int32) * bias
        if bias:
            b = file.constant("b", addend)
            names.append(file.codes(b, sx * sw, np.zeros(64, np.int32)))
        file.nodes.append(helper.make_node("Gemm", names, ["real"], "gemm", transB=1))
        model = file.open("real", sy, zero_point)
        kinds = {layer.kind for layer in model.layers if layer.kernel.endswith("_I8")}
        assert "FullyConnected" in kinds
        found = model.run([x])["y"]
        acc = (x.astype(F) - zx) @ weight.T.astype(F)
        rest = sx, sw, sy, zero_point
        expected = (
            fake_quantize.folded_sum_and_bias(acc, addend.astype(F) * (sx * sw), *rest)
            if bias
            else fake_quantize.folded_sum(acc, zx * weight.sum(1, dtype=np.int64).astype(F), *rest)
        )
        np.testing.assert_array_equal(found, clamp(expected))
        wrong += int(np.sum(found != clamp(ACCUMULATOR["float"](acc + addend, *rest))))
    assert wrong, "the formula of ONNX Runtime is another one on this data"


def test_addition(tmp_path: Path) -> None:
    """All pairs of codes, for scales with ties and without."""
    every = np.arange(256, dtype=np.uint8)
    a, b = (codes[None] for codes in np.meshgrid(every, every, indexing="ij"))
    rng = np.random.default_rng(0)
    wrong = 0
    for seed in range(6):
        sa, sb = (F(v) for v in np.exp(rng.uniform(-5, -1, 2))) if seed % 2 else (F(0.25), F(0.25))
        sy = F(0.5) if sa == sb else F((sa + sb) * 0.8)
        za, zb, zy = (int(z) for z in rng.integers(0, 256, 3))
        file = File(tmp_path)
        names = [
            file.codes(name, s, np.uint8(z), [None, 256, 256])
            for name, s, z in (("a", sa, za), ("b", sb, zb))
        ]
        file.nodes.append(helper.make_node("Add", names, ["real"], "add"))
        found = file.open("real", sy, zy).run([a, b])["y"]
        scales = sa, sb, sy, za, zb, zy
        expected = fake_quantize.add_rescaled_first(a, b, *scales)
        np.testing.assert_array_equal(found, clamp(expected), f"{scales}")
        other = fake_quantize.add_rescaled_first(b, a, sb, sa, sy, zb, za, zy)
        wrong += int(np.sum(found != clamp(other)))
    assert wrong, "the second operand rescaled is another formula on this data"


# Through the exporter

EXACT: dict[str, Callable[[], nn.Module]] = {
    "first layer": lambda: nn.Conv2d(3, 16, 7, stride=2, padding=3),
    "3x3": lambda: nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()),
    "grouped": lambda: nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=4)),
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
    ),
    "pool": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2)),
}


def made(module: nn.Module, *shapes: tuple[int, ...]) -> Lowered:
    return lowered(module, normal_inputs(*shapes), target="openvino")


@pytest.mark.parametrize("name", EXACT)
def test_convolutions_are_exact(name: str, tmp_path: Path) -> None:
    verdict = made(EXACT[name](), (3, 24, 24)).prove(tmp_path)
    assert verdict.status is Status.EXACT, str(verdict)
    assert verdict.integer_in_runtime == 1


BOUNDED: dict[str, tuple[nn.Module, list[tuple[int, ...]]]] = {
    "linear": (nn.Linear(32, 64), [(32,)]),
    "linear of three axes": (nn.Linear(32, 16), [(5, 32)]),
    "product": (CallTwo(lambda a, b: a @ b / 4), [(4, 6, 8), (4, 8, 5)]),
    "mul": (CallTwo(lambda a, b: a * b), [(8, 6, 6), (8, 6, 6)]),
    "sub": (CallTwo(lambda a, b: a - b), [(8, 6, 6), (8, 6, 6)]),
    "mean": (Call(lambda x: x.mean((2, 3))), [(8, 7, 7)]),
    "average": (nn.AvgPool2d(2), [(8, 8, 8)]),
    "sigmoid": (nn.Sigmoid(), [(64,)]),
    "tanh": (nn.Tanh(), [(64,)]),
    "gelu": (nn.GELU(), [(64,)]),
    "hardswish": (nn.Hardswish(), [(64,)]),
    "hardsigmoid": (nn.Hardsigmoid(), [(64,)]),
    "leaky relu": (nn.LeakyReLU(0.1), [(64,)]),
    "softmax": (nn.Softmax(-1), [(6, 32)]),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_other_operations_are_within_the_bound(name: str, tmp_path: Path) -> None:
    module, shapes = BOUNDED[name]
    verdict = made(module, *shapes).prove(tmp_path)
    assert verdict.status is not Status.FAILED, str(verdict)
    assert verdict.bound == 1


def test_a_padded_average_stays_float() -> None:
    model = made(nn.AvgPool2d(3, 2, 1), (4, 9, 9))
    assert "over padding" in model.plan.floats["avg_pool"]


class Shortcut(nn.Module):
    """A convolution on both sides of an addition, and one on one side of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.last = (
            nn.Conv2d(n, 16, 3, padding=1) for n in (3, 16, 16, 16)
        )

    def forward(self, x: Any) -> Any:
        x = self.stem(x).relu()
        x = (self.left(x) + self.right(x)).relu()
        return x + self.last(x)


@pytest.fixture(scope="module")
def shortcut() -> Lowered:
    return made(Shortcut(), (3, 16, 16))


def test_residual_networks_are_exact_as_they_run(shortcut: Lowered, tmp_path: Path) -> None:
    verdict = shortcut.prove(tmp_path)
    assert verdict.status is Status.EXACT, str(verdict)
    assert [(site.site, site.mismatches) for site in verdict.end_to_end] == [("output", 0)]
    assert verdict.integer_in_runtime == 1


def test_a_file_for_onnx_runtime_runs_otherwise_when_nobody_looks(
    shortcut: Lowered, tmp_path: Path
) -> None:
    """Every site is equal, and the outputs of the file alone are not: sums are not rounded."""
    path = tmp_path / "model.onnx"
    onnx_qdq.export(shortcut.program, path)
    verdict = hs.verify(shortcut.program, path, shortcut.samples())
    assert (verdict.status, verdict.mismatches) == (Status.BOUNDED, 0)
    assert verdict.end_to_end[0].mismatches > 0.01 * verdict.end_to_end[0].compared


class Repeated(nn.Module):
    """A convolution, and constants that are repeated for each sample and along other axes."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.last = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 4, 1)
        self.first, self.row = (nn.Parameter(torch.zeros(1, 16, 1, n)) for n in (5, 1))

    def forward(self, x: Any) -> Any:
        n, x = x.shape[0], self.patches(x)
        rows = self.first.expand(n, -1, -1, -1), self.row.expand(n, -1, 2, 5)
        return self.last(torch.cat([*rows, x, x[..., :1].expand(n, 16, 1, 5)], 2))


@pytest.fixture(scope="module")
def repeated() -> Lowered:
    return made(Repeated(), (3, 4, 20))


def test_a_constant_for_each_sample_leaves_biases_alone(repeated: Lowered, tmp_path: Path) -> None:
    verdict = repeated.prove(tmp_path)
    assert verdict.status is Status.EXACT, str(verdict)
    assert [(site.site, site.mismatches) for site in verdict.end_to_end] == [("output", 0)]


class RepeatedInFloat(nn.Module):
    """A convolution, and a constant that is repeated for each sample in front of a float kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.token, self.norm = nn.Parameter(torch.zeros(1, 8)), nn.LayerNorm(8)

    def forward(self, x: Any) -> Any:
        y = self.last(self.first(x).relu()).mean((2, 3))
        token = self.token.expand(x.shape[0], -1)
        return y + self.norm(torch.cat([token[:, None], self.norm(y)[:, None]], 1)).mean(1)


def test_a_real_constant_for_each_sample_leaves_biases_alone(tmp_path: Path) -> None:
    model = made(RepeatedInFloat(), (3, 8, 8))
    (op,) = [op for op in model.program.ops if op.kind == "expand"]
    assert op.execution is Execution.FLOAT
    verdict = model.prove(tmp_path)
    assert verdict.status is Status.EXACT, str(verdict)
    path = tmp_path / "shape.onnx"
    onnx_qdq.export(model.program, path)
    assert hs.verify(model.program, path, model.samples()).status is Status.FAILED


TYPES = {"float32": 0.5, "int64": -7, "bool": True}


@pytest.mark.parametrize("dtype", TYPES)
def test_constants_of_every_type_are_repeated(dtype: str, tmp_path: Path) -> None:
    rows = np.asarray([[TYPES[dtype], 0]], dtype)
    tensors = [
        Tensor("x", (BATCH, 3)),
        Tensor("c", rows.shape, None, dtype, rows),
        Tensor("y", (BATCH, 2), None, dtype),
    ]
    op = Op("expand", ("c",), "y", Execution.FLOAT, {"shape": (BATCH, 2)})
    program = IntProgram("openvino", ("x",), ("y",), {t.name: t for t in tensors}, (op,))
    onnx_openvino.export(program, tmp_path / "model.onnx")
    x = np.asarray([[np.inf, 1, 2], [np.nan, 0, 0], [-1e9, 3, 300]], F)
    found = OpenVinoModel(tmp_path / "model.onnx").run([x])["y"]
    np.testing.assert_array_equal(found, np.repeat(rows, 3, axis=0))


def test_a_file_for_onnx_runtime_gives_all_channels_one_bias(
    repeated: Lowered, tmp_path: Path
) -> None:
    """Only because a constant elsewhere asks for the number of samples."""
    path = tmp_path / "model.onnx"
    onnx_qdq.export(repeated.program, path)
    verdict = hs.verify(repeated.program, path, repeated.samples())
    assert verdict.status is Status.FAILED
    assert [site.site for site in verdict.comparable if site.mismatches] == ["patches:out"]


# Refusals


def test_int8_activations_are_refused() -> None:
    with pytest.raises(PlanError, match="int8 activations with a zero point run in float32"):
        made(Residual(), (3, 6, 6)).plan.edit("x:in", qtype="int8")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    with pytest.raises(ExportError, match="not a complete ONNX file"):
        OpenVinoModel(path)


def test_a_site_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = made(Residual(), (3, 6, 6)).export(tmp_path)
    with pytest.raises(ExportError, match="it has no tensor nowhere:out"):
        OpenVinoModel(path, ["nowhere:out"])


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = OpenVinoModel(made(Residual(), (3, 6, 6)).export(tmp_path))
    with pytest.raises(ExportError, match="OpenVINO refuses the inputs"):
        model.run([np.zeros((1, 5, 6, 6), F)])


def test_a_tampered_bias_fails(tmp_path: Path) -> None:
    model = made(Residual(), (3, 6, 6))
    path = model.export(tmp_path)
    file = onnx.load(path)
    bias = next(t for t in file.graph.initializer if t.name == "stem:bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 90000, bias.name))
    onnx.save(file, path)
    verdict = hs.verify(model.program, path, model.samples())
    assert verdict.status is Status.FAILED
    assert verdict.cause.startswith("stem:out: conv: ")
