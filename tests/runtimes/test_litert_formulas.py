"""What LiteRT's kernels compute, code by code: the formulas of core, and no others.

Each operator is a file of its own, run by the reference kernels and by the default ones. Each test
also runs formulas that are nearly right, and must find them wrong on the same data.
"""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from halfstep.core import tables
from halfstep.core.elementwise import ADD, MUL, QUANTIZE, RESCALE, SUB
from halfstep.core.grid import Affine
from halfstep.core.pooling import MEAN, average_half_away
from halfstep.core.requant import ACCUMULATOR
from halfstep.core.softmax import SOFTMAX
from halfstep.core.target import Target
from halfstep.targets import litert_ref, litert_xnnpack
from tests.runtimes.one_operator import (
    EVERY_CODE,
    A,
    B,
    F,
    Tally,
    Value,
    bias,
    grid,
    numbers,
    per_channel,
    run_operator,
)

pytest.importorskip("ai_edge_litert")
pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="measured on x86-64 only"),
]
Array = NDArray[Any]
ROOT = Path(__file__).parent.parent.parent
TARGETS = [litert_ref.TARGET, litert_xnnpack.TARGET]
both = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


def others_than(right: str, table: dict[str, Any], *arguments: Any) -> dict[str, Array]:
    return {name: f(*arguments) for name, f in table.items() if name != right}


# Sums of products

# Scales of input, weights and output, zero points of input and output. In most the multiplier is
# a power of two, so that ties occur; in the last two, only if the product of scales is a float32.
SUMS = [
    (F(0.05), F(0.013), F(0.4), 7, -3),
    (F(1 / 16), F(1 / 64), F(1 / 4), 3, 5),
    (F(1 / 8), F(1 / 128), F(1 / 2), -5, -7),
    (F(0.05), F(0.013), F(256) * (F(0.05) * F(0.013)), -77, 101),
    (F(0.031), F(0.0047), F(512) * (F(0.031) * F(0.0047)), 7, 9),
]


def scales_of(rng: np.random.Generator, sums: tuple[Any, ...], n: int) -> Array:
    """A scale for each channel; where there are ties, in every channel."""
    sx, sw, sy, *_ = sums
    generic = np.frexp((sx * sw) / sy)[0] != 0.5
    factors = rng.uniform(0.5, 1.5, n) if generic else 2.0 ** -rng.integers(0, 3, n)
    return (sw * factors).astype(F)


def compare_sums(
    tally: Tally,
    target: Target,
    kind: str,
    found: Array,
    acc: Array,
    scales: Any,
    zero: int,
    formula: str | None = None,
) -> None:
    right = formula or target.rules[kind].formula or ""
    expected = ACCUMULATOR[right](acc, *scales, zero)
    others = others_than(right, ACCUMULATOR, acc, *scales, zero)
    tally.compare(found, expected, others, f"{target.name} {kind} of {scales}")


