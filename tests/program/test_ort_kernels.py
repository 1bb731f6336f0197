"""Kernels of the engine against ONNX Runtime's, operation by operation, through the exporter.

The formulas themselves are measured in ``tests/runtimes``; here it is what the kernels add to
them: windows and their counts, axes, the order of operands, tables of functions.
"""

import platform
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from halfstep.core.elementwise import ADD
from halfstep.core.execution import Execution
from halfstep.core.qtype import INT8, UINT8, QType
from halfstep.export.onnx_qdq import to_model
from halfstep.functions import TABLES
from halfstep.program.check import check
from halfstep.program.engine import Engine
from halfstep.program.ir import IntProgram
from halfstep.program.kernels import elementwise
from tests.program.build import N, codes, grid, one_op, real

Array = NDArray[Any]
F = np.float32

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="measured on x86-64 only"),
]


def run_in_runtime(program: IntProgram, inputs: list[Array]) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = onnxruntime.InferenceSession(
        to_model(program).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: Array = session.run(None, dict(zip(program.inputs, inputs, strict=True)))[0]
    return found


def assert_engine_is_the_runtime(program: IntProgram, inputs: list[Array], what: str) -> None:
    found = run_in_runtime(check(program), inputs)
    for backend in ("numpy", "torch"):
        mine = Engine(program, backend).run(inputs).outputs[0]
        np.testing.assert_array_equal(mine, found, f"{what} on {backend}")


def generic(rng: np.random.Generator, n: int) -> list[tuple[float, float, int, int]]:
    """Scales in and out, zero points in and out."""
    return [
        (*np.exp(rng.uniform(-5, -1, 2)).tolist(), *rng.integers(0, 256, 2).tolist())
        for _ in range(n)
    ]


# Windows

POOLS = [
    ((2, 2), (2, 2), ((0, 0), (0, 0))),
    ((3, 3), (2, 2), ((1, 1), (1, 1))),
    ((2, 3), (1, 2), ((0, 1), (1, 0))),
    ((4, 1), (3, 1), ((2, 1), (0, 0))),
]


@pytest.mark.parametrize("include", [False, True])
def test_average_pool(include: bool) -> None:
    rng = np.random.default_rng(0)
    for kernel, stride, padding in POOLS:
        attrs = {
            "kernel": kernel,
            "stride": stride,
            "padding": padding,
            "ceil_mode": False,
            "count_include_pad": include,
            "divisor": None,
        }
        sizes = tuple(
            (size + sum(pair) - k) // s + 1
            for size, pair, k, s in zip((9, 8), padding, kernel, stride, strict=True)
        )
        for sx, sy, zx, zy in [*generic(rng, 4), (0.25, 0.25, 3, 101), (0.1, 0.1, 0, 7)]:
            x, y = codes("x", (N, 5, 9, 8), grid(sx, zx)), codes("y", (N, 5, *sizes), grid(sy, zy))
            program = one_op(
                "avg_pool", [x], y, Execution.INTEGER, attrs=attrs, formula="dequantized"
            )
            values = rng.integers(0, 256, (3, 5, 9, 8)).astype(np.uint8)
            assert_engine_is_the_runtime(program, [values], f"average {kernel} {padding}")


# Softmax


@pytest.mark.parametrize("qtype", [UINT8, INT8, QType(4, False)], ids=str)
def test_softmax(qtype: QType) -> None:
    rng = np.random.default_rng(0)
    for length in (1, 3, 17, 200):
        for sx, *_ in generic(rng, 3):
            zero = int(rng.integers(qtype.qmin, qtype.qmax))
            out = grid(1 / 256, 0) if not qtype.signed else grid(1 / 256, -128, INT8)
            x = codes("x", (N, 4, length), grid(sx, zero, qtype))
            program = one_op(
                "softmax",
                [x],
                codes("y", (N, 4, length), out),
                Execution.INTEGER,
                attrs={"axis": -1},
                formula="table",
            )
            values = rng.integers(qtype.qmin, qtype.qmax + 1, (50, 4, length))
            values = values.astype(qtype.storage)
            assert_engine_is_the_runtime(program, [values], f"softmax of {length}")


# The order of operands: scales for which it shows, and the codes for which it does

ADD_SCALES, ADD_ZEROS = tuple(map(F, (0.013, 0.9, 0.5))), (100, 101, 33)


def telling_codes() -> tuple[Array, Array]:
    """Pairs of codes whose sum depends on the order of the operands."""
    a, b = (v.ravel() for v in np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))
    (sa, sb, sy), (za, zb, zy) = ADD_SCALES, ADD_ZEROS
    in_order = ADD["fused"](a, b, sa, sb, sy, za, zb, zy)
    swapped = ADD["fused"](b, a, sb, sa, sy, zb, za, zy)
    differ = np.clip(in_order, 0, 255) != np.clip(swapped, 0, 255)
    return a[differ], b[differ]


