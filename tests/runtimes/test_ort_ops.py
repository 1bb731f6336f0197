"""One small model for each kind of operation, from capture to ONNX Runtime's own kernels.

Every code is compared, on batches of another size than the example's; the kernels that remain in
the runtime after fusion are listed for each case, so that none falls back to float32 unnoticed.
"""

import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import PlanError, ProgramError
from halfstep.runtimes.ort import INTEGER_KERNELS, OnnxRuntimeModel
from halfstep.verdict import SiteReport
from tests.models import Call, CallTwo, normal, seeded
from tests.pipeline import (
    Inputs,
    Lowered,
    arrays,
    assert_backends_agree,
    lowered,
    normal_inputs,
    real_outputs,
)

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="measured on x86-64 only"),
]

# Kernels that move codes, and those at the edges; all others compute.
MOVING = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape", "Squeeze", "Unsqueeze"),
        *("Slice", "Split", "Concat", "Pad", "Resize", "Gather", "Expand", "Shape"),
        *("MaxPool", "NhwcMaxPool"),
    }
)
IMAGE = (3, 8, 8)


@dataclass(frozen=True, eq=False)
class Case:
    """One model.

    Attributes:
        name: for the report.
        module: the model.
        inputs: draws its inputs.
        kernels: what computes in the runtime, in any order.
        floats: what the plan lists as not integer.
        islands: how many sites come from float kernels, so that they cannot be compared.
    """

    name: str
    module: nn.Module
    inputs: Inputs
    kernels: tuple[str, ...]
    floats: tuple[str, ...] = ()
    islands: int = 0


def op(
    name: str,
    function: Callable[..., Any],
    *kernels: str,
    shape: tuple[int, ...] = IMAGE,
    parts: tuple[nn.Module, ...] = (),
    floats: tuple[str, ...] = (),
    islands: int = 0,
) -> Case:
    """``function(*parts, x)``."""
    return Case(name, Call(function, *parts), normal_inputs(shape), kernels, floats, islands)


def layer(name: str, module: nn.Module, *kernels: str, shape: tuple[int, ...] = IMAGE) -> Case:
    return op(name, lambda part, x: part(x), *kernels, shape=shape, parts=(module,))


def pair(
    name: str,
    function: Callable[..., Any],
    *kernels: str,
    shapes: tuple[tuple[int, ...], ...] = (IMAGE, IMAGE),
    floats: tuple[str, ...] = (),
) -> Case:
    """``function(x, y)``."""
    return Case(name, CallTwo(function), normal_inputs(*shapes), kernels, floats)