@both
@pytest.mark.parametrize("form", ["plain", "grouped", "depthwise"])
def test_conv(target: Target, form: str) -> None:
    tally, rng = Tally(), np.random.default_rng(0)
    n_in, n_out = (8, 16)
    groups = {"plain": 1, "grouped": 2, "depthwise": 8}[form]
    for sums in SUMS:
        sx, _, sy, zx, zy = sums
        scales = scales_of(rng, sums, n_out)
        x = rng.integers(-128, 128, (1, 18, 18, n_in)).astype(np.int8)
        # (outputs, height, width, inputs of a group); the lowest code is no special case
        weight = rng.integers(-128, 128, (n_out, 3, 3, n_in // groups)).astype(np.int8)
        added = rng.integers(-2000, 2000, n_out)
        windows = np.lib.stride_tricks.sliding_window_view(x.astype(int) - zx, (3, 3), (1, 2))
        parts = windows.reshape(1, 16, 16, groups, n_in // groups, 3, 3)
        grouped = weight.astype(int).reshape(groups, n_out // groups, 3, 3, -1)
        acc = np.einsum("nhwgcij,goijc->nhwgo", parts, grouped).reshape(1, 16, 16, n_out) + added
        attrs = {"padding": 1, "strideW": 1, "strideH": 1}
        attrs |= {"dilationWFactor": 1, "dilationHFactor": 1}
        kind, options, kept = "CONV_2D", "Conv2DOptions", per_channel(scales)
        if form == "depthwise":
            kind, options, kept = (
                "DEPTHWISE_CONV_2D",
                "DepthwiseConv2DOptions",
                per_channel(scales, axis=3),
            )
            weight, attrs["depthMultiplier"] = weight.transpose(3, 1, 2, 0), 2
        inputs = [Value(x, grid(sx, zx)), Value(weight, kept, True), bias(added, sx * scales)]
        out = (1, 16, 16, n_out), "int8", grid(sy, zy)
        found = run_operator(target.name, kind, inputs, out, options, **attrs)
        compare_sums(tally, target, "conv", found, acc, (sx, scales, sy), zy)
    tally.assert_each_is_wrong()


@both
@pytest.mark.parametrize("shape", [(600,), (1, 600), (2, 3, 100)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear(target: Target, shape: tuple[int, ...], has_bias: bool) -> None:
    tally, rng = Tally(), np.random.default_rng(1)
    for sums in SUMS:
        sx, _, sy, zx, zy = sums
        scales = scales_of(rng, sums, 16)
        x = rng.integers(-128, 128, (*shape, 32)).astype(np.int8)
        weight = rng.integers(-60, 61, (16, 32)).astype(np.int8)
        added = rng.integers(-2000, 2000, 16) * has_bias
        inputs = [Value(x, grid(sx, zx)), Value(weight, per_channel(scales), True)]
        inputs += [bias(added, sx * scales)] if has_bias else []
        out = (*shape, 16), "int8", grid(sy, zy)
        found = run_operator(target.name, "FULLY_CONNECTED", inputs, out,
                             "FullyConnectedOptions", keepNumDims=len(shape) > 1)  # fmt: skip
        acc = (x.astype(int) - zx) @ weight.T.astype(int) + added
        compare_sums(tally, target, "linear", found, acc, (sx, scales, sy), zy)
    tally.assert_each_is_wrong()


@both
@pytest.mark.parametrize("zero", [-11, 0])
@pytest.mark.parametrize("batches", [3, 1])
@pytest.mark.parametrize("constant", [False, True])
def test_matmul_of_activations(target: Target, zero: int, batches: int, constant: bool) -> None:
    """XNNPACK takes those whose second operand has zero point 0."""
    tally, rng = Tally(), np.random.default_rng(2)
    formula = target.rules["matmul"].formula_on([None, grid(1, zero)])
    for sx, sw, sy, zx, zy in SUMS:
        a = rng.integers(-128, 128, (1, 3, 40, 32)).astype(np.int8)
        b = rng.integers(-128, 128, (1, batches, 32, 50)).astype(np.int8)
        inputs = [Value(a, grid(sx, zx)), Value(b, grid(sw, zero), constant)]
        out = (1, 3, 40, 50), "int8", grid(2 * sy, zy)
        found = run_operator(target.name, "BATCH_MATMUL", inputs, out, "BatchMatMulOptions")
        acc = (a.astype(int) - zx) @ (b.astype(int) - zero)
        compare_sums(tally, target, "matmul", found, acc, (sx, sw, 2 * sy), zy, formula)
    tally.assert_each_is_wrong()


@both
def test_transposed_conv(target: Target) -> None:
    tally, rng = Tally(), np.random.default_rng(3)
    for sums in SUMS:
        sx, _, sy, zx, zy = sums
        scales = scales_of(rng, sums, 12)
        x = rng.integers(-128, 128, (1, 9, 9, 8)).astype(np.int8)
        weight = rng.integers(-127, 128, (12, 3, 3, 8)).astype(np.int8)
        added = rng.integers(-2000, 2000, 12)
        acc = np.zeros((1, 19, 19, 12), int)
        for i, j in np.ndindex(3, 3):
            products = (x.astype(int) - zx) @ weight[:, i, j].T.astype(int)
            acc[:, i : i + 17 : 2, j : j + 17 : 2] += products
        inputs = [numbers(1, 19, 19, 12), Value(weight, per_channel(scales), True)]
        inputs += [Value(x, grid(sx, zx)), bias(added, sx * scales)]
        out = (1, 19, 19, 12), "int8", grid(sy, zy)
        found = run_operator(target.name, "TRANSPOSE_CONV", inputs, out,
                             "TransposeConvOptions", padding=1, strideW=2, strideH=2)  # fmt: skip
        compare_sums(tally, target, "conv_transpose", found, acc + added, (sx, scales, sy), zy)
    tally.assert_each_is_wrong()


# Two operands: every pair of codes

PAIRS = [
    ((0.05, 0.03, 0.06), (7, -9, 3)),
    ((1 / 16, 1 / 32, 1 / 8), (3, -7, 5)),
    ((0.05, 0.004, 0.045), (7, -9, -128)),
    ((1 / 8, 1 / 8, 1 / 4), (1, -1, 3)),
    ((0.013, 0.9, 0.5), (100, -27, -95)),
]
BINARY = {"add": ("ADD", ADD), "sub": ("SUB", SUB), "mul": ("MUL", MUL)}


@both
@pytest.mark.parametrize("kind", BINARY)
def test_every_pair_of_codes(target: Target, kind: str) -> None:
    tally = Tally()
    operator, table = BINARY[kind]
    right = target.rules[kind].formula or ""
    for scales, zeros in PAIRS:
        sa, sb, sy = map(F, scales)
        sy = sy if kind != "mul" else F(60) * sa * sb
        arguments = A, B, sa, sb, sy, *zeros
        inputs = [Value(A, grid(sa, zeros[0])), Value(B, grid(sb, zeros[1]))]
        out = A.shape, "int8", grid(sy, zeros[2])
        options = f"{operator.title()}Options"
        found = run_operator(target.name, operator, inputs, out, options)
        others = others_than(right, table, *arguments)
        tally.compare(found, table[right](*arguments), others, f"{kind} of {scales}, {zeros}")
    tally.assert_each_is_wrong()


# Means


MEANS = [
    ((1, 7, 7, 64), (1, 2)),
    ((1, 8, 12, 64), (1, 2)),
    ((4, 300, 32), (1,)),
    ((4, 300, 24), (2,)),
]
MEAN_GRIDS = [
    (1 / 16, 0.003, 5, -7),
    (1 / 16, 1 / 128, 5, -7),
    (0.05, 0.005, 9, 3),
    (0.07, 0.004, -3, 5),
    (1 / 8, 1 / 64, 1, 3),
]


@both
def test_mean(target: Target) -> None:
    tally, rng = Tally(), np.random.default_rng(4)
    right = target.rules["mean"].formula or ""
    for shape, axes in MEANS:
        count = int(np.prod([shape[axis] for axis in axes]))
        for sx, sy, zx, zy in MEAN_GRIDS:
            x = rng.integers(-128, 128, shape).astype(np.int8)
            inputs = [Value(x, grid(sx, zx)), numbers(*axes)]
            total = (x.astype(int) - zx).sum(axes, keepdims=True)
            out = total.shape, "int8", grid(sy, zy)
            found = run_operator(target.name, "MEAN", inputs, out, "ReducerOptions", keepDims=True)
            arguments = total, count, F(sx), F(sy), zx, zy
            others = others_than(right, MEAN, *arguments)
            tally.compare(found, MEAN[right](*arguments), others, f"mean of {shape}")
    tally.assert_each_is_wrong()


@both
def test_average_pool(target: Target) -> None:
    tally, rng = Tally(), np.random.default_rng(5)
    for zero in (7, -128, 40):
        on = grid(0.05, zero)
        x = rng.integers(-128, 128, (1, 16, 16, 32)).astype(np.int8)
        found = run_operator(
            target.name, "AVERAGE_POOL_2D", [Value(x, on)], ((1, 8, 8, 32), "int8", on),
            "Pool2DOptions", padding=1, strideW=2, strideH=2, filterWidth=2, filterHeight=2,
        )  # fmt: skip
        total = (x.astype(int) - zero).reshape(1, 8, 2, 8, 2, 32).sum((2, 4))
        others = {
            "half even": np.rint(total / 4) + zero,
            "half up": np.floor(total / 4 + 0.5) + zero,
        }
        right = average_half_away(total, 4, on.scale, on.scale, zero, zero)
        tally.compare(found, right, others, f"average around {zero}")
    tally.assert_each_is_wrong()


# Real values to codes, codes to codes


@both
def test_quantize(target: Target) -> None:
    tally = Tally()
    for scale in map(F, (0.05, 0.013, 0.11, 1 / 16)):
        halves = (np.arange(-120, 120) + 0.5).astype(F) * scale
        up, down, near = halves, halves, [halves]
        for _ in range(6):
            up, down = np.nextafter(up, F(np.inf)), np.nextafter(down, F(-np.inf))
            near += [up, down]
        real = np.concatenate(near).reshape(1, -1)
        found = run_operator(target.name, "QUANTIZE", [Value(real)],
                             (real.shape, "int8", grid(scale, 7)))  # fmt: skip
        right = target.quantize_formula
        others = others_than(right, QUANTIZE, real, scale, 7)
        tally.compare(found, QUANTIZE[right](real, scale, 7), others, f"quantize {scale}")
    tally.assert_each_is_wrong()


@both
def test_requantize(target: Target) -> None:
    """No target uses it: XNNPACK's is off by a step on many codes."""
    tally = Tally()
    right = "double_rounding" if target.name == "litert_ref" else "eight_bits"
    for sx, sy, zx, zy in ((0.05, 0.07, 7, -5), (1 / 16, 1 / 8, 0, 3), (0.03, 0.031, -9, 0)):
        found = run_operator(target.name, "QUANTIZE", [Value(EVERY_CODE, grid(sx, zx))],
                             (EVERY_CODE.shape, "int8", grid(sy, zy)))  # fmt: skip
        arguments = EVERY_CODE, F(sx), F(sy), zx, zy
        others = others_than(right, RESCALE, *arguments)
        tally.compare(found, RESCALE[right](*arguments), others, f"requantize {sx} to {sy}")
    tally.assert_each_is_wrong()


# Functions of one code: every code

FUNCTIONS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "relu": ("RELU", "", {}, {}),
    "leaky_relu": ("LEAKY_RELU", "LeakyReluOptions", {"slope": 0.1}, {"alpha": 0.1}),
    "sigmoid": ("LOGISTIC", "", {}, {}),
    "tanh": ("TANH", "", {}, {}),
    "gelu": ("GELU", "GeluOptions", {"approximate": "none"}, {"approximate": False}),
    "gelu by tanh": ("GELU", "GeluOptions", {"approximate": "tanh"}, {"approximate": True}),
    "hardswish": ("HARD_SWISH", "HardSwishOptions", {}, {}),
}
ENDS = [((0.05, 7), (0.045, -5)), ((1 / 16, 1), (1 / 8, -7)), ((0.031, -128), (0.02, -100)),
        ((0.11, 40), (0.09, 3)), ((0.007, -9), (0.006, 4))]  # fmt: skip
DICTATED = {"sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}


@both
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_code_of_a_function(target: Target, name: str) -> None:
    operator, options, ours, theirs = FUNCTIONS[name]
    table = target.rules[name.split(maxsplit=1)[0]].table
    assert table is not None
    n_apart = 0
    for source, out in ENDS:
        x_grid, y_grid = grid(*source), grid(*DICTATED.get(name, out))
        found = run_operator(target.name, operator, [Value(EVERY_CODE, x_grid)],
                             (EVERY_CODE.shape, "int8", y_grid), options, **theirs)  # fmt: skip
        codes = EVERY_CODE.astype(np.int64)
        expected = np.clip(table(codes, x_grid, y_grid, **ours), -128, 127)
        np.testing.assert_array_equal(found, expected, f"{name} of {source} to {out}")
        n_apart += int(np.count_nonzero(np.roll(found, 1) != found))
    assert n_apart > 100, "nearly constant functions prove nothing"


def test_leaky_relus_differ() -> None:
    """Each target's table is wrong for the other's kernel."""
    x_grid, y_grid = grid(0.05, 7), grid(0.045, -5)
    codes = EVERY_CODE.astype(np.int64)
    ours, theirs = (
        f(codes, x_grid, y_grid, 0.1)
        for f in (tables.leaky_relu_double_rounding, tables.leaky_relu_eight_bits)
    )
    assert np.count_nonzero(ours != theirs) > 10


# Ratio of scales, slope, zero point of the output: at and beyond what XNNPACK multiplies by.
LEAKY = [(2.0**-8, 1.0, -5), (0.00390624, 1.0, -5), (1.0, 2.0**-8, -5), (1.0, 0.00390624, -5),
         (1.0, 0.0, -5), (0.0045, 0.1, -5), (127.4985, 0.1, -128), (128.4985, 0.1, -128),
         (1.0, -127.4985, -128), (1.0, -128.4985, -128)]  # fmt: skip


@both
def test_leaky_relu_of_far_scales(target: Target) -> None:
    """XNNPACK leaves some to LiteRT; that the formulas differ there, the data show."""
    table, n_apart = target.rules["leaky_relu"].table, [0, 0]
    assert table is not None
    codes = EVERY_CODE.astype(np.int64)
    for ratio, slope, zero_point in LEAKY:
        x_grid, y_grid = grid(0.0173 * ratio, 7), grid(0.0173, zero_point)
        found = run_operator(target.name, "LEAKY_RELU", [Value(EVERY_CODE, x_grid)],
                             (EVERY_CODE.shape, "int8", y_grid), "LeakyReluOptions",
                             alpha=slope)  # fmt: skip
        made = np.clip(table(codes, x_grid, y_grid, slope), -128, 127)
        np.testing.assert_array_equal(found, made, f"ratio {ratio}, slope {slope}")
        for i, other in enumerate((_eight_bits, tables.leaky_relu_double_rounding)):
            n_apart[i] += np.any(np.clip(other(codes, x_grid, y_grid, slope), -128, 127) != found)
    assert n_apart[0] > 3 and (target.name == "litert_ref" or n_apart[1] > 3)


def _eight_bits(codes: Array, source: Affine, out: Affine, slope: float) -> Array:
    """XNNPACK's formula without its limits."""
    ratio = source.scale / out.scale
    above, below = (int(np.rint(F(256) * r)) for r in (ratio, ratio * F(slope)))
    steps = codes - int(source.zero_point)
    found: Array = ((steps * np.where(steps >= 0, above, below) + 128) >> 8) + int(out.zero_point)
    return found


# Softmax


@both
def test_softmax(target: Target) -> None:
    tally, rng = Tally(), np.random.default_rng(6)
    right = target.rules["softmax"].formula or ""
    for scale, length, n in ((0.05, 10, 20000), (1 / 8, 64, 500), (0.9, 7, 2000), (0.001, 3, 500)):
        x = rng.integers(-128, 128, (n, length)).astype(np.int8)
        x[:50] = x[:50, :1]
        inputs, out = [Value(x, grid(scale, 3))], (x.shape, "int8", grid(1 / 256, -128))
        found = run_operator(target.name, "SOFTMAX", inputs, out, "SoftmaxOptions", beta=1.0)
        arguments = x, -1, 256, F(scale), F(1 / 256), -128
        others = others_than(right, SOFTMAX, *arguments)
        tally.compare(found, SOFTMAX[right](*arguments), others, f"softmax of {length}, {scale}")
    assert sum(tally.wrong.values()) > 0, "the data cannot tell the formulas apart"


ROW = """
import numpy as np
from tests.runtimes.one_operator import Value, grid, run_operator

x = np.zeros((1, {length}), np.int8)
out = x.shape, "int8", grid(1 / 256, -128)
run_operator("litert_ref", "SOFTMAX", [Value(x, grid(0.1))], out, "SoftmaxOptions", beta=1.0)
"""


@pytest.mark.parametrize(("length", "ends"), [(511, False), (512, True)])
def test_a_long_row_of_equal_codes_ends_the_process(length: int, ends: bool) -> None:
    """Why the target refuses such rows: the kernel checks a shift, and aborts."""
    paths = os.pathsep.join(path for path in sys.path if path)
    found = subprocess.run(
        [sys.executable, "-c", ROW.format(length=length)],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert found.returncode == (-signal.SIGABRT if ends else 0), found.stderr