ADD_SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3, 5), (3, 5)),
    ((3, 1), (3, 5)),
    ((3, 5), (3, 1)),
    ((3, 1), (1, 5)),
    ((1, 5), (3, 1)),
    ((5,), (3, 5)),
    ((3, 5), (5,)),
    ((), (5,)),
    ((5,), ()),
    ((), ()),
    ((1,), (1,)),
    ((1, 1), (1, 1)),
    ((3, 1), (3, 1)),
    ((3, 1), (1,)),
    ((3, 1), (1, 1)),
    ((1,), (3, 1)),
    ((3, 1), ()),
    ((2, 3, 1, 1), (2, 3, 4, 5)),
    ((2, 3, 4, 5), (1, 3, 1, 1)),
    ((3, 1, 1), (2, 3, 4, 5)),
    ((2, 1, 1, 1), (2, 3, 1, 1)),
    ((2, 3, 1, 1), (2, 1, 1, 1)),
    ((2, 3, 4, 1), (2, 3, 1, 5)),
    ((1, 4, 1), (3, 1, 1)),
    ((3, 1, 1), (1, 4, 1)),
    ((2, 1, 3, 1), (2, 4, 1, 1)),
]


def assert_adds_are_the_runtimes(constant: int | None = None) -> None:
    rng = np.random.default_rng(0)
    pairs = np.stack(telling_codes(), axis=1)
    grids = [grid(s, z) for s, z in zip(ADD_SCALES, ADD_ZEROS, strict=True)]
    for shapes in ADD_SHAPES:
        out = np.broadcast_shapes(*shapes)
        for pair in pairs[rng.integers(0, len(pairs), 4)]:
            values = [np.full(s, v, np.uint8) for s, v in zip(shapes, pair, strict=True)]
            tensors = [
                codes(name, v.shape, on, v if i == constant else None)
                for i, (name, v, on) in enumerate(zip("ab", values, grids[:2], strict=True))
            ]
            y = codes("y", out, grids[2])
            program = one_op("add", tensors, y, Execution.INTEGER, formula="fused")
            given = [v for i, v in enumerate(values) if i != constant]
            assert_engine_is_the_runtime(program, given, f"add {shapes}")


@pytest.mark.parametrize("constant", [None, 0, 1])
def test_add_of_every_broadcast(constant: int | None) -> None:
    assert len(telling_codes()[0]) > 5
    assert_adds_are_the_runtimes(constant)


@pytest.mark.parametrize(
    "rule",
    [
        lambda a, b: False,
        lambda a, b: True,
        lambda a, b: bool(a) and a[-1] == 1,
        lambda a, b: len(a) < len(b),
        lambda a, b: np.prod(a, initial=1) < np.prod(b, initial=1),
    ],
    ids=["never", "always", "last axis of a", "fewer axes", "fewer values"],
)
def test_another_rule_for_the_order_is_rejected(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "fused_swaps", rule)
    with pytest.raises(AssertionError, match="add "):
        assert_adds_are_the_runtimes()


# Tables of functions

FUNCTIONS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "tanh": {},
    "gelu": {"approximate": "none"},
    "hardswish": {},
    "hardsigmoid": {},
    "leaky_relu": {"slope": 0.1},
    "relu": {},
    "clamp": {"low": 0.0, "high": 6.0},
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("qtype", [UINT8, INT8], ids=str)
def test_tables_of_functions(function: str, qtype: QType) -> None:
    rng = np.random.default_rng(0)
    every = np.arange(qtype.qmin, qtype.qmax + 1).astype(qtype.storage)
    for sx, sy, *_ in generic(rng, 12):
        on, out = (grid(s, rng.integers(qtype.qmin, qtype.qmax + 1), qtype) for s in (sx, sy * 0.1))
        table = out.quantize(TABLES[function](on.dequantize(every), **FUNCTIONS[function]))
        tensors = [codes("x", (N,), on), real("t", (256,), table.dtype.name, table)]
        program = one_op(
            "lookup",
            tensors,
            codes("y", (N,), out),
            Execution.DEQUANTIZED,
            attrs={"function": function, **FUNCTIONS[function]},
        )
        assert_engine_is_the_runtime(program, [every], f"{function} {sx}")
