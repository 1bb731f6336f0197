"""A program of one operation for every kernel of the engine, and inputs for it."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core.execution import Execution
from halfstep.core.qtype import INT8, UINT8, QType
from halfstep.program.ir import IntProgram, Tensor
from tests.program.build import N, codes, grid, one_op, real, weighted

Array = NDArray[Any]
Case = tuple[IntProgram, list[Array]]
INTEGER, COPY, FLOAT, EDGE = Execution.INTEGER, Execution.COPY, Execution.FLOAT, Execution.EDGE
SHAPE = (2, 4, 6, 5)
WINDOW = {
    "kernel": (3, 2),
    "stride": (2, 1),
    "padding": ((1, 1), (0, 1)),
    "dilation": (1, 2),
    "ceil_mode": False,
}
CONV = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2), "groups": 2}


def random_codes(shape: tuple[int, ...], qtype: QType = UINT8, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.integers(qtype.qmin, qtype.qmax + 1, shape).astype(qtype.storage)


def random_reals(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def batched(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (N, *shape[1:])


# Codes to codes


def copied(kind: str, out: tuple[int, ...], attrs: dict[str, Any], n_inputs: int = 1) -> Case:
    on = grid(0.1, 5)
    inputs = [codes(f"x{i}", batched(SHAPE), on) for i in range(n_inputs)]
    program = one_op(kind, inputs, codes("y", out, on), COPY, attrs=attrs)
    return program, [random_codes(SHAPE, seed=i) for i in range(n_inputs)]


def two_operands(kind: str, formula: str, types: tuple[QType, QType, QType]) -> Case:
    shapes = (2, 3, 1, 5), (2, 1, 4, 5)
    scales = (s * 2.0 ** (8 - t.bits) for s, t in zip((0.1, 0.13, 0.21), types, strict=True))
    grids = [grid(s, t.qmax // 3, t) for s, t in zip(scales, types, strict=True)]
    inputs = [codes(n, batched(s), g) for n, s, g in zip("ab", shapes, grids[:2], strict=True)]
    y = codes("y", (N, 3, 4, 5), grids[2])
    clamp = (types[2].qmin + 9, types[2].qmax - 9)
    program = one_op(kind, inputs, y, INTEGER, formula=formula, clamp=clamp)
    return program, [random_codes(s, t) for s, t in zip(shapes, types[:2], strict=True)]


def one_operand(
    kind: str,
    out: tuple[int, ...],
    qtype: QType = UINT8,
    out_scale: float = 0.004,
    **fields: Any,
) -> Case:
    scale = 0.02 * 2.0 ** (8 - qtype.bits)
    inputs = [codes("x", batched(SHAPE), grid(scale, qtype.qmax // 2, qtype))]
    y = codes("y", batched(out), grid(out_scale, 3))
    return one_op(kind, inputs, y, INTEGER, **fields), [random_codes(SHAPE, qtype)]


def table(qtype: QType) -> Case:
    on = grid(0.1, 0, qtype)
    values = random_codes((qtype.qmax - qtype.qmin + 1,), INT8)
    inputs = [codes("x", batched(SHAPE), on), real("t", values.shape, "int8", values)]
    y = codes("y", batched(SHAPE), grid(0.1, 0, INT8))
    return one_op("lookup", inputs, y, INTEGER, clamp=(-100, 90)), [random_codes(SHAPE, qtype)]


def sums(kind: str) -> Case:
    weight = np.random.default_rng(0).integers(-127, 128, (6, 2, 3, 2)).astype(np.int8)
    attrs, out = dict(CONV), (N, 6, 3, 6)
    if kind == "conv_transpose":
        weight, attrs["output_padding"], out = weight[:4], (1, 0), (N, 4, 13, 4)
    if kind == "linear":
        weight, attrs, out = weight[:, 0, 0].repeat(5, axis=1)[:, :5], {}, (N, 4, 6, 6)
    bias = np.arange(out[1] if kind != "linear" else 6, dtype=np.int32) * 100
    program = weighted(kind, batched(SHAPE), out, weight, bias, attrs)
    return program, [random_codes(SHAPE)]


def product() -> Case:
    inputs = [codes("a", (N, 4, 6), grid(0.1, 3)), codes("b", (N, 6, 5), grid(0.2, 0, INT8))]
    fields = {"attrs": {"alpha": 0.3}, "formula": "float"}
    program = one_op("matmul", inputs, codes("y", (N, 4, 5), grid(2, 128)), INTEGER, **fields)
    return program, [random_codes((2, 4, 6)), random_codes((2, 6, 5), INT8)]


def scaled(case: Case) -> Case:
    """The same sums as real values."""
    program, inputs = case
    (op,) = program.ops
    op = replace(op, execution=Execution.SCALED, formula="product")
    tensors = {**program.tensors, "y": replace(program.tensors["y"], grid=None, dtype="float32")}
    return replace(program, tensors=tensors, ops=(op,)), inputs


def copied_average() -> Case:
    """An average of codes, which has one grid."""
    on = grid(0.1, 5, INT8)
    attrs = {**WINDOW, "dilation": (1, 1), "count_include_pad": False, "divisor": None}
    inputs, y = [codes("x", batched(SHAPE), on)], codes("y", (N, 4, 3, 5), on)
    program = one_op("avg_pool", inputs, y, INTEGER, attrs=attrs, formula="half_away")
    return program, [random_codes(SHAPE, INT8)]


def probabilities(formula: str) -> Case:
    """A softmax on the one grid that its kernel has."""
    inputs = [codes("x", batched(SHAPE), grid(0.05, 7, INT8))]
    y = codes("y", batched(SHAPE), grid(1 / 256, -128, INT8))
    program = one_op("softmax", inputs, y, INTEGER, attrs={"axis": -1}, formula=formula)
    return program, [random_codes(SHAPE, INT8)]


def rows_of_codes() -> Case:
    on = grid(0.1, 5)
    inputs = [codes("t", (7, 3), on, random_codes((7, 3))), real("i", (N, 4), "int64")]
    program = one_op("embedding", inputs, codes("y", (N, 4, 3), on), COPY)
    return program, [np.asarray([[0, 6, 3, 3], [1, 2, 0, 5]])]


def normalization(formula: str) -> Case:
    on = grid(0.05, 30)
    parameters = [
        codes(name, (6, 5), grid(0.02, 7, INT8), random_codes((6, 5), INT8, seed))
        for seed, name in enumerate("gb")
    ]
    inputs = [codes("x", batched(SHAPE), on), *parameters]
    fields = {"attrs": {"n_axes": 2, "eps": 1e-5}, "formula": formula, "clamp": (3, 250)}
    y = codes("y", batched(SHAPE), grid(0.03, 120))
    return one_op("layer_norm", inputs, y, INTEGER, **fields), [random_codes(SHAPE)]


MOVES: dict[str, tuple[tuple[int, ...], dict[str, Any], int]] = {
    "reshape": ((N, 24, 5), {"shape": (N, 24, 5)}, 1),
    "transpose": ((N, 6, 5, 4), {"perm": (0, 2, 3, 1)}, 1),
    "slice": ((N, 4, 3, 5), {"axis": 2, "start": 0, "stop": 6, "step": 2}, 1),
    "pad": (
        (N, 7, 5, 7),
        {"padding": ((0, 0), (1, 2), (0, -1), (2, 0)), "mode": "constant", "value": 0},
        1,
    ),
    "concat": ((N, 12, 6, 5), {"axis": 1}, 3),
    "minimum": ((N, 4, 6, 5), {}, 2),
    "upsample_nearest": ((N, 4, 12, 15), {"factors": (2, 3)}, 1),
    "max_pool": ((N, 4, 3, 4), WINDOW, 1),
}


def expanded(execution: Execution) -> Case:
    on = grid(0.1, 5) if execution is COPY else None
    data = random_codes((1, 1, 5)) if on else random_reals((1, 1, 5))
    tensors = [Tensor("t", (1, 1, 5), on, data=data), Tensor("x", (N, 2), on)]
    program = one_op(
        "expand", tensors[:1], Tensor("y", (N, 3, 5), on), execution, attrs={"shape": (N, 3, 5)}
    )
    whole = IntProgram(
        "reference", ("x",), ("y",), {**program.tensors, "x": tensors[1]}, program.ops
    )
    return whole, [random_codes((4, 2)) if on else random_reals((4, 2))]


AVERAGED = {**WINDOW, "dilation": (1, 1), "count_include_pad": False, "divisor": None}
CODES: dict[str, Case] = {
    **{kind: copied(kind, *rest) for kind, rest in MOVES.items()},
    "expand": expanded(COPY),
    "embedding": rows_of_codes(),
    **{
        f"{kind} {formula}": two_operands(kind, formula, (UINT8, UINT8, UINT8))
        for kind, formulas in {
            "add": ("fused", "twenty_bits", "double_rounding", "dequantized"),
            "sub": ("double_rounding", "dequantized"),
            "mul": ("offset_inside", "float", "double_rounding", "dequantized"),
        }.items()
        for formula in formulas
    },
    "add of signed": two_operands("add", "fused", (INT8, QType(4), INT8)),
    "add of 16 bits": two_operands("add", "fused", (QType(16, False), QType(16), QType(16, False))),
    "mul of 12 bits": two_operands("mul", "offset_inside", (QType(12), UINT8, QType(10, False))),
    "lookup": table(UINT8),
    "lookup of signed": table(QType(5, narrow=True)),
    "lookup of 16 bits": table(QType(16, False)),
    "conv": sums("conv"),
    "conv_transpose": sums("conv_transpose"),
    "linear": sums("linear"),
    "matmul": product(),
    "layer_norm": normalization("float"),
    "layer_norm double_rounding": normalization("double_rounding"),
    "linear, scaled": scaled(sums("linear")),
    "matmul, scaled": scaled(product()),
    "avg_pool": one_operand("avg_pool", (2, 4, 3, 5), attrs={**AVERAGED}, formula="dequantized"),
    "avg_pool with padding": one_operand(
        "avg_pool",
        (2, 4, 3, 5),
        attrs={**AVERAGED, "count_include_pad": True},
        formula="dequantized",
    ),
    **{
        f"avg_pool {formula}, {padded}": one_operand(
            "avg_pool",
            (2, 4, 3, 5),
            attrs={**AVERAGED, "count_include_pad": padded},
            formula=formula,
        )
        for formula in ("divided_scale", "offset_inside", "double_rounding")
        for padded in (False, True)
    },
    **{
        f"global_avg_pool {formula}": one_operand("global_avg_pool", (2, 4, 1, 1), formula=formula)
        for formula in ("divided_scale", "offset_inside", "raw_codes", "double_rounding")
    },
    "avg_pool half_away": copied_average(),
    **{
        f"mean {formula}": one_operand(
            "mean", (2, 4, 5), attrs={"axes": (2,), "keepdim": False}, formula=formula
        )
        for formula in ("divided_scale", "raw_codes", "double_rounding")
    },
    **{
        f"sum {formula}": one_operand(
            "sum",
            (2, 1, 6, 1),
            out_scale=0.2,
            attrs={"axes": (1, 3), "keepdim": True},
            formula=formula,
        )
        for formula in ("divided_scale", "double_rounding")
    },
    **{
        f"softmax {formula} of probabilities": probabilities(formula)
        for formula in ("reciprocal", "fixed_point")
    },
    **{
        f"softmax {formula} of {qtype}": one_operand(
            "softmax", SHAPE, qtype, attrs={"axis": axis}, formula=formula
        )
        for formula, qtype, axis in (
            ("table", UINT8, -1),
            ("table", INT8, 1),
            ("table", QType(4, False), -1),
            ("dequantized", QType(6), 2),
            ("dequantized", QType(16, False), -1),
            ("integer", INT8, 1),
        )
    },
    "max_pool of 16 bits": (
        one_op(
            "max_pool",
            [codes("x", batched(SHAPE), grid(1, 0, QType(16, False)))],
            codes("y", (N, 4, 3, 4), grid(1, 0, QType(16, False))),
            COPY,
            attrs=WINDOW,
        ),
        [random_codes(SHAPE, QType(16, False))],
    ),
    **{
        f"quantize {formula}": (
            one_op(
                "quantize",
                [real("x", batched(SHAPE))],
                codes("y", batched(SHAPE), grid(0.031, 77)),
                EDGE,
                formula=formula,
            ),
            [random_reals(SHAPE)],
        )
        for formula in ("division", "reciprocal", "half_away")
    },
    "dequantize": (
        one_op("dequantize", [codes("x", batched(SHAPE), grid(0.3, 9))], real("y", SHAPE), EDGE),
        [random_codes(SHAPE)],
    ),
    "dequantize per channel": (
        one_op(
            "dequantize",
            [codes("x", batched(SHAPE), grid([0.3, 0.1, 1, 2], [9, 0, 1, 2], axis=1))],
            real("y", SHAPE),
            EDGE,
        ),
        [random_codes(SHAPE)],
    ),
}