def between(name: str, function: Callable[[Tensor], Tensor], *kernels: str, **found: Any) -> Case:
    """``function`` between two convolutions from 3 over 4 to 2 channels, so that it sees codes."""
    parts = (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    convs = ("QLinearConv", "QLinearConv")
    return op(name, lambda m, n, x: n(function(m(x))), *convs, *kernels, parts=parts, **found)


def words(n: int, seed: int) -> tuple[Tensor]:
    """Indices of an embedding of 11 words."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 11, (n, 6), generator=generator),)


def tokens(n: int, seed: int) -> tuple[Tensor, ...]:
    """Queries, keys and values: 2 heads, 6 tokens."""
    return tuple(normal(n, 2, 6, 4, seed=100 * seed + i) for i in range(3))


def grouped(n: int, seed: int) -> tuple[Tensor, ...]:
    """Queries of 6 heads; keys and values of 2, of more tokens."""
    shapes = ((n, 6, 5, 4), (n, 2, 7, 4), (n, 2, 7, 3))
    return tuple(normal(*shape, seed=100 * seed + i) for i, shape in enumerate(shapes))


class Attention(nn.Module):
    def __init__(self, mask: Tensor | None = None, **choices: bool) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.choices = choices

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=self.mask, **self.choices
        )


CAUSAL = torch.ones(6, 6, dtype=torch.bool).tril()
CAPS = torch.tensor([0.2, 0.4, 1.0, 9.0])[:, None, None]
CONVOLUTIONS = [
    layer("conv2d", nn.Conv2d(3, 5, 3), "QLinearConv"),
    layer("conv2d, no bias", nn.Conv2d(3, 5, 3, bias=False), "QLinearConv"),
    layer("conv2d, stride and padding", nn.Conv2d(3, 5, 3, 2, 1), "QLinearConv"),
    layer("conv2d, grouped", nn.Conv2d(4, 6, 3, groups=2), "QLinearConv", shape=(4, 8, 8)),
    layer("conv2d, depthwise", nn.Conv2d(3, 3, 3, 1, 1, groups=3), "QLinearConv"),
    layer("conv2d, depth multiplier", nn.Conv2d(3, 6, 3, groups=3), "QLinearConv"),
    layer("conv2d, dilated", nn.Conv2d(3, 5, 3, dilation=2), "QLinearConv"),
    layer("conv2d, uneven", nn.Conv2d(3, 5, (1, 3), (2, 1), (0, 2)), "QLinearConv"),
    layer("conv2d, same", nn.Conv2d(3, 5, 3, padding="same"), "QLinearConv"),
    layer("conv2d, same, even kernel", nn.Conv2d(3, 5, 4, padding="same"), "QLinearConv"),
    layer("conv2d, valid", nn.Conv2d(3, 5, 3, padding="valid"), "QLinearConv"),
    op(
        "conv2d, asymmetric padding",
        lambda conv, x: conv(F.pad(x, (1, 2, 0, 1))),
        "QLinearConv",
        parts=(nn.Conv2d(3, 5, 3, padding=1),),
    ),
    op("conv2d, relu", lambda m, x: m(x).relu(), "QLinearConv", parts=(nn.Conv2d(3, 5, 3),)),
    op("conv2d, relu6", lambda m, x: F.relu6(m(x)), "QLinearConv", parts=(nn.Conv2d(3, 5, 3),)),
    op(
        "conv2d, hardtanh",
        lambda m, x: F.hardtanh(m(x)),
        *("QLinearConv", "Clip"),
        parts=(nn.Conv2d(3, 5, 3),),
    ),
    layer("conv1d", nn.Conv1d(3, 5, 3, padding=1), "QLinearConv", shape=(3, 9)),
    layer("conv1d, grouped", nn.Conv1d(4, 6, 3, 2, groups=2), "QLinearConv", shape=(4, 12)),
    layer("conv1d, same", nn.Conv1d(3, 5, 3, padding="same"), "QLinearConv", shape=(3, 9)),
    op(
        "conv_transpose2d",
        lambda m, n, x: n(m(x)),
        *("QLinearConv", "ConvTranspose"),
        parts=(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2)),
        floats=("part.1",),
    ),
    op(
        "conv_transpose1d",
        lambda m, n, x: n(m(x)),
        *("QLinearConv", "ConvTranspose"),
        shape=(3, 9),
        parts=(nn.Conv1d(3, 4, 1), nn.ConvTranspose1d(4, 6, 3, dilation=2)),
        floats=("part.1",),
    ),
]
PRODUCTS = [
    layer("linear, 2-D", nn.Linear(8, 5), "QGemm", shape=(8,)),
    layer("linear, 2-D, no bias", nn.Linear(8, 5, bias=False), "QGemm", shape=(8,)),
    layer("linear, 3-D", nn.Linear(8, 5), "QGemm", shape=(4, 8)),
    layer("linear, 3-D, no bias", nn.Linear(8, 5, bias=False), "QGemm", shape=(4, 8)),
    layer("linear, 4-D", nn.Linear(8, 5), "QGemm", shape=(2, 4, 8)),
    op("linear, relu", lambda m, x: m(x).relu(), "QGemm", shape=(4, 8), parts=(nn.Linear(8, 5),)),
    pair("matmul, 3-D", torch.matmul, "QLinearMatMul", shapes=((4, 8), (8, 5))),
    pair("matmul, 4-D", torch.matmul, "QLinearMatMul", shapes=((2, 4, 8), (2, 8, 5))),
    pair("bmm", torch.bmm, "QLinearMatMul", shapes=((4, 8), (8, 5))),
    pair("matmul, scaled", lambda x, y: x @ y / 3, "QLinearMatMul", shapes=((4, 8), (8, 5))),
]
ARITHMETIC = [
    pair("add", torch.add, "QLinearAdd"),
    pair("add, broadcast", torch.add, "QLinearAdd", shapes=(IMAGE, (3, 1, 1))),
    pair("add, broadcast left", torch.add, "QLinearAdd", shapes=((3, 1, 1), IMAGE)),
    pair("add, both broadcast", torch.add, "QLinearAdd", shapes=((3, 8, 1), (3, 1, 8))),
    pair("add, relu", lambda x, y: (x + y).relu(), "QLinearAdd"),
    op("add, twice the same", lambda x: x + x, "QLinearAdd"),
    op("add, scalar", lambda x: x + 0.7, "QLinearAdd"),
    op("add, scalar left", lambda x: 0.7 + x, "QLinearAdd"),
    op("add, constant", lambda x: x + torch.linspace(-1, 1, 8), "QLinearAdd"),
    op("add, constant left", lambda x: torch.linspace(-1, 1, 8)[:, None] + x, "QLinearAdd"),
    pair("sub", torch.sub, "Sub", floats=("sub",)),
    op("sub, scalar", lambda x: x - 0.7, "QLinearAdd"),
    op("sub, scalar left", lambda x: 0.7 - x, "Sub", floats=("sub",)),
    pair("mul", torch.mul, "QLinearMul"),
    pair("mul, broadcast", torch.mul, "QLinearMul", shapes=(IMAGE, (3, 1, 1))),
    pair("mul, broadcast left", torch.mul, "QLinearMul", shapes=((3, 1, 1), IMAGE)),
    op("mul, twice the same", lambda x: x * x, "QLinearMul"),
    op("mul, scalar", lambda x: x * 0.7, "QLinearMul"),
    op("mul, scalar left", lambda x: -0.7 * x, "QLinearMul"),
    op("mul, constant", lambda x: x * torch.linspace(-1, 1, 8), "QLinearMul"),
    op("div, scalar", lambda x: x / 3, "QLinearMul"),
]
ACTIVATIONS = [
    op("relu", torch.relu, floats=("relu",)),
    op("relu6", F.relu6, floats=("clamp",)),
    op("hardtanh", F.hardtanh, "Clip", floats=("clamp",)),
    op("clamp", lambda x: x.clamp(-0.5, 0.7), "Clip", floats=("clamp",)),
    op("clamp, above", lambda x: x.clamp(max=0.5), "Min", floats=("clamp",)),
    op("clamp, below", lambda x: x.clamp(min=-0.5), "Clip", floats=("clamp",)),
    op("leaky_relu", lambda x: F.leaky_relu(x, 0.1), "QLinearLeakyRelu"),
    op(
        "prelu",
        lambda m, p, n, x: n(p(m(x))),
        *("QLinearConv", "PRelu", "QLinearConv"),
        parts=(nn.Conv2d(3, 4, 1), nn.PReLU(4), nn.Conv2d(4, 2, 1)),
        floats=("part.1",),
        islands=1,
    ),
    op(
        "prelu, one slope",
        lambda m, p, x: p(m(x)),
        *("QGemm", "PRelu"),
        shape=(8,),
        parts=(nn.Linear(8, 5), nn.PReLU()),
        floats=("part.1",),
    ),
    between("caps of channels", lambda x: torch.minimum(x.relu(), CAPS), "Min"),
    op("sigmoid", torch.sigmoid, "QLinearSigmoid"),
    op("tanh", torch.tanh, "Tanh", floats=("tanh",)),
    op("silu", F.silu, "QLinearSigmoid", "QLinearMul"),
    op("hardswish", F.hardswish, "HardSigmoid", "Mul", floats=("hardswish",)),
    op("hardsigmoid", F.hardsigmoid, "HardSigmoid", floats=("hardsigmoid",)),
    op("gelu", F.gelu, "Gelu", floats=("gelu",)),
    op("gelu, tanh", lambda x: F.gelu(x, approximate="tanh"), "Gelu", floats=("gelu",)),
    op("softmax", lambda x: x.softmax(-1), "QLinearSoftmax", shape=(4, 8)),
    op("softmax, axis 1 of 3", lambda x: x.softmax(1), "QLinearSoftmax", shape=(4, 8)),
    between("softmax of channels", lambda x: x.softmax(1), "QLinearSoftmax"),
    between(
        "layer norm",
        lambda x: F.layer_norm(x, x.shape[1:]),
        "LayerNormalization",
        floats=("layer_norm",),
        islands=1,
    ),
    op(
        "layer norm, parameters",
        lambda m, n, x: n(m(x)),
        *("LayerNormalization", "QGemm"),
        shape=(4, 8),
        parts=(nn.LayerNorm(8), nn.Linear(8, 5)),
        floats=("part.0",),
        islands=1,
    ),
]
POOLS = [
    between("max pool", lambda x: F.max_pool2d(x, 2)),
    between("max pool, padding", lambda x: F.max_pool2d(x, 3, 2, 1)),
    between("max pool, ceil_mode", lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    between("max pool, dilated", lambda x: F.max_pool2d(x, 2, 1, dilation=2)),
    between("adaptive max pool", lambda x: F.adaptive_max_pool2d(x, (2, 4))),
    op(
        "max pool, 1-D",
        lambda m, x: F.max_pool1d(m(x), 2),
        "QLinearConv",
        shape=(3, 9),
        parts=(nn.Conv1d(3, 4, 1),),
    ),
    op("average pool", lambda x: F.avg_pool2d(x, 2), "QLinearAveragePool"),
    op("average pool, padding", lambda x: F.avg_pool2d(x, 3, 2, 1), "QLinearAveragePool"),
    op(
        "average pool, padding not counted",
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        "QLinearAveragePool",
    ),
    between(
        "average pool, ceil_mode",
        lambda x: F.avg_pool2d(x, 3, 2, 0, ceil_mode=True),
        "QLinearAveragePool",
    ),
    between(
        "average pool, ceil_mode and padding",
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        "QLinearAveragePool",
    ),
    between(
        "average pool, ceil_mode, a window in the padding",
        lambda x: F.avg_pool2d(x, 3, 3, 1, ceil_mode=True),
        "QLinearAveragePool",
    ),
    op(
        "average pool, divisor",
        lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
        *("QLinearAveragePool", "QLinearMul"),
    ),
    op("average pool, 1-D", lambda x: F.avg_pool1d(x, 2), "QLinearAveragePool", shape=(3, 9)),
    op(
        "average pool, 1-D, ceil_mode and padding",
        lambda x: F.avg_pool1d(x, 3, 2, 1, ceil_mode=True),
        "QLinearAveragePool",
        shape=(3, 8),
    ),
    op("average pool of everything", lambda x: F.avg_pool2d(x, 8), "QLinearGlobalAveragePool"),
    op("adaptive pool to 1", lambda x: F.adaptive_avg_pool2d(x, 1), "QLinearGlobalAveragePool"),
    op("adaptive pool", lambda x: F.adaptive_avg_pool2d(x, (2, 4)), "QLinearAveragePool"),
    between("adaptive pool to the same", lambda x: F.adaptive_avg_pool2d(x, 8)),
    op(
        "adaptive pool, 1-D",
        lambda x: F.adaptive_avg_pool1d(x, 1),
        "QLinearGlobalAveragePool",
        shape=(3, 9),
    ),
    op("mean of time", lambda x: x.mean(-1), "QLinearGlobalAveragePool", shape=(3, 9)),
    op("mean of space", lambda x: x.mean((2, 3)), "QLinearGlobalAveragePool"),
    op("mean of space, kept", lambda x: x.mean((-1, -2), True), "QLinearGlobalAveragePool"),
    between(
        "mean of channels",
        lambda x: x + x.mean(1, True),
        "ReduceMean",
        "QLinearAdd",
        floats=("mean",),
        islands=1,
    ),
    between(
        "mean of two axes",
        lambda x: x + x.mean((1, 3), True),
        "ReduceMean",
        "QLinearAdd",
        floats=("mean",),
        islands=1,
    ),
    between(
        "sum of channels",
        lambda x: x + x.sum(1, True),
        "ReduceSum",
        "QLinearAdd",
        floats=("sum",),
        islands=1,
    ),
]
MOVES = [
    between("concat", lambda x: torch.cat([x[:, 2:], x[:, :1], x[:, :1]], 1)),
    op(
        "concat of three",
        lambda m, n, x: torch.cat([m(x), x, n(x)], 1),
        "QLinearConv",
        "QLinearConv",
        parts=(nn.Conv2d(3, 5, 1), nn.Conv2d(3, 2, 1)),
    ),
    between("split", lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1)),
    between("chunk", lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    between(
        "unbind and select",
        lambda x: x + x.unbind(2)[1].unsqueeze(2) + x[:, :, -1:],
        "QLinearAdd",
        "QLinearAdd",
    ),
    between("slice", lambda x: x[:, :, 1:-1:2, -3:]),
    between("reshape", lambda x: x.reshape(x.shape[0], 4, 4, 16)),
    between("view", lambda x: x.view(-1, 4, 16, 4)),
    between("flatten and unflatten", lambda x: x.flatten(2).unflatten(2, (4, 16))),
    between("permute", lambda x: x.permute(0, 1, 3, 2)),
    between("transpose", lambda x: x.transpose(-1, -2)),
    between("unsqueeze and squeeze", lambda x: x.unsqueeze(1).relu().squeeze(1), floats=("relu",)),
    between("channel shuffle", lambda x: x.view(-1, 2, 2, 8, 8).transpose(1, 2).reshape(x.shape)),
    between("expand", lambda x: x[:, :, :1].expand(-1, -1, 5, -1)),
    between("expand a multiple", lambda x: x.flatten(0, 1).unsqueeze(1).expand(-1, 4, -1, -1)),
    between("pad", lambda x: F.pad(x, (1, 2, 0, 1)).transpose(2, 3)),
    between("pad, negative", lambda x: F.pad(x, (-1, 2, 0, -1))),
    between(
        "pad, constant", lambda x: F.pad(x, (1, 2, 0, 1), value=0.5), floats=("pad",), islands=1
    ),
    between("pad, reflect", lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect")),
    between("pad, replicate", lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate")),
    between("pad, circular", lambda x: F.pad(x, (1, 2, 0, 1), mode="circular")),
    between("nearest", lambda x: F.interpolate(x, scale_factor=2)),
    between("nearest, size", lambda x: F.interpolate(x, size=(16, 24))),
    between(
        "bilinear",
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        floats=("upsample_linear",),
        islands=1,
    ),
    between(
        "bilinear, corners",
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        floats=("upsample_linear",),
        islands=1,
    ),
    op(
        "dropout",
        lambda m, d, x: d(m(x)),
        "QLinearConv",
        parts=(nn.Conv2d(3, 5, 3), nn.Dropout(0.5)),
    ),
    op(
        "dropout of channels",
        lambda d, m, x: m(d(x)),
        "QLinearConv",
        parts=(nn.Dropout2d(0.5), nn.Conv2d(3, 5, 3)),
    ),
]
SEQUENCES = [
    Case(
        "embedding",
        Call(lambda e, m, x: m(e(x)), nn.Embedding(11, 8), nn.Linear(8, 4)),
        words,
        ("QGemm",),
    ),
    Case("attention", Attention(), tokens, ("QLinearMatMul", "QLinearSoftmax", "QLinearMatMul")),
    Case(
        "attention, bool mask",
        Attention(CAUSAL),
        tokens,
        ("QLinearMatMul", "Add", "Softmax", "QLinearMatMul"),
        ("add", "softmax"),
        1,
    ),
    Case(
        "attention, float mask",
        Attention(torch.zeros(6, 6).masked_fill(~CAUSAL, -1e9)),
        tokens,
        ("QLinearMatMul", "Add", "Softmax", "QLinearMatMul"),
        ("add", "softmax"),
        1,
    ),
    Case(
        "attention, causal",
        Attention(is_causal=True),
        tokens,
        ("QLinearMatMul", "Add", "Softmax", "QLinearMatMul"),
        ("add", "softmax"),
        1,
    ),
    Case(
        "attention, grouped heads",
        Attention(enable_gqa=True),
        grouped,
        ("QLinearMatMul", "QLinearSoftmax", "QLinearMatMul"),
    ),
    Case(
        "attention, grouped heads, causal",
        Attention(enable_gqa=True, is_causal=True),
        grouped,
        ("QLinearMatMul", "Add", "Softmax", "QLinearMatMul"),
        ("add", "softmax"),
        1,
    ),
]
CASES = [
    *CONVOLUTIONS,
    *PRODUCTS,
    *ARITHMETIC,
    *ACTIVATIONS,
    *POOLS,
    *MOVES,
    *SEQUENCES,
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
same_padding_warns = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@cache
def made_from(case: Case) -> Lowered:
    """With the default types; what several tests look at is made once."""
    return lowered(case.module, case.inputs)


@same_padding_warns
@every_case
def test_the_runtime_computes_the_program(case: Case, tmp_path: Path) -> None:
    made = made_from(case)
    verdict = made.prove(tmp_path)
    assert verdict.status is hs.Status.EXACT, str(verdict)
    islands = [report for report in codes_of(made, verdict) if not report.comparable]
    assert len(islands) == case.islands
    assert all(island.largest <= 1 for island in islands), "more than a last bit"
    assert made.plan.floats.keys() == set(case.floats)
    assert all(made.plan.floats.values()), "a reason for each"
    kernels = Counter(OnnxRuntimeModel(tmp_path / "model.onnx").kernels().values())
    assert Counter({k: n for k, n in kernels.items() if k not in MOVING}) == Counter(case.kernels)
    if not case.floats:  # codes all the way: nothing but the inputs is quantized
        edges = Counter(op.kind for op in made.program.ops)
        assert kernels["QuantizeLinear"] == edges["quantize"] <= len(made.program.inputs)
        assert kernels["DequantizeLinear"] == edges["dequantize"] == 1


def codes_of(made: Lowered, verdict: hs.Verdict) -> list[SiteReport]:
    """The reports of tensors of codes; those of outputs aside."""
    return [report for report in verdict.sites if report.site in made.program.sites]


@same_padding_warns
@every_case
def test_the_program_computes_the_quantized_model(case: Case) -> None:
    """Within a step of the output's grid, or of the last grid before a float kernel."""
    made = made_from(case)
    inputs = case.inputs(3, 60)
    (wanted,) = real_outputs(made.quantized, inputs)
    run = hs.Engine(made.program).run(arrays(inputs))
    step = max(float(made.program.grid(site).scale) for site in made.program.sites)
    assert np.abs(run.outputs[0] - wanted).max() <= 1.01 * step
    assert np.abs(wanted).max() > 2 * step, "the model gives nothing but rounding"


@same_padding_warns
@every_case
def test_the_float_export_computes_the_model(case: Case, tmp_path: Path) -> None:
    made = made_from(case)
    floats = made.plan.keep_float("*")
    program = hs.lower(hs.prepare(made.graph, floats))
    hs.export(program, tmp_path / "float.onnx")
    runtime = OnnxRuntimeModel(tmp_path / "float.onnx")
    assert not INTEGER_KERNELS & set(runtime.kernels().values())
    inputs = case.inputs(3, 60)
    (wanted,) = real_outputs(made.module, inputs)
    found = {"runtime": runtime.run(arrays(inputs))["output"]}
    for backend in ("numpy", "torch"):
        found[backend] = hs.Engine(program, backend).run(arrays(inputs)).outputs[0]
    for where, values in found.items():
        assert values.shape == wanted.shape
        np.testing.assert_allclose(values, wanted, 0, 1e-5 * np.abs(wanted).max(), err_msg=where)


# Operations that a plan keeps in float

Function = Callable[..., Tensor]
KEPT: list[tuple[str, str, Function, tuple[nn.Module, ...]]] = [
    ("part.2", "Conv", lambda a, b, m, x: b(m(a(x))), (nn.Conv2d(4, 4, 3),)),
    ("part.2", "Conv", lambda a, b, m, x: b(m(a(x)).relu()), (nn.Conv2d(4, 4, 3),)),
    ("part.2", "ConvTranspose", lambda a, b, m, x: b(m(a(x))), (nn.ConvTranspose2d(4, 4, 3),)),
    (
        "part.2",
        "Gemm",
        lambda a, b, m, x: b(a(x) + m(x.mean((2, 3)))[..., None, None]),
        (nn.Linear(3, 4),),
    ),
    ("add", "Add", lambda a, b, x: b(a(x) + a(x).tanh()), ()),
    ("mul", "Mul", lambda a, b, x: b(a(x) * a(x).tanh()), ()),
    ("matmul", "MatMul", lambda a, b, x: b(a(x) @ a(x)), ()),
    ("sigmoid", "Sigmoid", lambda a, b, x: b(a(x).sigmoid()), ()),
    ("leaky_relu", "LeakyRelu", lambda a, b, x: b(F.leaky_relu(a(x), 0.1)), ()),
    ("softmax", "Softmax", lambda a, b, x: b(a(x).softmax(-1)), ()),
    ("avg_pool", "AveragePool", lambda a, b, x: b(F.avg_pool2d(a(x), 2)), ()),
    ("concat", "Concat", lambda a, b, x: b(torch.cat([a(x)[:, 2:], a(x)[:, :2].tanh()], 1)), ()),
]


@pytest.mark.parametrize(("unit", "kernel", "function", "middle"), KEPT)
def test_what_is_kept_in_float_is_float_in_the_runtime(
    unit: str, kernel: str, function: Function, middle: tuple[nn.Module, ...], tmp_path: Path
) -> None:
    """Left alone, the runtime makes it integer, and quantizes even its weights."""
    module = seeded(Call(function, nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), *middle))
    with torch.no_grad():  # which 8 bits a tensor would not survive
        for part in middle:
            part.weight[:2] *= 1e-3
    made = lowered(
        module, normal_inputs(IMAGE), edit=lambda plan: plan.keep_float(unit), redraw=False
    )
    verdict = made.prove(tmp_path)
    assert verdict.status is hs.Status.EXACT, str(verdict)
    (island,) = [report for report in codes_of(made, verdict) if report.site == f"{unit}:out"]
    assert not island.comparable
    assert island.largest <= 1
    assert kernel in OnnxRuntimeModel(tmp_path / "model.onnx").kernels().values()
    assert verdict.integer_in_runtime == verdict.integer_coverage


