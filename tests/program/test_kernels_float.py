"""Float islands: every kernel, on both backends, against PyTorch's own function in float64.

A float kernel promises its definition, not its last bit: a few units in the last place of the
largest value are allowed, and no more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from halfstep.core.execution import Execution
from halfstep.program.check import check
from halfstep.program.engine import Engine
from halfstep.program.kernels import KERNELS
from tests.broken import program as broken
from tests.program.build import N, one_op, real

Array = NDArray[Any]
IMAGE = (2, 4, 6, 5)


@dataclass
class Case:
    """One kernel: what it is given, and the torch function of the same inputs."""

    kind: str
    reference: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...] = (IMAGE,)
    attrs: dict[str, Any] = field(default_factory=dict)
    positive: bool = False


def pad_pairs(x: Tensor, pairs: Any, value: float = 0.0) -> Tensor:
    flat = [size for pair in reversed(pairs) for size in pair]
    return F.pad(x, flat, value=value)


CONV = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2), "groups": 2}
TRANSPOSED = {**CONV, "output_padding": (1, 0), "padding": ((1, 1), (2, 2))}
POOL = {"kernel": (3, 2), "stride": (2, 2), "padding": ((1, 1), (1, 1)), "ceil_mode": False}
CEIL = {**POOL, "stride": (2, 3), "ceil_mode": True}
AVERAGE = {"count_include_pad": False, "divisor": None}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "exp": torch.exp,
    "erf": torch.erf,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "abs": torch.abs,
    "mish": F.mish,
    "log_sigmoid": F.logsigmoid,
}


def conv(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return F.conv2d(pad_pairs(x, CONV["padding"]), w, b, (2, 1), 0, (1, 2), 2)


def conv_transpose(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return F.conv_transpose2d(x, w, b, (2, 1), (1, 2), (1, 0), 2, (1, 2))


def average(x: Tensor, **options: Any) -> Tensor:
    return F.avg_pool2d(x, (3, 2), padding=1, **options)


def average_case(name: str, attrs: dict[str, Any], **options: Any) -> tuple[str, Case]:
    stride = attrs["stride"]
    return name, Case(
        "avg_pool",
        lambda x: average(x, stride=stride, **options),
        attrs={**attrs, "count_include_pad": options.get("count_include_pad", True)},
    )


CASES: dict[str, Case] = {
    **{kind: Case(kind, function) for kind, function in FUNCTIONS.items()},
    "sqrt": Case("sqrt", torch.sqrt, positive=True),
    "clamp": Case("clamp", lambda x: x.clamp(-1, 2), attrs={"low": -1.0, "high": 2.0}),
    "clamp from below": Case("clamp", lambda x: x.clamp(min=0.5), attrs={"low": 0.5, "high": None}),
    "leaky_relu": Case("leaky_relu", lambda x: F.leaky_relu(x, 0.2), attrs={"slope": 0.2}),
    "prelu": Case("prelu", F.prelu, (IMAGE, (4,))),
    "prelu of one slope": Case("prelu", F.prelu, ((2, 5), (1,))),
    "minimum": Case("minimum", torch.minimum, (IMAGE, (2, 4, 1, 1))),
    "gelu": Case("gelu", F.gelu, attrs={"approximate": "none"}),
    "gelu by tanh": Case(
        "gelu", lambda x: F.gelu(x, approximate="tanh"), attrs={"approximate": "tanh"}
    ),
    "softplus": Case("softplus", lambda x: F.softplus(x, 1.7), attrs={"beta": 1.7}),
    "elu": Case(
        "elu",
        lambda x: torch.ops.aten.elu(x, 0.7, 1.3, 2.0),
        attrs={"alpha": 0.7, "scale": 1.3, "input_scale": 2.0},
    ),
    "add": Case("add", torch.add, (IMAGE, (2, 1, 6, 1))),
    "sub": Case("sub", torch.sub, (IMAGE, (2, 1, 1, 5))),
    "mul": Case("mul", torch.mul, (IMAGE, IMAGE)),
    "div": Case("div", torch.div, (IMAGE, IMAGE), positive=True),
    "matmul": Case(
        "matmul", lambda a, b: a @ b * 0.3, ((2, 3, 4, 5), (2, 3, 5, 2)), {"alpha": 0.3}
    ),
    "linear": Case("linear", F.linear, ((2, 3, 5), (4, 5), (4,))),
    "linear without a bias": Case("linear", F.linear, ((2, 5), (4, 5))),
    "conv": Case("conv", conv, (IMAGE, (6, 2, 3, 2), (6,)), CONV),
    "conv without a bias": Case("conv", conv, (IMAGE, (6, 2, 3, 2)), CONV),
    "conv of sequences": Case(
        "conv",
        F.conv1d,
        ((2, 4, 9), (3, 4, 2), (3,)),
        {"stride": (1,), "padding": ((0, 0),), "dilation": (1,), "groups": 1},
    ),
    "conv_transpose": Case(
        "conv_transpose", conv_transpose, (IMAGE, (4, 3, 3, 2), (6,)), TRANSPOSED
    ),
    "softmax": Case("softmax", lambda x: x.softmax(2), attrs={"axis": 2}),
    "layer_norm": Case(
        "layer_norm",
        lambda x, w, b: F.layer_norm(x, (6, 5), w, b, 1e-3),
        (IMAGE, (6, 5), (6, 5)),
        {"n_axes": 2, "eps": 1e-3},
    ),
    "layer_norm with a weight": Case(
        "layer_norm",
        lambda x, w: F.layer_norm(x, (5,), w, None, 1e-5),
        (IMAGE, (5,)),
        {"n_axes": 1, "eps": 1e-5},
    ),
    "layer_norm alone": Case(
        "layer_norm",
        lambda x: F.layer_norm(x, (5,)),
        attrs={"n_axes": 1, "eps": 1e-5},
    ),
    "mean": Case("mean", lambda x: x.mean((1, 3)), attrs={"axes": (1, 3), "keepdim": False}),
    "sum": Case("sum", lambda x: x.sum((1,), True), attrs={"axes": (1,), "keepdim": True}),
    "max_pool": Case(
        "max_pool",
        lambda x: F.max_pool2d(x, (3, 2), (2, 2), 1, (1, 2)),
        attrs={**POOL, "dilation": (1, 2)},
    ),
    "max_pool to the last window": Case(
        "max_pool",
        lambda x: F.max_pool2d(x, (3, 2), (2, 3), 1, ceil_mode=True),
        attrs={**CEIL, "dilation": (1, 1)},
    ),
    **dict(
        [
            average_case("avg_pool", {**POOL, **AVERAGE}, count_include_pad=False),
            average_case("avg_pool with padding", {**POOL, **AVERAGE}, count_include_pad=True),
            average_case("avg_pool with a divisor", {**POOL, "divisor": 5}, divisor_override=5),
            average_case(
                "avg_pool to the last window",
                {**CEIL, **AVERAGE},
                count_include_pad=False,
                ceil_mode=True,
            ),
            average_case(
                "avg_pool with padding to the last window",
                {**CEIL, **AVERAGE},
                count_include_pad=True,
                ceil_mode=True,
            ),
        ]
    ),
    "global_avg_pool": Case("global_avg_pool", lambda x: x.mean((2, 3), True)),
    "upsample_linear": Case(
        "upsample_linear",
        lambda x: F.interpolate(x, scale_factor=(2, 3), mode="bilinear"),
        attrs={"factors": (2, 3), "align_corners": False},
    ),
    "upsample_linear of corners": Case(
        "upsample_linear",
        lambda x: F.interpolate(x, scale_factor=(2, 3), mode="bilinear", align_corners=True),
        attrs={"factors": (2, 3), "align_corners": True},
    ),
    "upsample_linear of one pixel": Case(
        "upsample_linear",
        lambda x: F.interpolate(x, scale_factor=(1, 2), mode="bilinear", align_corners=True),
        ((2, 3, 1, 1),),
        {"factors": (1, 2), "align_corners": True},
    ),
    "upsample_nearest": Case(
        "upsample_nearest",
        lambda x: F.interpolate(x, scale_factor=(2, 3)),
        attrs={"factors": (2, 3)},
    ),
    "reshape": Case("reshape", lambda x: x.reshape(2, -1), attrs={"shape": (N, 120)}),
    "transpose": Case("transpose", lambda x: x.permute(2, 0, 1, 3), attrs={"perm": (2, 0, 1, 3)}),
    "slice": Case(
        "slice", lambda x: x[:, 1::2], attrs={"axis": 1, "start": 1, "stop": 2**63 - 1, "step": 2}
    ),
    "concat": Case("concat", lambda a, b: torch.cat([a, b], 3), (IMAGE, IMAGE), {"axis": 3}),
    "expand": Case("expand", lambda x: x.expand(2, 3, 5), ((2, 1, 5),), {"shape": (N, 3, 5)}),
    **{
        f"pad by {mode}": Case(
            "pad",
            lambda x, mode=mode, value=value: F.pad(x, (2, 1, 0, 3), mode, value),
            attrs={
                "padding": ((0, 0), (0, 0), (0, 3), (2, 1)),
                "mode": mode,
                "value": value or 0.0,
            },
        )
        for mode, value in (
            ("constant", 0.7),
            ("reflect", None),
            ("replicate", None),
            ("circular", None),
        )
    },
}


def inputs_of(case: Case) -> list[Array]:
    rng = np.random.default_rng(0)
    values = [rng.normal(0, 2, shape).astype(np.float32) for shape in case.shapes]
    return [np.abs(v) + np.float32(0.1) for v in values] if case.positive else values


def assert_kernel_is_the_function(
    name: str, backend: str, reference: Callable[..., Tensor] | None = None
) -> None:
    """Law: within 16 units in the last place of the largest value."""
    case = CASES[name]
    inputs = inputs_of(case)
    wanted = (reference or case.reference)(*(torch.from_numpy(v).double() for v in inputs)).numpy()
    # Weights are constants; the samples are the first input, and the second of binary functions.
    with_constants = ("conv", "conv_transpose", "linear", "layer_norm", "prelu")
    n_computed = 1 if case.kind in with_constants else None
    tensors = [
        real(f"x{i}", (N, *v.shape[1:]))
        if i < (n_computed or len(inputs))
        else real(f"x{i}", v.shape, data=v)
        for i, v in enumerate(inputs)
    ]
    y = real("y", (N, *wanted.shape[1:]))
    program = check(one_op(case.kind, tensors, y, Execution.FLOAT, attrs=case.attrs))
    found = Engine(program, backend).run(inputs[:n_computed]).outputs[0]
    assert found.dtype == np.float32
    assert found.shape == wanted.shape, f"{name} on {backend}"
    largest = max(1.0, np.abs(wanted).max())
    np.testing.assert_allclose(
        found, wanted, rtol=0, atol=16 * 2.0**-24 * largest, err_msg=f"{name} on {backend}"
    )


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_kernel_is_the_function(name: str, backend: str) -> None:
    assert_kernel_is_the_function(name, backend)


@pytest.mark.parametrize("name", broken.FLOAT_SPECIMENS)
def test_a_function_that_is_nearly_right_is_rejected(name: str) -> None:
    for backend in ("numpy", "torch"):
        with pytest.raises(AssertionError, match=f"{name} on {backend}"):
            assert_kernel_is_the_function(name, backend, broken.FLOAT_SPECIMENS[name])


def test_every_float_kernel_has_a_case() -> None:
    kinds = {kind for execution, kind in KERNELS if execution is Execution.FLOAT}
    others = {"equal", "logical_and", "logical_not", "where", "cast", "embedding"}
    assert kinds == {case.kind for case in CASES.values()} | others


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_kernels_on_truth_values_and_integers(backend: str) -> None:
    def run(kind: str, inputs: list[Array], dtype: str, shape: tuple[int, ...]) -> Array:
        tensors = [real(f"x{i}", v.shape, v.dtype.name) for i, v in enumerate(inputs)]
        program = one_op(kind, tensors, real("y", shape, dtype), Execution.FLOAT)
        found = Engine(program, backend).run(inputs).outputs[0]
        assert found.dtype == dtype
        return found

    a, b = np.float32([[1, 2, 3]]), np.float32([[1, 5, 3]])
    yes, no = a == b, a != b
    np.testing.assert_array_equal(run("equal", [a, b], "bool", (1, 3)), yes)
    np.testing.assert_array_equal(run("logical_and", [yes, ~yes], "bool", (1, 3)), yes & ~yes)
    np.testing.assert_array_equal(run("logical_not", [yes], "bool", (1, 3)), no)
    np.testing.assert_array_equal(run("where", [yes, a, -b], "float32", (1, 3)), [[1, -5, 3]])
    np.testing.assert_array_equal(run("cast", [a], "int64", (1, 3)), [[1, 2, 3]])
    np.testing.assert_array_equal(run("cast", [yes], "float32", (1, 3)), [[1, 0, 1]])
    table, rows = np.float32([[1, 2], [3, 4], [5, 6]]), np.asarray([[2, 0, 2]])
    found = run("embedding", [table, rows], "float32", (1, 3, 2))
    np.testing.assert_array_equal(found, table[rows])
