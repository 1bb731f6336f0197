"""What ONNX Runtime's integer kernels compute, code by code: the formulas of core, and no others.

Each op is a model of its own, quantized inputs and output around a float op, which the runtime
fuses into its integer kernel: the fused op is asserted, so that a float fallback cannot pass.
Each test also runs formulas that are nearly right, and must find them wrong on the same data.
"""

import itertools
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from halfstep.core.elementwise import ADD, MUL, QUANTIZE, fma
from halfstep.core.pooling import MEAN
from halfstep.core.requant import ACCUMULATOR
from tests.broken import core as broken

Array = NDArray[Any]
F = np.float32
EVERY_CODE = np.arange(256, dtype=np.uint8)
A, B = (grid.ravel().astype(np.uint8) for grid in np.meshgrid(EVERY_CODE, EVERY_CODE))

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="measured on x86-64 only"),
]


# One-op models


class OneOp:
    """A float op between a dequantize of each input and a quantize of its output."""

    def __init__(self, op: str, scale: float, zero_point: int, **attributes: Any) -> None:
        self.op, self.attributes = op, attributes
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.names: list[str] = []
        self.output = (scale, zero_point)

    def constant(self, name: str, values: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def input(self, shape: Any, scale: float, zero_point: int) -> "OneOp":
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.UINT8, shape))
        return self._dequantize(name, F(scale), np.uint8(zero_point))

    def weight(self, codes: Array, scale: Any, axis: int | None = None) -> "OneOp":
        """A constant, symmetric; its zero points are written, as a Gemm without does not fuse."""
        name = self.constant(f"w{len(self.constants)}", codes)
        return self._dequantize(name, np.asarray(scale, F), np.zeros_like(scale, codes.dtype), axis)

    def _dequantize(self, name: str, scale: Any, zero: Any, axis: int | None = None) -> "OneOp":
        ends = self.constant(f"{name}_scale", scale), self.constant(f"{name}_zero", zero)
        axes = {} if axis is None else {"axis": axis}
        self.nodes.append(
            helper.make_node("DequantizeLinear", [name, *ends], [f"{name}_real"], **axes)
        )
        self.names.append(f"{name}_real")
        return self

    def model(self) -> bytes:
        scale, zero_point = self.output
        ends = [self.constant("y_scale", F(scale)), self.constant("y_zero", np.uint8(zero_point))]
        nodes = [
            *self.nodes,
            helper.make_node(self.op, self.names, ["real"], **self.attributes),
            helper.make_node("QuantizeLinear", ["real", *ends], ["y"]),
        ]
        result = helper.make_tensor_value_info("y", TensorProto.UINT8, None)
        graph = helper.make_graph(nodes, "one_op", self.inputs, [result], self.constants)
        opset = [helper.make_opsetid("", 21)]
        return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Array]:
    """Runs a model whose only op must become the given kernel, data movement aside."""

    def run(one_op: OneOp, kernel: str, *inputs: Array) -> Array:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        session = onnxruntime.InferenceSession(
            one_op.model(), options, providers=["CPUExecutionProvider"]
        )
        graph = onnx.load(options.optimized_model_filepath).graph
        kernels = [node.op_type for node in graph.node if node.op_type != "Transpose"]
        assert kernels == [kernel]
        named = {f"x{i}": values for i, values in enumerate(inputs)}
        return session.run(None, named)[0]

    return run


def clamp(codes: Array) -> Array:
    return np.clip(codes, 0, 255)


def assert_same(found: Array, codes: Array, what: str) -> None:
    np.testing.assert_array_equal(found, clamp(codes), what)


class Tally:
    """How many codes a formula that is nearly right gets wrong: it must be some."""

    def __init__(self) -> None:
        self.wrong: dict[str, int] = {}

    def add(self, name: str, found: Array, codes: Array) -> None:
        self.wrong[name] = self.wrong.get(name, 0) + int(np.sum(found != clamp(codes)))

    def assert_each_is_wrong(self) -> None:
        assert self.wrong
        assert all(self.wrong.values()), self.wrong


def generic_scales(seed: int, n: int) -> list[tuple[np.float32, ...]]:
    return [
        tuple(row) for row in np.exp(np.random.default_rng(seed).uniform(-5, 0, (n, 3)).astype(F))
    ]


# Real to code