# Types


def everything(conv: nn.Module, wide: nn.Module, linear: nn.Module, x: Tensor) -> Tensor:
    """Most kinds of operations that have an integer kernel."""
    x = conv(x).relu()
    x = x + wide(x)
    x = torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(x, 2)], 1)
    x = F.leaky_relu(x, 0.1) * x.mean((2, 3), keepdim=True).sigmoid()
    scores = linear(F.pad(F.hardswish(x), (1, 0)).flatten(2))
    return (scores @ scores.transpose(1, 2) / 4).softmax(-1)


def network() -> nn.Module:
    parts = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(20, 6)
    return Call(everything, *parts)


FUSED = Counter(
    [
        *("QLinearConv", "QLinearConv", "QGemm", "QLinearMatMul", "QLinearAdd", "QLinearMul"),
        *("QLinearAveragePool", "QLinearGlobalAveragePool"),
        *("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax"),
    ]
)
TYPES: list[dict[str, Any]] = [
    *({"weights": f"int{bits}"} for bits in range(2, 9)),
    {"weights": "int4_narrow"},
    {"weights": "int8", "per_channel": False},
    *({"activations": f"uint{bits}"} for bits in range(4, 9)),
    {"activations": "int8"},
    {"activations": "int8", "weights": "int8"},
    {"activations": "int5", "weights": "int3"},
    {"activations": "uint4", "weights": "int4", "first_last": "int8"},
]


