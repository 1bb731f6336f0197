"""One small model for each kind of operation, from capture to both sets of LiteRT's kernels.

Every code is compared; what a plan lists as not integer is listed for each case, so that nothing
falls back to float32 unnoticed, and so is every transpose of the file.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import PlanError
from halfstep.runtimes.litert import ReferenceKernels
from tests.models import Call, CallTwo, normal, seeded
from tests.pipeline import Inputs, Lowered, arrays, lowered, normal_inputs, real_outputs

pytest.importorskip("ai_edge_litert")
pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="measured on x86-64 only"),
]
IMAGE = (3, 8, 8)
TARGETS = ("litert_ref", "litert_xnnpack")


@dataclass(frozen=True, eq=False)
class Case:
    """One model.

    Attributes:
        name: for the report.
        module: the model.
        inputs: draws its inputs.
        floats: what the plan lists as not integer.
        transposes: how many the file has.
    """

    name: str
    module: nn.Module
    inputs: Inputs
    floats: tuple[str, ...] = ()
    transposes: int = 0


def op(
    name: str,
    function: Callable[..., Any],
    *parts: nn.Module,
    shape: tuple[int, ...] = IMAGE,
    **found: Any,
) -> Case:
    """``function(*parts, x)``."""
    return Case(name, Call(function, *parts), normal_inputs(shape), **found)


def layer(name: str, module: nn.Module, shape: tuple[int, ...] = IMAGE, **found: Any) -> Case:
    return op(name, lambda part, x: part(x), module, shape=shape, **found)


def pair(
    name: str,
    function: Callable[..., Any],
    *shapes: tuple[int, ...],
    **found: Any,
) -> Case:
    """``function(x, y)``."""
    return Case(name, CallTwo(function), normal_inputs(*(shapes or (IMAGE, IMAGE))), **found)


def between(name: str, function: Callable[[Tensor], Tensor], **found: Any) -> Case:
    """``function`` between two convolutions from 3 over 4 to 2 channels."""
    parts = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    return op(name, lambda m, n, x: n(function(m(x))), *parts, **found)


def words(n: int, seed: int) -> tuple[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 11, (n, 6), generator=generator),)


class Attention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries, keys and values of several heads, in an order that is not the alphabet's."""
        return F.scaled_dot_product_attention(query, key, value)


class Patches(nn.Module):
    """The first layer of a vision transformer, its class token, and a block without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 8)."""
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        parts = self.qkv(x).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(-1, 5, 8)
        x = x + self.out(mixed)
        x = x + self.down(F.gelu(self.up(x)))
        return self.norm(x)[:, 0]


