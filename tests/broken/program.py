"""Deliberately broken programs and kernels: each has one fault, which a rule or a law must find."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch.nn.functional as F

from halfstep.core.execution import BATCH, Execution
from halfstep.core.grid import Affine
from halfstep.core.qtype import INT8, INT8_NARROW, INT32, UINT8, QType
from halfstep.program.bounds import accumulator_bounds, largest_step
from halfstep.program.ir import IntProgram, Op, Tensor

INTEGER, COPY, FLOAT, EDGE = Execution.INTEGER, Execution.COPY, Execution.FLOAT, Execution.EDGE
SCALED = Execution.SCALED

# Convolutions: each takes the ``convolve`` of a backend and returns one that is nearly right.


def _ignores_dilation(convolve: Any) -> Any:
    def broken(
        self: Any, x: Any, w: Any, bias: Any, stride: Any, dilation: Any, groups: int
    ) -> Any:
        if any(d > 1 and k > 1 for d, k in zip(dilation, w.shape[2:], strict=True)):
            end = tuple(
                slice(0, size - (d - 1) * (k - 1))
                for size, d, k in zip(x.shape[2:], dilation, w.shape[2:], strict=True)
            )
            x, dilation = x[(slice(None), slice(None), *end)], tuple(1 for _ in dilation)
        return convolve(self, x, w, bias, stride, dilation, groups)

    return broken


def _turns_the_kernel(convolve: Any) -> Any:
    def broken(self: Any, x: Any, w: Any, *rest: Any) -> Any:
        return convolve(self, x, self.xp.flip(w, axis=2), *rest)

    return broken


def _forgets_the_bias(convolve: Any) -> Any:
    return lambda self, x, w, bias, *rest: convolve(self, x, w, None, *rest)


def _is_off_by_one(convolve: Any) -> Any:
    return lambda self, *arguments: convolve(self, *arguments) + 40


CONVOLVE_SPECIMENS: dict[str, Callable[[Any], Any]] = {
    "ignores dilation": _ignores_dilation,
    "turns the kernel": _turns_the_kernel,
    "forgets the bias": _forgets_the_bias,
    "adds a constant": _is_off_by_one,
}


# Functions that are nearly those of the float kernels.

FLOAT_SPECIMENS: dict[str, Callable[..., Any]] = {
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "layer_norm with a weight": lambda x, w: F.layer_norm(x, (5,), w, None, 1e-3),
    "avg_pool": lambda x: F.avg_pool2d(x, (3, 2), (2, 2), 1, count_include_pad=True),
    "avg_pool with padding to the last window": lambda x: F.avg_pool2d(
        F.pad(x, (1, 3, 1, 2)), (3, 2), (2, 3)
    ),
    "upsample_linear": lambda x: F.interpolate(
        x, scale_factor=(2, 3), mode="bilinear", align_corners=True
    ),
    "prelu": lambda x, slope: F.prelu(x, slope.flip(0)),
    "pad by reflect": lambda x: F.pad(x, (2, 1, 0, 3), "replicate"),
    "tanh": lambda x: x.tanh() * (1 + 1e-5),
}


# Programs: rule -> name -> what replaces parts of ``a_program`` and the text of the error.


def _grid(
    scale: Any = 0.1, zero_point: Any = 0, qtype: QType = UINT8, axis: int | None = None
) -> Affine:
    return Affine(qtype, np.asarray(scale, np.float32), np.asarray(zero_point, np.int32), axis)


def a_program() -> IntProgram:
    """One operation of each sort; every rule of ``check`` has something to look at."""
    ones = np.ones((2, 3), np.int8)
    x, y, scales = _grid(0.1, 3), _grid(0.2, 100), np.float32([0.01, 0.02])
    tensors = [
        Tensor("x", (BATCH, 3)),
        Tensor("q", (BATCH, 3), x),
        Tensor("w", (2, 3), _grid(scales, [0, 0], INT8_NARROW, 0), data=ones),
        Tensor("b", (2,), _grid(x.scale * scales, [0, 0], INT32, 0), data=np.int32([7, -7])),
        Tensor("h", (BATCH, 2), y),
        Tensor("t", (256,), dtype="uint8", data=np.arange(256, dtype=np.uint8)),
        Tensor("l", (BATCH, 2), y),
        Tensor("p", (BATCH, 2), _grid(1 / 256)),
        Tensor("s", (BATCH, 2), y),
        Tensor("c", (BATCH, 4), y),
        Tensor("m", (BATCH, 4, 4), y),
        Tensor("r", (BATCH, 4)),
        Tensor("f", (BATCH, 4)),
        Tensor("v", (2, 3), _grid(0.1, 0, INT8), data=ones),
        Tensor("e", (BATCH, 2), y),
    ]
    ops = [
        Op("quantize", ("x",), "q", EDGE, formula="division"),
        Op("linear", ("q", "w", "b"), "h", INTEGER, formula="float", clamp=(100, 255)),
        Op("lookup", ("h", "t"), "l", INTEGER, clamp=(0, 200)),
        Op("softmax", ("l",), "p", INTEGER, {"axis": 1}, "table"),
        Op("add", ("h", "l"), "s", INTEGER, formula="fused"),
        Op("concat", ("h", "s"), "c", COPY, {"axis": 1}),
        Op("matmul", ("c", "c"), "m", INTEGER, {"alpha": 1.0}, "float"),
        Op("dequantize", ("c",), "r", EDGE),
        Op("exp", ("r",), "f", FLOAT),
    ]
    return IntProgram("reference", ("x",), ("f",), {t.name: t for t in tensors}, tuple(ops))


def _with(**changes: Any) -> IntProgram:
    """``a_program`` with other fields in some tensors and in the operations that make them."""
    program = a_program()
    tensors, ops = dict(program.tensors), list(program.ops)
    whole = {k: changes.pop(k) for k in ("inputs", "outputs", "ops") if k in changes}
    for name, fields in changes.items():
        of_tensor = {k: v for k, v in fields.items() if k in Tensor.__dataclass_fields__}
        of_op = {k: v for k, v in fields.items() if k not in of_tensor}
        tensors[name] = replace(tensors[name], **of_tensor)
        ops = [replace(op, **of_op) if op.output == name else op for op in ops]
    return replace(program, **{"tensors": tensors, "ops": tuple(ops), **whole})


def _reordered(*outputs: str) -> IntProgram:
    by_output = {op.output: op for op in a_program().ops}
    return replace(a_program(), ops=tuple(by_output[name] for name in outputs))


_LONG = np.full((2, 70_000), 127, np.int8)
Specimens = dict[str, tuple[Callable[[], IntProgram], str]]
CHECK_SPECIMENS: dict[str, Specimens] = {
    "order": {
        "read too early": (
            lambda: _reordered("h", "q"),
            r"h: linear breaks the rule 'order': reads \['q'\] before they exist",
        ),
        "made twice": (lambda: _reordered("q", "q"), "q: quantize .*: makes q a second time"),
        "makes a constant": (
            lambda: _with(ops=(Op("quantize", ("x",), "v", EDGE),)),
            "v: quantize .*: makes v a second time",
        ),
        "output never made": (
            lambda: _with(outputs=("f", "e")),
            r"program outputs \['e'\] are never made",
        ),
    },
    "worlds": {
        "float on codes": (
            lambda: _with(f={"inputs": ("c",)}),
            "f: exp breaks the rule 'worlds': a float op with codes",
        ),
        "float to codes": (
            lambda: _with(f={"grid": _grid()}),
            "f: exp .*: a float op with codes",
        ),
        "integer on reals": (
            lambda: _with(s={"inputs": ("x", "h")}),
            "s: add .*: an integer op with real values",
        ),
        "integer to reals": (
            lambda: _with(m={"grid": None}),
            "m: matmul .*: an integer op with real values",
        ),
        "scaled sums to codes": (
            lambda: _with(m={"execution": SCALED, "formula": "product"}),
            "m: matmul .*: scaled sums that are codes",
        ),
        "scaled sums of reals": (
            lambda: _with(
                m={"execution": SCALED, "formula": "product", "inputs": ("c", "x"), "grid": None}
            ),
            "m: matmul .*: scaled sums that are codes",
        ),
        "quantize of codes": (
            lambda: _with(q={"kind": "dequantize"}),
            "q: dequantize .*: dequantize from real",
        ),
        "dequantize to codes": (
            lambda: _with(r={"grid": _grid()}),
            "r: dequantize .*: dequantize from codes",
        ),
        "an edge that computes": (lambda: _with(r={"kind": "exp"}), "r: exp .*: exp from codes"),
    },
    "codes": {
        "weight outside of its type": (
            lambda: _with(w={"data": np.full((2, 3), -128, np.int8)}),
            "h: linear breaks the rule 'codes': w has codes -128 to -128, its type is int8_narrow",
        ),
        "clamp outside of its type": (
            lambda: _with(h={"clamp": (-1, 255)}),
            r"clamp \(-1, 255\) does not fit uint8",
        ),
        "clamp upside down": (
            lambda: _with(h={"clamp": (9, 8)}),
            r"clamp \(9, 8\) does not fit uint8",
        ),
        "computed per channel": (
            lambda: _with(h={"grid": _grid([0.1, 0.2], [0, 0], axis=1)}),
            "computed codes with scales along axis 1",
        ),
        "short table": (
            lambda: _with(t={"data": np.arange(255, dtype=np.uint8)}),
            r"l: lookup .*: a table of \(255,\) for uint8",
        ),
        "table outside of its type": (
            lambda: _with(l={"grid": _grid(0.2, 10, QType(4, False)), "clamp": None}),
            "l: lookup .*: a table with codes outside of uint4",
        ),
    },
    "copies": {
        "another scale": (
            lambda: _with(c={"grid": _grid(0.3, 100)}),
            "c: concat breaks the rule 'copies': grids .*0.2.* and .*0.3",
        ),
        "another zero point": (lambda: _with(c={"grid": _grid(0.2, 101)}), "c: concat .*'copies'"),
    },
    "formulas": {
        "none": (
            lambda: _with(h={"formula": None}),
            "h: linear breaks the rule 'formulas': no formula; linear has float, double_rounding",
        ),
        "of another kind": (
            lambda: _with(s={"formula": "float"}),
            "s: add .*: formula 'float'; add has fused, twenty_bits",
        ),
        "of codes for scaled sums": (
            lambda: _with(m={"execution": SCALED, "grid": None}),
            "m: matmul .*: formula 'float'; matmul has product",
        ),
        "none for scaled sums": (
            lambda: _with(m={"execution": SCALED, "formula": None, "grid": None}),
            "m: matmul .*: no formula; matmul has product",
        ),
        "of a kind that has none": (
            lambda: _with(l={"formula": "float"}),
            "l: lookup .*: formula 'float'; lookup has none",
        ),
        "unknown quantize": (
            lambda: _with(q={"formula": "truncate"}),
            "q: quantize .*: formula 'truncate'; quantize has division",
        ),
        "softmax by table of 9 bits": (
            lambda: _with(
                inputs=("x", "e"), e={"grid": _grid(0.2, 0, QType(9))}, p={"inputs": ("e",)}
            ),
            "p: softmax .*: a softmax by table of int9, not of 8 bits",
        ),
    },
    "bias": {
        "another scale": (
            lambda: _with(b={"grid": _grid(np.float32([0.001, 0.003]), [0, 0], INT32, 0)}),
            "h: linear breaks the rule 'bias': bias is int32 .*, not int32 on scale_in",
        ),
        "of 16 bits": (
            lambda: _with(
                b={"grid": _grid(_grid(0.1).scale * np.float32([0.01, 0.02]), 0, QType(16), 0)}
            ),
            "bias is int16",
        ),
        "with a zero point": (
            lambda: _with(
                b={"grid": _grid(_grid(0.1).scale * np.float32([0.01, 0.02]), 1, INT32, 0)}
            ),
            "'bias': .* with zero point 0",
        ),
        "one scale for all channels": (
            lambda: _with(b={"grid": _grid(0.001, 0, INT32)}),
            "'bias': bias is int32 scale=0.001",
        ),
        "wider than the accumulators": (
            lambda: _with(
                b={
                    "grid": _grid(_grid(0.1).scale * np.float32([0.01, 0.02]), 0, QType(48), 0),
                    "data": np.int64([7, -7]),
                }
            ),
            "'bias': bias is int48 .*, not int32 on scale_in",
        ),
        "unsigned": (
            lambda: _with(
                b={
                    "grid": _grid(
                        _grid(0.1).scale * np.float32([0.01, 0.02]), 0, QType(32, False), 0
                    ),
                    "data": np.uint32([7, 7]),
                }
            ),
            "'bias': bias is uint32",
        ),
    },
    "weights": {
        "zero point": (
            lambda: _with(w={"grid": _grid([0.01, 0.02], [0, 1], INT8_NARROW, 0)}),
            "h: linear breaks the rule 'weights': weights with a zero point",
        ),
        "along the inputs": (
            lambda: _with(w={"grid": _grid([0.01] * 3, [0] * 3, INT8_NARROW, 1)}),
            "h: linear .*: axis 1, not None or 0",
        ),
        "computed": (
            lambda: _with(h={"inputs": ("q", "q")}),
            "h: linear .*: weights or biases that are computed",
        ),
        "groups for a formula of one scale": (
            lambda: _with(
                w={
                    "grid": Affine(
                        INT8_NARROW, np.float32([[0.01, 0.005], [0.02, 0.01]]), np.int32(0), 0, 2
                    )
                },
                h={"formula": "single_rounding"},
            ),
            "h: linear .*'weights': groups along axis 0 with formula 'single_rounding'",
        ),
    },
    "accumulators": {
        "of a linear": (
            lambda: _with(
                q={"grid": _grid(0.1, 0), "shape": (BATCH, 70_000)},
                w={"data": _LONG, "shape": _LONG.shape, "grid": _grid(0.01, 0, INT8_NARROW)},
                h={"inputs": ("q", "w")},
            ),
            "h: linear breaks the rule 'accumulators': .* may reach 2266950000 in channel 0",
        ),
        "of a bias": (
            lambda: _with(b={"data": np.int32([7, 2**31 - 1])}),
            "accumulators may reach 2147484403 in channel 1",
        ),
        "of a matmul": (
            lambda: _with(c={"shape": (BATCH, 100_000)}),
            "m: matmul .*'accumulators': accumulators may reach 2402500000 in channel 0",
        ),
        "of a multiplier of 31 bits": (
            lambda: replace(
                _with(b={"data": np.int32([7, 2**31 - 1])}, h={"formula": "double_rounding"}),
                accumulator_bits=48,
            ),
            "accumulators may reach 2147484403 in channel 1, and have 32 bits",
        ),
        "of 48 bits": (
            lambda: replace(_with(c={"shape": (BATCH, 10**10)}), accumulator_bits=48),
            "m: matmul .*'accumulators': accumulators may reach .*, and have 48 bits",
        ),
        "shifted to the left": (
            lambda: _with(m={"grid": _grid(1e-7), "formula": "double_rounding"}),
            "m: matmul .*'accumulators': sums up to .*, shifted .* by .* 19 bits .*; widen",
        ),
        "shifted to the left by alpha": (
            lambda: _with(
                m={"grid": _grid(1), "formula": "double_rounding", "attrs": {"alpha": 1e6}}
            ),
            "m: matmul .*'accumulators': sums up to .*, shifted .* by .* 16 bits .*; widen",
        ),
        "over the batch": (
            lambda: _with(c={"shape": (4, BATCH)}),
            "m: matmul .*'accumulators': accumulators may reach",
        ),
    },
    "pairs": {
        "of a linear": (
            lambda: replace(_with(w={"data": np.int8([[1, 1, 1], [65, 64, 1]])}), pair_sum_bits=16),
            (
                "h: linear breaks the rule 'pairs': two products are added in 16 bits on some CPUs "
                "of target 'reference', found sums from 0 to 32895; 1 of 2 channels may overflow: "
                r"1. Run halfstep.repair_pair_sums\(model\) behind all"
            ),
        ),
        "of activations": (
            lambda: replace(
                _with(v={"data": np.full((2, 3), 127, np.int8)}, m={"inputs": ("c", "v")}),
                pair_sum_bits=16,
            ),
            (
                "m: matmul .*'pairs': .* 64770; 1 of 1 channels may overflow: 0. Plan both of its "
                "inputs as uint8"
            ),
        ),
        "of two layers": (
            lambda: replace(
                _with(
                    w={"data": np.full((2, 3), -127, np.int8)},
                    s={"kind": "linear", "inputs": ("q", "w"), "formula": "float"},
                ),
                pair_sum_bits=16,
            ),
            "h: linear .*'pairs': .* from -64770 to .* 2 of 2 .*: 0, 1. So may those of s. Run",
        ),
    },
}


# Bounds of accumulators that are nearly right.


def _without_bias(program: IntProgram, op: Op) -> Any:
    return accumulator_bounds(program, replace(op, inputs=op.inputs[:2]))


def _of_codes(program: IntProgram, op: Op) -> Any:
    grid = program.grid("x")
    steps = max(abs(grid.qtype.qmin), grid.qtype.qmax)
    return accumulator_bounds(program, op) * steps // largest_step(grid)


def _of_all_groups(program: IntProgram, op: Op) -> Any:
    if op.kind != "conv_transpose":
        return accumulator_bounds(program, op)
    weight = np.abs(program.constant("w").astype(np.int64))
    total = weight.sum(axis=(0, *range(2, weight.ndim))) * largest_step(program.grid("x"))
    return np.tile(total, op.attrs["groups"]) + np.abs(program.constant("b").astype(np.int64))


BOUND_SPECIMENS: dict[str, Callable[[IntProgram, Op], Any]] = {
    "without the bias": _without_bias,
    "one too small": lambda program, op: accumulator_bounds(program, op) - 1,
    "twice as large": lambda program, op: accumulator_bounds(program, op) * 2,
    "of codes, not steps": _of_codes,
    "of all groups": _of_all_groups,
}