@pytest.mark.parametrize("choices", TYPES, ids=lambda choices: " ".join(map(str, choices.values())))
def test_every_type_of_weights_and_activations(choices: dict[str, Any], tmp_path: Path) -> None:
    made = lowered(network(), normal_inputs(IMAGE), **choices)
    verdict = made.prove(tmp_path, backend="numpy")
    assert verdict.status is hs.Status.EXACT, str(verdict)
    assert verdict.integer_in_runtime == 1
    assert all(report.comparable for report in codes_of(made, verdict))
    fused = Counter(OnnxRuntimeModel(tmp_path / "model.onnx").kernels().values())
    assert fused >= FUSED
    assert_backends_agree(made.program, arrays(made.inputs(3, 60)))


@pytest.mark.parametrize("activations", ["uint8", "int8", "uint4"])
def test_scales_that_are_powers_of_two_make_ties(activations: str, tmp_path: Path) -> None:
    def pow2(plan: hs.Plan) -> hs.Plan:
        return plan.edit("*", pow2=True)

    made = lowered(network(), normal_inputs(IMAGE), edit=pow2, activations=activations)
    for site in made.program.sites:
        assert np.frexp(made.program.grid(site).scale)[0] == 0.5
    verdict = made.prove(tmp_path)
    assert verdict.status is hs.Status.EXACT, str(verdict)