WINDOWS = [
    layer("conv2d", nn.Conv2d(3, 5, 3)),
    layer("conv2d, no bias", nn.Conv2d(3, 5, 3, bias=False)),
    layer("conv2d, same as the format's", nn.Conv2d(3, 5, 3, padding=1)),
    layer("conv2d, stride and padding", nn.Conv2d(3, 5, 3, 2, 1)),
    layer("conv2d, grouped", nn.Conv2d(4, 6, 3, groups=2), (4, 8, 8)),
    layer("conv2d, depthwise", nn.Conv2d(3, 3, 3, 2, 1, groups=3)),
    layer("conv2d, depthwise and dilated", nn.Conv2d(3, 3, 3, 1, 2, 2, groups=3)),
    layer("conv2d, depth multiplier", nn.Conv2d(3, 6, 3, groups=3, bias=False)),
    layer("conv2d, dilated", nn.Conv2d(3, 5, 3, dilation=2)),
    layer("conv2d, uneven", nn.Conv2d(3, 5, (1, 3), (2, 1), (0, 2))),
    op(
        "conv2d, asymmetric padding",
        lambda conv, x: conv(F.pad(x, (1, 2, 0, 1))),
        nn.Conv2d(3, 5, 3, padding=1),
    ),
    op("conv2d, relu6", lambda m, x: F.relu6(m(x) * 8), nn.Conv2d(3, 5, 3)),
    op("conv2d, relu6 that clips", lambda m, x: F.relu6(m(x)), nn.Conv2d(3, 5, 3)),
    op("conv2d, hardtanh", lambda m, x: F.hardtanh(m(x), -0.3, 0.5), nn.Conv2d(3, 5, 3)),
    layer("conv1d", nn.Conv1d(3, 5, 3, padding=1), (3, 9)),
    layer("conv1d, grouped", nn.Conv1d(4, 6, 3, 2, groups=2), (4, 12)),
    layer("conv_transpose2d, padded", nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), (4, 5, 5)),
    layer("conv_transpose2d, groups", nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (4, 5, 5)),
    layer("conv_transpose1d", nn.ConvTranspose1d(3, 6, 3, 2, 0, 1, dilation=2), (3, 9)),
    between("max pool", lambda x: F.max_pool2d(x, 2)),
    between("max pool, padding", lambda x: F.max_pool2d(x, 3, 2, 1)),
    between("max pool, dilated", lambda x: F.max_pool2d(x, 2, 1, dilation=2)),
    between("average pool", lambda x: F.avg_pool2d(x, 2)),
    between("average pool, padding", lambda x: F.avg_pool2d(x, 3, 2, 1)),
    between(
        "average pool, padding of the format not counted",
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    ),
    between(
        "average pool, other padding not counted",
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        floats=("avg_pool",),
    ),
    between("average pool, divisor", lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5)),
    op("average pool, 1-D", lambda m, x: F.avg_pool1d(m(x), 2), nn.Conv1d(3, 4, 1), shape=(3, 9)),
    between("nearest", lambda x: F.interpolate(x, scale_factor=3)),
    between(
        "bilinear",
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        floats=("upsample_linear",),
    ),
]
VALUES = [
    layer("linear, 2-D", nn.Linear(8, 5), (8,)),
    layer("linear, 3-D, no bias", nn.Linear(8, 5, bias=False), (4, 8)),
    layer("linear, 4-D", nn.Linear(8, 5), (2, 4, 8)),
    pair("matmul", torch.matmul, (2, 4, 8), (2, 8, 5)),
    pair("matmul, scaled", lambda x, y: x @ y / 3, (4, 8), (8, 5)),
    pair("add", torch.add),
    pair("add, broadcast", torch.add, (3, 8, 1), (3, 1, 8)),
    pair("add, relu", lambda x, y: (x + y).relu()),
    op("add, scalar", lambda x: 0.7 + x),
    between("add, constant of fewer axes", lambda x: x + torch.linspace(-1, 1, 8)),
    between("add, constant of channels", lambda x: x + torch.linspace(-1, 1, 4)[:, None, None]),
    pair("sub", torch.sub),
    op("sub, scalar left", lambda x: 0.7 - x),
    pair("mul", torch.mul),
    between("mul, gate", lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    *(
        op(name, function, nn.Conv2d(3, 4, 1))
        for name, function in {
            "relu": lambda m, x: F.relu(m(x) + x[:, :1]).relu(),
            "clamp": lambda m, x: m(x).tanh().clamp(-0.3, 0.6),
            "leaky relu": lambda m, x: F.leaky_relu(m(x), 0.1),
            "sigmoid": lambda m, x: m(x).sigmoid(),
            "tanh": lambda m, x: m(x).tanh(),
            "gelu": lambda m, x: F.gelu(m(x)),
            "gelu by tanh": lambda m, x: F.gelu(m(x), approximate="tanh"),
            "hardswish": lambda m, x: F.hardswish(m(x)),
            "hardsigmoid": lambda m, x: F.hardsigmoid(m(x)),
            "silu": lambda m, x: F.silu(m(x)),
            "softmax of channels": lambda m, x: m(x).softmax(1),
        }.items()
    ),
    op("softmax of rows", lambda m, x: m(x).softmax(2), nn.Conv2d(3, 4, 1), transposes=2),
    op("softmax", lambda m, x: m(x).softmax(-1), nn.Linear(8, 5), shape=(4, 8)),
    op("mean of space", lambda m, x: m(x).mean((2, 3)), nn.Conv2d(3, 4, 1)),
    op("mean of tokens", lambda m, x: m(x).mean(1), nn.Linear(8, 5), shape=(4, 8)),
    between("mean of channels", lambda x: x + x.mean(1, True)),
    between("sum of channels", lambda x: x + x.sum(1, True), floats=("sum",)),
    op(
        "layer norm",
        lambda m, n, k, x: k(n(m(x))),
        *(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 5)),
        shape=(4, 8),
        floats=("part.1",),
    ),
]
MOVES = [
    between("concat", lambda x: torch.cat([x[:, 2:], x[:, :1], x[:, :1]], 1)),
    between("split", lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1)),
    between("slice with steps", lambda x: x[:, :, 1:-1:2, -3:]),
    between("reshape of space", lambda x: x.reshape(x.shape[0], 4, 4, 16)),
    between("permute of space", lambda x: x.permute(0, 1, 3, 2), transposes=1),
    between(
        "channel shuffle",
        lambda x: x.view(-1, 2, 2, 8, 8).transpose(1, 2).reshape(x.shape),
        transposes=3,
    ),
    between("expand", lambda x: x[:, :, :1].expand(-1, -1, 5, -1)),
    between(
        "expand a multiple",
        lambda x: x.flatten(0, 1).unsqueeze(1).expand(-1, 4, -1, -1),
        transposes=1,
    ),
    between("pad", lambda x: F.pad(x, (1, 2, 0, 1)).transpose(2, 3), transposes=1),
    between("pad, negative", lambda x: F.pad(x, (-1, 2, 0, -1))),
    between("pad, constant", lambda x: F.pad(x, (1, 2, 0, 1), value=0.5), floats=("pad",)),
    between("pad, reflect", lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect")),
    between("pad, circular", lambda x: F.pad(x, (1, 2, 0, 1), mode="circular")),
    op(
        "flatten and linear",
        lambda m, n, x: n(m(x).flatten(1)),
        *(nn.Conv2d(3, 4, 3, 2), nn.Linear(36, 5)),
    ),
    op(
        "flatten that something else reads",
        lambda m, x: m(x).flatten(1) * 2,
        nn.Conv2d(3, 4, 3, 2),
        transposes=1,
    ),
    Case("embedding", Call(lambda e, m, x: m(e(x)), nn.Embedding(11, 8), nn.Linear(8, 4)), words),
    Case(
        "attention",
        Call(lambda a, m, x: a(m(x), x, x[..., :3]), Attention(), nn.Linear(4, 4)),
        normal_inputs((2, 6, 4)),
        transposes=1,
    ),
    op("patches", lambda m, x: m(x), Patches(), floats=("part.0.norm",), transposes=3),
]
CASES = [*WINDOWS, *VALUES, *MOVES]