def test_quantize_divides_and_rounds_half_to_even(tmp_path: Path) -> None:
    tally = Tally()
    rng = np.random.default_rng(0)
    for scale, zero in ((0.1, 3), (0.0123, 128), (1, 0), (0.25, 255), (7e-7, 77), (3, 1)):
        halves = (np.arange(-600, 600) / 2 * float(F(scale))).astype(F)
        near = [np.nextafter(halves, F(np.inf)), np.nextafter(halves, F(-np.inf))]
        real = np.concatenate([halves, *near, (rng.normal(0, 90, 2000) * scale).astype(F)])
        ends = [
            numpy_helper.from_array(v, n)
            for v, n in ((np.asarray(F(scale)), "s"), (np.asarray(np.uint8(zero)), "z"))
        ]
        graph = helper.make_graph(
            [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])],
            "quantize",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
            [helper.make_tensor_value_info("y", TensorProto.UINT8, [None])],
            ends,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        found = session.run(None, {"x": real})[0]
        assert_same(found, QUANTIZE["division"](real, F(scale), zero), f"quantize {scale}, {zero}")
        for name in ("reciprocal", "half_away"):
            tally.add(name, found, QUANTIZE[name](real, F(scale), zero))
        tally.add("offset inside", found, np.rint(real / F(scale) + F(zero)))
    tally.assert_each_is_wrong()


# Accumulator to code


def accumulator_grids(seed: int, reduced: int = 1) -> list[Any]:
    """Scales, odd zero points; in every other one the multiplier is a power of two: ties.

    ``reduced`` numbers are summed: about as many times as wide is the output.
    """
    rng = np.random.default_rng(seed)
    grids = []
    for i, (sx, sw, _) in enumerate(generic_scales(seed, 16)):
        ratio = 2.0 ** rng.integers(1, 6) if i % 2 else rng.uniform(2, 50)
        ratio *= 2 ** (reduced.bit_length() - 1)
        grids.append((sx, sw, F(ratio) * (sx * sw), *(int(z) | 1 for z in rng.integers(0, 256, 2))))
    return grids


def compare_accumulators(
    found: Array, acc: Array, sx: Any, sw: Any, sy: Any, zy: int, tally: Tally
) -> None:
    expected = ACCUMULATOR["float"](acc, sx, sw, sy, zy)
    assert_same(found, expected, f"scales {sx}, {sw}, {sy}, zero point {zy}")
    for name in ("double_rounding", "single_rounding"):
        tally.add(name, found, ACCUMULATOR[name](acc, sx, sw, sy, zy))
    for name in ("half_away", "offset_inside", "other_order", "exact_product"):
        tally.add(name, found, broken.ACCUMULATOR_SPECIMENS[name][1](acc, sx, sw, sy, zy))