def test_weights_of_few_bits_have_few_codes() -> None:
    made = lowered(network(), normal_inputs(IMAGE), weights="int3", activations="uint4")
    weights = [name for name in made.program.tensors if name.endswith(":weight")]
    assert len(weights) == 3
    for name in weights:
        codes = made.program.constant(name)
        assert -4 <= codes.min() < codes.max() <= 3
    codes = hs.Engine(made.program).run(arrays(made.inputs(3, 60)), keep=made.program.sites).kept
    assert max(values.max() for values in codes.values()) == 15


# The reference target


@same_padding_warns
@every_case
def test_the_reference_target_runs_16_bits(case: Case) -> None:
    """Codes of 12 bits where products of 16 bits would overflow."""
    made = made_from(case)
    wide = "uint12" if "QLinearMatMul" in case.kernels else "uint16"
    made = lowered(made.module, case.inputs, graph=made.graph, target="reference", activations=wide)
    assert_backends_agree(made.program, arrays(case.inputs(3, 60)))


WIDE: list[dict[str, str]] = [
    {"activations": "uint16", "weights": "int8"},
    {"activations": "int12", "weights": "int12"},
    {"activations": "uint8", "weights": "int16"},
]


def without_products(conv: nn.Module, linear: nn.Module, x: Tensor) -> Tensor:
    return linear(F.hardswish(conv(x)).mean((2, 3))).tanh()