@cache
def made_from(case: Case, target: str) -> Lowered:
    """What several tests look at is made once."""
    other = TARGETS[0]
    graph = None if target == other else made_from(case, other).graph
    return lowered(case.module, case.inputs, target=target, graph=graph)


def operators(path: Path) -> list[str]:
    """The operators of a file."""
    return [detail["op_name"] for detail in ReferenceKernels(path).interpreter._get_ops_details()]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_runtime_computes_the_program(case: Case, target: str, tmp_path: Path) -> None:
    made = made_from(case, target)
    path = tmp_path / "model.tflite"
    hs.export(made.program, path)
    verdict = hs.verify(made.program, path, made.samples(1), backend="numpy")
    assert verdict.status is hs.Status.EXACT, str(verdict)
    assert verdict.integer_in_runtime == verdict.integer_coverage
    assert made.plan.floats.keys() == set(case.floats)
    islands = [report for report in verdict.sites if not report.comparable]
    assert all(island.largest <= 1 for island in islands if island.site in made.program.sites)
    assert operators(path).count("TRANSPOSE") == case.transposes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_float_file_computes_the_model(case: Case, tmp_path: Path) -> None:
    made = made_from(case, TARGETS[0])
    program = hs.lower(hs.prepare(made.graph, made.plan.keep_float("*")))
    path = tmp_path / "float.tflite"
    hs.export(program, path)
    inputs = case.inputs(2, 60)
    (wanted,) = real_outputs(made.module, inputs)
    found = ReferenceKernels(path).run(arrays(inputs))["output"]
    np.testing.assert_allclose(found, wanted, 0, 1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("weights", ["int2", "int4", "int8"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_every_type_of_weights(weights: str, per_channel: bool, tmp_path: Path) -> None:
    module = Call(lambda m, n, x: n(m(x).relu().flatten(1)), nn.Conv2d(3, 4, 3), nn.Linear(144, 5))
    for target in TARGETS:
        made = lowered(module, normal_inputs(IMAGE), target=target, weights=weights,
                       per_channel=per_channel)  # fmt: skip
        hs.export(made.program, tmp_path / "model.tflite")
        verdict = hs.verify(made.program, tmp_path / "model.tflite", made.samples(1))
        assert verdict.status is hs.Status.EXACT, str(verdict)


def test_a_shared_grid_is_not_dictated(tmp_path: Path) -> None:
    """Probabilities beside other values: a table, and not the operator with a grid of its own."""
    together = Call(lambda m, x: torch.cat([m(x), m(x).sigmoid()], 1), nn.Conv2d(3, 4, 1))
    alone = Call(lambda m, x: torch.cat([m(x).sigmoid(), x.sigmoid()], 1), nn.Conv2d(3, 4, 1))
    for target in TARGETS:
        for module, operator in ((together, "GATHER"), (alone, "LOGISTIC")):
            made = lowered(module, normal_inputs(IMAGE), target=target)
            assert made.plan.specs["sigmoid:out"].dictated == (operator == "LOGISTIC")
            hs.export(made.program, tmp_path / "model.tflite")
            assert operator in operators(tmp_path / "model.tflite")
            verdict = hs.verify(made.program, tmp_path / "model.tflite", made.samples(1))
            assert verdict.status is hs.Status.EXACT, str(verdict)


@pytest.mark.parametrize(
    ("activations", "reason"),
    [
        ("uint8", "refuses it: its kernels take int8, and no uint8"),
        ("int4", "accepts activations of 8 to 8 bits"),
        ("int16", "accepts activations of 8 to 8 bits"),
    ],
)
def test_other_activations_are_refused(activations: str, reason: str) -> None:
    graph = hs.capture(seeded(nn.Conv2d(3, 4, 1)), normal(2, *IMAGE))
    with pytest.raises(PlanError, match=f"asked for {activations} .* {reason}"):
        hs.make_plan(graph, "litert_ref", activations=activations)


def test_rows_that_end_the_process_are_refused() -> None:
    """The reference softmax checks a shift of more than 31 bits, and aborts."""
    graph = hs.capture(Call(lambda x: x.softmax(-1)), normal(2, 512))
    assert "ends the process" in hs.make_plan(graph, "litert_ref").floats["softmax"]
    assert not hs.make_plan(graph, "litert_xnnpack").floats


@pytest.mark.parametrize(("zero", "formula"), [(0, "float"), (9, "double_rounding_product")])
def test_a_product_of_activations_runs_as_the_zero_point_says(
    zero: int, formula: str, tmp_path: Path
) -> None:
    """XNNPACK takes it where that of the second operand is 0: codes of a vision transformer."""
    module = CallTwo(lambda x, y: x @ y * 0.3)
    graph = hs.capture(module, (normal(2, 40, 32), normal(2, 32, 50, seed=1)))
    model = hs.prepare(graph, hs.make_plan(graph, "litert_xnnpack"))
    hs.calibrate(model, [(normal(8, 40, 32, seed=2), normal(8, 32, 50, seed=3))])
    second = model.quantizer("y:in")
    second.set_grid(replace(second.grid(), zero_point=np.int32(zero)))
    program = hs.lower(model)
    assert [op.formula for op in program.ops if op.kind == "matmul"] == [formula]
    hs.export(program, tmp_path / "model.tflite")
    samples = [(normal(9, 40, 32, seed=4).numpy(), normal(9, 32, 50, seed=5).numpy())]
    verdict = hs.verify(program, tmp_path / "model.tflite", samples)
    assert verdict.status is hs.Status.EXACT, str(verdict)