def weights_of(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Up to 63, so that no pair of products saturates on a processor without VNNI."""
    return rng.integers(-63, 64, shape).astype(np.int8)


def test_conv_of_every_code(run: Callable[..., Array]) -> None:
    tally, rng = Tally(), np.random.default_rng(0)
    for sx, sw, sy, zx, zy in accumulator_grids(0):
        weight, bias = weights_of(rng, (16, 1, 1, 1)), rng.integers(-2000, 2000, 16).astype("int32")
        x = EVERY_CODE.reshape(1, 1, 16, 16)
        op = OneOp("Conv", sy, zy).input([1, 1, 16, 16], sx, zx)
        found = run(op.weight(weight, sw).weight(bias, sx * sw), "QLinearConv", x)
        acc = (x.astype(int) - zx) * weight.reshape(16, 1, 1) + bias.reshape(16, 1, 1)
        compare_accumulators(found, acc, sx, sw, sy, zy, tally)
    tally.assert_each_is_wrong()


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_conv_3x3_per_channel(run: Callable[..., Array], groups: int) -> None:
    tally, rng = Tally(), np.random.default_rng(groups)
    for sx, sw, sy, zx, zy in accumulator_grids(groups, reduced=4):
        scales = (sw * 2.0 ** -rng.integers(0, 4, 8)).astype(F)
        scales[::2] *= rng.uniform(0.3, 1, 4).astype(F)
        weight = weights_of(rng, (8, 8 // groups, 3, 3))
        bias = rng.integers(-900, 900, 8).astype("int32")
        x = rng.integers(0, 256, (4, 8, 14, 14)).astype(np.uint8)
        op = OneOp("Conv", sy, zy, group=groups, pads=[1, 1, 1, 1]).input([4, 8, 14, 14], sx, zx)
        op = op.weight(weight, scales, 0).weight(bias, sx * scales, 0)
        found = run(op, "QLinearConv", x)
        padded = np.pad(x.astype(int) - zx, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
        windows = windows.reshape(4, groups, 8 // groups, 14, 14, 3, 3)
        grouped = weight.astype(int).reshape(groups, 8 // groups, 8 // groups, 3, 3)
        acc = np.einsum("ngchwij,gocij->ngohw", windows, grouped).reshape(4, 8, 14, 14)
        acc += bias.reshape(8, 1, 1)
        compare_accumulators(found, acc, sx, scales.reshape(8, 1, 1), sy, zy, tally)
    tally.assert_each_is_wrong()


def matmul_data(rng: np.random.Generator, zx: int) -> tuple[Array, Array, Array]:
    weight = weights_of(rng, (12, 16))
    x = rng.integers(0, 256, (1000, 12)).astype(np.uint8)
    return x, weight, (x.astype(int) - zx) @ weight.astype(int)


def test_matmul(run: Callable[..., Array]) -> None:
    tally, rng = Tally(), np.random.default_rng(0)
    for sx, sw, sy, zx, zy in accumulator_grids(10, reduced=12):
        x, weight, acc = matmul_data(rng, zx)
        op = OneOp("MatMul", sy, zy).input(["n", 12], sx, zx).weight(weight, sw)
        compare_accumulators(run(op, "QLinearMatMul", x), acc, sx, sw, sy, zy, tally)
    tally.assert_each_is_wrong()


def test_gemm_with_bias_per_channel(run: Callable[..., Array]) -> None:
    tally, rng = Tally(), np.random.default_rng(1)
    for sx, sw, sy, zx, zy in accumulator_grids(11, reduced=12):
        x, weight, acc = matmul_data(rng, zx)
        bias = rng.integers(-3000, 3000, 16).astype("int32")
        scales = (sw * 2.0 ** -rng.integers(0, 3, 16)).astype(F)
        op = OneOp("Gemm", sy, zy).input(["n", 12], sx, zx)
        op = op.weight(weight, scales, 1).weight(bias, sx * scales, 0)
        compare_accumulators(run(op, "QGemm", x), acc + bias, sx, scales, sy, zy, tally)
    tally.assert_each_is_wrong()


# Codes and codes to code

PAIRS = [
    ((1, 1, 2), (127, 127, 127)),
    ((0.1, 0.1, 0.1), (3, 250, 77)),
    ((0.5, 0.25, 1), (1, 2, 3)),
    ((1, 1, 4), (3, 3, 1)),
    ((2, 1, 4), (255, 0, 13)),
    ((0.013, 0.9, 0.5), (100, 101, 33)),
    ((0.0004, 0.7, 0.9), (17, 128, 129)),
    *((scales, (7 * i, 255 - 9 * i, 31 * i)) for i, scales in enumerate(generic_scales(3, 6))),
]


def operands(pair: Any, a: Any, b: Any) -> OneOp:
    (sa, sb, sy), (za, zb, zy) = pair
    return OneOp("Add", sy, zy).input(a, sa, za).input(b, sb, zb)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_add_of_every_pair(run: Callable[..., Array], pair: Any) -> None:
    scales, zeros = [F(s) for s in pair[0]], pair[1]
    found = run(operands(pair, [65536], [65536]), "QLinearAdd", A, B)
    assert_same(found, ADD["fused"](A, B, *scales, *zeros), f"add {pair}")


def test_add_is_none_of_the_other_formulas(run: Callable[..., Array]) -> None:
    tally = Tally()
    for pair in PAIRS:
        scales, zeros = [F(s) for s in pair[0]], pair[1]
        found = run(operands(pair, [65536], [65536]), "QLinearAdd", A, B)
        for name in ("twenty_bits", "double_rounding", "dequantized"):
            tally.add(name, found, ADD[name](A, B, *scales, *zeros))
        for name in ("offset_outside", "unfused", "other_operand_first"):
            codes = broken.ADD_SPECIMENS[name][1](A, B, *scales, *zeros)
            tally.add(name, found, codes)
    tally.assert_each_is_wrong()


def test_add_of_a_row_adds_the_operand_that_repeats_along_it_first(
    run: Callable[..., Array],
) -> None:
    """Where the first operand is constant along the last axis, the operands change places."""
    tally = Tally()
    row, column = EVERY_CODE.reshape(1, 256), EVERY_CODE.reshape(256, 1)
    full = np.broadcast_to(row, (256, 256)).copy()
    for pair in PAIRS:
        (sa, sb, sy), (za, zb, zy) = (tuple(map(F, pair[0])), pair[1])
        swapped = (sb, sa, sy, zb, za, zy)
        for b in (row, full):
            found = run(operands(pair, [256, 1], list(b.shape)), "QLinearAdd", column, b)
            a_full, b_full = np.broadcast_to(column, (256, 256)).copy(), full
            assert_same(found, ADD["fused"](b_full, a_full, *swapped), f"column + row {pair}")
            tally.add("in order", found, ADD["fused"](a_full, b_full, sa, sb, sy, za, zb, zy))
        for a, b in ((full, column), (full.T.copy(), row), (row, full.T.copy())):
            found = run(operands(pair, list(a.shape), list(b.shape)), "QLinearAdd", a, b)
            a_full, b_full = (np.broadcast_to(v, (256, 256)).copy() for v in (a, b))
            expected = ADD["fused"](a_full, b_full, sa, sb, sy, za, zb, zy)
            assert_same(found, expected, f"in order {pair}, {a.shape} + {b.shape}")
    tally.assert_each_is_wrong()


def test_mul_of_every_pair(run: Callable[..., Array]) -> None:
    tally = Tally()
    for i, (scales, zeros) in enumerate(PAIRS):
        sa, sb = F(scales[0]), F(scales[1])
        sy = F(2.0 ** (3 + i % 5)) * (sa * sb) if i % 3 else F(37) * (sa * sb)
        za, zb, zy = zeros
        op = OneOp("Mul", sy, zy).input([65536], sa, za).input([65536], sb, zb)
        found = run(op, "QLinearMul", A, B)
        codes = MUL["offset_inside"](A, B, sa, sb, sy, *zeros)
        assert_same(found, codes, f"mul {sa}, {sb}, {sy}, {zeros}")
        for name in ("float", "double_rounding", "dequantized"):
            tally.add(name, found, MUL[name](A, B, sa, sb, sy, *zeros))
    tally.assert_each_is_wrong()


def test_concat_of_equal_grids_copies_codes(run: Callable[..., Array]) -> None:
    a, b = A[:512].reshape(2, 256), A[::127][:514].reshape(2, 257)
    op = OneOp("Concat", 0.037, 11, axis=1)
    op = op.input([2, 256], 0.037, 11).input([2, 257], 0.037, 11)
    np.testing.assert_array_equal(run(op, "QLinearConcat", a, b), np.concatenate([a, b], axis=1))


# Sums to code


def test_global_average_pool(run: Callable[..., Array]) -> None:
    tally, rng = Tally(), np.random.default_rng(0)
    for i, (sx_generic, sy, _) in enumerate(generic_scales(4, 20)):
        zx, zy = (int(z) for z in rng.integers(0, 256, 2))
        height, width = ((1, 2), (3, 4), (3, 3), (7, 7), (2, 3))[i % 5]
        count = height * width
        x = rng.integers(0, 256, (4, 300, height, width)).astype(np.uint8)
        sx = sx_generic
        if i % 2:  # the multiplier is a power of two: every odd sum is a tie
            sx = F(0.5) * (sy * F(count))
            x = np.clip(zx + rng.integers(-4, 5, x.shape), 0, 255).astype(np.uint8)
        op = OneOp("GlobalAveragePool", sy, zy).input(list(x.shape), sx, zx)
        found = run(op, "QLinearGlobalAveragePool", x)
        total = (x.astype(int) - zx).sum((2, 3), keepdims=True)
        arguments = (total, count, sx, sy, zx, zy)
        assert_same(found, MEAN["divided_scale"](*arguments), f"mean of {count}, {sx}, {sy}")
        for name in ("offset_inside", "double_rounding"):
            tally.add(name, found, MEAN[name](*arguments))
        tally.add("in turn", found, broken.mean_multiplied_in_turn(*arguments))
    tally.assert_each_is_wrong()


def average_pool_real(
    real: Array, kernel: tuple[int, int], stride: int, pad: int, include_pad: bool
) -> Array:
    """Mean of each window: a float32 sum in row order, over the count. NCHW, float32."""
    height, width = (size + 2 * pad for size in real.shape[2:])
    padding = ((0, 0), (0, 0), (pad, pad), (pad, pad))
    padded, present = np.pad(real, padding), np.pad(np.ones_like(real), padding)
    rows, columns = ((n - k) // stride + 1 for n, k in zip((height, width), kernel, strict=True))
    total = np.zeros((*real.shape[:2], rows, columns), F)
    count = np.zeros_like(total)
    for i, j in itertools.product(*map(range, kernel)):
        window = (
            ...,
            slice(i, i + stride * (rows - 1) + 1, stride),
            slice(j, j + stride * (columns - 1) + 1, stride),
        )
        total = total + padded[window]
        count = count + present[window]
    return total / (F(kernel[0] * kernel[1]) if include_pad else count)


@pytest.mark.parametrize("include_pad", [False, True])
def test_average_pool(run: Callable[..., Array], include_pad: bool) -> None:
    tally, rng = Tally(), np.random.default_rng(0)
    grids = [*generic_scales(5, 8), *((F(s), F(s), 0) for s in (0.25, 0.1, 0.3, 0.7, 0.9))]
    for i, (sx, sy, _) in enumerate(grids):
        zx, zy = (int(z) | 1 for z in rng.integers(0, 256, 2))
        kernel, stride, pad = (((2, 2), 2, 0), ((4, 4), 1, 1), ((2, 3), 2, 1))[i % 3]
        x = rng.integers(0, 256, (2, 9, 13, 13)).astype(np.uint8)
        op = OneOp(
            "AveragePool",
            sy,
            zy,
            kernel_shape=kernel,
            strides=[stride, stride],
            pads=[pad] * 4,
            count_include_pad=int(include_pad),
        ).input(list(x.shape), sx, zx)
        found = run(op, "QLinearAveragePool", x)
        real = (x.astype(F) - F(zx)) * sx
        mean = average_pool_real(real, kernel, stride, pad, include_pad)
        assert_same(found, np.rint(mean / sy + F(zy)), f"average {kernel}, {sx}, {sy}")
        tally.add("offset outside", found, np.rint(mean / sy) + zy)
        exact = average_pool_real(real.astype(float), kernel, stride, pad, include_pad)
        tally.add("sum in float64", found, np.rint(exact.astype(F) / sy + F(zy)))
    tally.assert_each_is_wrong()


# Functions of one code


def reals(scale: np.float32, zero_point: int) -> Array:
    return (EVERY_CODE.astype(F) - F(zero_point)) * scale


@pytest.mark.parametrize("slope", [0.01, 0.125, 0.2])
def test_leaky_relu_of_every_code(run: Callable[..., Array], slope: float) -> None:
    tally = Tally()
    grids = [*generic_scales(6, 12), *((F(2.0**-i), F(2.0**-5), 0) for i in range(1, 6))]
    for i, (sx, sy, _) in enumerate(grids):
        zx, zy = (97 * i + 30) % 256, (151 * i + 101) % 256
        op = OneOp("LeakyRelu", sy, zy, alpha=slope).input([256], sx, zx)
        found = run(op, "QLinearLeakyRelu", EVERY_CODE)
        x = reals(sx, zx)
        y = np.where(x >= 0, x, F(slope) * x)
        assert_same(found, QUANTIZE["division"](y, sy, zy), f"leaky relu {sx}, {sy}")
        tally.add("offset inside", found, np.rint(y / sy + F(zy)))
        tally.add("half away", found, QUANTIZE["half_away"](y, sy, zy))
    if slope == 0.125:
        tally.assert_each_is_wrong()


LOGISTIC_NUMERATOR = (
    4.37031012579801e-11,
    1.15627324459942e-07,
    6.08574864600143e-05,
    8.51377133304701e-03,
    2.48287947061529e-01,
)
LOGISTIC_DENOMINATOR = (
    6.10247389755681e-13,
    5.76102136993427e-09,
    6.29106785017040e-06,
    1.70198817374094e-03,
    1.16817656904453e-01,
    9.93151921023180e-01,
)


def logistic(x: Array) -> Array:
    """The runtime's float32 sigmoid: 1/2 + x p(x^2) / q(x^2), x clamped to 18, Horner with FMA."""
    x = np.clip(x, F(-18), F(18))

    def polynomial(coefficients: tuple[float, ...]) -> Array:
        total = np.full_like(x, coefficients[0])
        for coefficient in coefficients[1:]:
            total = fma(total, x * x, np.full_like(x, coefficient))
        return total

    ratio = polynomial(LOGISTIC_NUMERATOR) * x / polynomial(LOGISTIC_DENOMINATOR)
    return np.maximum(ratio + F(0.5), F(0))


def test_sigmoid_of_every_code(run: Callable[..., Array]) -> None:
    """Output scales down to 1e-8: there the codes show every bit of the function."""
    tally, rng = Tally(), np.random.default_rng(0)
    for i in range(60):
        sx, sy = F(math.exp(rng.uniform(-6, 0))), F(10 ** rng.uniform(-8, -2.4))
        zx, zy = int(rng.integers(100, 256)), int(rng.integers(0, 30))
        if i < 6:
            sx, sy, zx, zy = F(0.05), F(1 / 256), 40 * i, 3 * i
        found = run(OneOp("Sigmoid", sy, zy).input([256], sx, zx), "QLinearSigmoid", EVERY_CODE)
        x = reals(sx, zx)
        codes = QUANTIZE["division"](logistic(x), sy, zy)
        assert_same(found, codes, f"sigmoid {sx}, {sy}")
        textbook = 1 / (1 + np.exp(-x.astype(float)))
        tally.add("textbook", found, QUANTIZE["division"](textbook.astype(F), sy, zy))
    tally.assert_each_is_wrong()


def softmax_table(scale_in: np.float32, length: int) -> Array:
    """float32 exponentials of codes - 255, times the largest factor that lets ``length`` add up."""
    largest = float(F(math.log(np.finfo(F).max / F(length)))) - 5
    scale = float(scale_in)
    shift = max(0.0, largest) / scale
    return np.asarray([math.exp((code - 255 + shift) * scale) for code in range(256)]).astype(F)


def softmax_codes(codes: Array, scale_in: Any, scale_out: Any, zero_out: int) -> Array:
    """Along the last axis. The whole number of steps in 1, not 1 / scale, multiplies."""
    table = softmax_table(scale_in, codes.shape[-1])
    index = codes.astype(int) + 255 - codes.max(axis=-1, keepdims=True)
    powers = table[index]
    total = np.add.accumulate(powers, axis=-1, dtype=F)[..., -1:]
    steps = np.floor(F(1) / F(scale_out)).astype(float)
    return np.rint(powers.astype(float) * steps / total) + zero_out


def softmax_in_float(codes: Array, scale_in: Any, scale_out: Any, zero_out: int) -> Array:
    real = codes.astype(F) * scale_in
    powers = np.exp(real - real.max(axis=-1, keepdims=True))
    return np.rint(powers / powers.sum(axis=-1, keepdims=True) / scale_out) + zero_out


SOFTMAX_OUTPUTS = [(1 / 256, 0), (1 / 128, 3), (1 / 255, 0), (0.0035, 0), (0.0041, 128), (0.01, 7)]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 8, 10, 25, 64, 333, 1000])
def test_softmax(run: Callable[..., Array], length: int) -> None:
    rng = np.random.default_rng(length)
    for sx, (sy, zy) in itertools.product((0.001, 0.0371, 0.1, 0.7), SOFTMAX_OUTPUTS):
        x = rng.integers(0, 256, (80, length)).astype(np.uint8)
        x[:26] = 10 * np.arange(26)[:, None]  # equal codes: sums of equal powers, often ties
        x[26:50] = x[26:50] // 128 * 3
        op = OneOp("Softmax", sy, zy, axis=-1).input(["n", length], sx, 12)
        found = run(op, "QLinearSoftmax", x)
        assert_same(found, softmax_codes(x, F(sx), F(sy), zy), f"softmax {length}, {sx}, {sy}")


def test_softmax_along_an_inner_axis(run: Callable[..., Array]) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, 7, 11)).astype(np.uint8)
    op = OneOp("Softmax", 1 / 256, 0, axis=1).input([3, 7, 11], 0.05, 0)
    found = run(op, "QLinearSoftmax", x)
    expected = softmax_codes(np.swapaxes(x, 1, 2), F(0.05), F(1 / 256), 0)
    assert_same(found, np.swapaxes(expected, 1, 2), "softmax along axis 1")


@pytest.mark.parametrize(
    ("scale_out", "agrees"), [(1 / 256, True), (1 / 255, False), (0.0041, False)]
)
def test_softmax_is_the_softmax_only_if_one_is_a_whole_number_of_steps(
    run: Callable[..., Array], scale_out: float, agrees: bool
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (500, 10)).astype(np.uint8)
    op = OneOp("Softmax", scale_out, 0, axis=-1).input(["n", 10], 0.02, 0)
    found = run(op, "QLinearSoftmax", x)
    differ = found != clamp(softmax_in_float(x, F(0.02), F(scale_out), 0))
    assert differ.any() != agrees