@pytest.mark.parametrize("choices", WIDE, ids=lambda choices: " ".join(choices.values()))
def test_wide_types_are_closer_to_the_float_model(choices: dict[str, str]) -> None:
    module, inputs = (
        Call(without_products, nn.Conv2d(3, 4, 3), nn.Linear(4, 5)),
        normal_inputs(IMAGE),
    )
    errors = []
    for wide in ({}, choices):
        made = lowered(module, inputs, target="reference", **wide)
        seen = inputs(8, 1)
        (wanted,) = real_outputs(made.module, seen)
        assert_backends_agree(made.program, arrays(seen))
        (found,) = hs.Engine(made.program).run(arrays(seen)).outputs
        errors.append(float(np.square(found - wanted).mean()))
    assert errors[1] < errors[0]


def test_accumulators_that_int32_cannot_hold_are_named() -> None:
    wide = nn.Linear(140_000, 2)
    nn.init.ones_(wide.weight)
    network = Call(lambda linear, x: linear(x), wide)
    with pytest.raises(ProgramError, match=r"part\.0:out: .* may reach \d{10,} in channel"):
        lowered(network, normal_inputs((140_000,)), redraw=False)


@pytest.mark.parametrize("choices", [{"activations": "uint16"}, {"weights": "int16"}], ids=str)
def test_the_runtime_has_no_wide_types(choices: dict[str, str]) -> None:
    with pytest.raises(PlanError, match=r"target 'onnxruntime' accepts .* of 2 to 8 bits"):
        lowered(network(), normal_inputs(IMAGE), **choices)
