"""Conv, transposed conv, linear and matmul: both backends against sums by definition in int64."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from halfstep.core.execution import Execution
from halfstep.core.grid import Affine
from halfstep.core.qtype import INT8, INT8_NARROW, UINT8, QType
from halfstep.core.requant import ACCUMULATOR
from halfstep.program import bounds
from halfstep.program.check import check
from halfstep.program.engine import Engine
from halfstep.program.ir import IntProgram
from halfstep.program.kernels import weighted as kernels
from tests.broken import program as broken
from tests.program import oracle
from tests.program.build import N, codes, grid, one_op, weighted

Array = NDArray[Any]
BACKENDS = ("numpy", "torch")


def run(program: IntProgram, *inputs: Array) -> Array:
    """The codes of the one output, the same from every backend."""
    found = [Engine(check(program), backend).run(inputs).outputs[0] for backend in BACKENDS]
    assert found[0].dtype == found[1].dtype == program.tensor(program.outputs[0]).dtype
    np.testing.assert_array_equal(found[0], found[1], "numpy and torch differ")
    return found[0]


def expected_codes(program: IntProgram, acc: Array, channel_axis: int) -> Array:
    """Accumulators to codes: the formulas themselves have tests of their own."""
    op = program.ops[0]
    x, w, y = (program.grid(name) for name in (*op.inputs[:2], op.output))
    scale = w.scale
    if scale.ndim:
        if op.kind == "conv_transpose":
            scale = np.tile(scale, op.attrs["groups"])
        shape = [1] * acc.ndim
        shape[channel_axis] = -1
        scale = scale.reshape(shape)
    out = ACCUMULATOR[op.formula or ""](acc, x.scale, scale, y.scale, int(y.zero_point))
    low, high = op.clamp or (y.qtype.qmin, y.qtype.qmax)
    return np.clip(out, low, high)


def with_bias(acc: Array, bias: Array | None, channel_axis: int) -> Array:
    if bias is None:
        return acc
    shape = [1] * acc.ndim
    shape[channel_axis] = -1
    return acc + bias.astype(np.int64).reshape(shape)


# Shapes

TYPES = [UINT8, INT8, QType(4, False), QType(8, True, narrow=True)]


@st.composite
def layers(draw: Any, kind: str) -> tuple[IntProgram, Array]:
    """A program of one conv, transposed conv or linear, and codes for its input."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_spatial = draw(st.sampled_from([1, 2])) if kind != "linear" else 0
    groups = draw(st.sampled_from([1, 1, 2, 3])) if n_spatial else 1
    inputs, outputs = (groups * draw(st.integers(1, 3)) for _ in range(2))
    attrs: dict[str, Any] = {}
    if n_spatial:
        kernel = tuple(draw(st.integers(1, 3)) for _ in range(n_spatial))
        attrs = {
            "stride": tuple(draw(st.integers(1, 3)) for _ in kernel),
            "dilation": tuple(draw(st.integers(1, 2)) for _ in kernel),
            "padding": tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in kernel),
            "groups": groups,
        }
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, attrs["dilation"], strict=True)]
        sizes = tuple(span + draw(st.integers(0, 4)) for span in spans)
        x_shape = (draw(st.integers(1, 2)), inputs, *sizes)
        if kind == "conv_transpose":
            attrs["output_padding"] = tuple(draw(st.integers(0, s - 1)) for s in attrs["stride"])
            attrs["padding"] = tuple(
                (min(a, span - 1), min(b, span - 1))
                for (a, b), span in zip(attrs["padding"], spans, strict=True)
            )
            w_shape: tuple[int, ...] = (inputs, outputs // groups, *kernel)
        else:
            w_shape = (outputs, inputs // groups, *kernel)
    else:
        leading = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        x_shape, w_shape = (*leading, inputs), (outputs, inputs)
    weight = rng.integers(-127, 128, w_shape).astype(np.int8)
    bias = rng.integers(-5000, 5000, outputs).astype(np.int32) if draw(st.booleans()) else None
    axis = 1 if kind == "conv_transpose" else 0
    scale: Any = 0.01
    if draw(st.booleans()):
        scale = rng.uniform(0.001, 0.02, w_shape[axis]).astype(np.float32)
    per_channel = axis if np.ndim(scale) else None
    qtype = draw(st.sampled_from(TYPES))
    x_grid = grid(0.05, rng.integers(qtype.qmin, qtype.qmax + 1), qtype)
    y_type = draw(st.sampled_from(TYPES))
    program = weighted(
        kind,
        (N, *x_shape[1:]),
        (N, *_out_shape(kind, x_shape, w_shape, attrs)[1:]),
        weight,
        bias,
        attrs,
        x_grid=x_grid,
        weight_grid=Affine(INT8_NARROW, scale, np.int32(0), per_channel),
        out_grid=grid(rng.uniform(0.02, 0.3), rng.integers(y_type.qmin, y_type.qmax + 1), y_type),
        formula=draw(st.sampled_from(list(ACCUMULATOR))),
        clamp=draw(st.sampled_from([None, (y_type.qmin + 3, y_type.qmax - 2)])),
    )
    x = rng.integers(qtype.qmin, qtype.qmax + 1, x_shape).astype(qtype.storage)
    return program, x


def _out_shape(
    kind: str, x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, Any]
) -> tuple[int, ...]:
    if kind == "linear":
        return (*x[:-1], w[0])
    zeros = np.zeros(x, np.int64), np.zeros(w, np.int64)
    return _sums(kind, *zeros, attrs).shape


def _sums(kind: str, x: Array, weight: Array, attrs: Any) -> Array:
    x, weight = x.astype(np.int64), weight.astype(np.int64)
    if kind == "linear":
        return x @ weight.T
    definition = oracle.convolution if kind == "conv" else oracle.transposed
    return definition(x, weight, **attrs)


def assert_sums_are_those_of_the_definition(kind: str, program: IntProgram, x: Array) -> None:
    """Law: the codes are the requantized sums of the operation's definition."""
    op, axis = program.ops[0], -1 if kind == "linear" else 1
    steps = x.astype(np.int64) - int(program.grid("x").zero_point)
    acc = _sums(kind, steps, program.constant("w"), op.attrs)
    acc = with_bias(acc, program.constant("b") if len(op.inputs) > 2 else None, axis)
    found = run(program, x)
    np.testing.assert_array_equal(found, expected_codes(program, acc, axis), f"sums of {op}")


@pytest.mark.parametrize("kind", ["conv", "conv_transpose", "linear"])
def test_sums_are_those_of_the_definition(kind: str) -> None:
    @settings(max_examples=60)
    @given(layers(kind))
    def law(layer: tuple[IntProgram, Array]) -> None:
        assert_sums_are_those_of_the_definition(kind, *layer)

    law()


@pytest.mark.parametrize("specimen", broken.CONVOLVE_SPECIMENS)
def test_broken_convolution_is_rejected(specimen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from halfstep.program.backends.numpy import NumpyBackend
    from halfstep.program.backends.torch import TorchBackend

    for backend in (NumpyBackend, TorchBackend):
        convolve = broken.CONVOLVE_SPECIMENS[specimen](backend.convolve)
        monkeypatch.setattr(backend, "convolve", convolve)
    with pytest.raises(AssertionError, match="sums of"):
        test_sums_are_those_of_the_definition("conv")


@settings(max_examples=30)
@given(st.data())
def test_matmul_is_that_of_the_definition(data: Any) -> None:
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, inner, columns = (draw(st.integers(1, 5)) for _ in range(3))
    stack = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    types = [draw(st.sampled_from(TYPES)) for _ in range(2)]
    a, b = (
        rng.integers(t.qmin, t.qmax + 1, (*stack, *shape)).astype(t.storage)
        for t, shape in zip(types, ((rows, inner), (inner, columns)), strict=True)
    )
    ga, gb = (grid(s, t.qmax // 3, t) for s, t in zip((0.05, 0.03), types, strict=True))
    alpha = draw(st.sampled_from([1.0, 0.125, 1 / np.sqrt(3)]))
    inputs = [codes("a", a.shape, ga), codes("b", b.shape, gb)]
    y = codes("y", (*stack, rows, columns), grid(0.7, 100))
    program = one_op(
        "matmul", inputs, y, Execution.INTEGER, attrs={"alpha": alpha}, formula="float"
    )
    acc = (a.astype(np.int64) - int(ga.zero_point)) @ (b.astype(np.int64) - int(gb.zero_point))
    scale = y.grid.scale / np.float32(alpha) if y.grid else 1
    expected = ACCUMULATOR["float"](acc, ga.scale, gb.scale, scale, 100)
    np.testing.assert_array_equal(run(program, a, b), np.clip(expected, 0, 255))


# Sums that float32 cannot hold


def wide_layer(n_inputs: int, kernel: int, groups: int = 1, bias: int = 0) -> IntProgram:
    """Weights near 127 everywhere; an output scale on which one unit of the sum is a code.

    The output has zero point 2^15, so that the codes show the sum around a large constant.
    """
    rng = np.random.default_rng(0)
    outputs = 2 * groups
    weight = rng.integers(120, 128, (outputs, n_inputs // groups, kernel)).astype(np.int8)
    attrs = {"stride": (1,), "padding": ((0, 0),), "dilation": (1,), "groups": groups}
    return weighted(
        "conv",
        (N, n_inputs, kernel),
        (N, outputs, 1),
        weight,
        np.asarray([bias - 255 * int(row.sum()) for row in weight.astype(int)], np.int32),
        attrs,
        x_grid=grid(1.0, 0),
        weight_grid=grid(1.0, 0, INT8_NARROW),
        out_grid=grid(1.0, 2**15, QType(16, signed=False)),
    )


def large_codes(program: IntProgram) -> Array:
    """Near the largest code: sums, with the bias that takes most of it away, of some thousand."""
    shape = (50, *program.tensor("x").shape[1:])
    x = np.full(shape, 255, np.uint8)
    rng = np.random.default_rng(1)
    return np.where(rng.random(shape) < 20 / x[0].size, 255 - rng.integers(0, 9, shape), x).astype(
        np.uint8
    )


# name -> (layer, in how many parts its inputs are summed; none: float64, bias in the convolution)
WIDE = {
    "fits": (wide_layer(64, 3), 1),
    "bias does not fit": (wide_layer(400, 1), 1),
    "two parts": (wide_layer(300, 3), 2),
    "more parts": (wide_layer(1500, 2), 6),
    "float64 for many parts": (wide_layer(2000, 3), None),
    "float64 for groups": (wide_layer(1200, 2, groups=2), None),
}


def parts_of(program: IntProgram) -> int | None:
    weight, op = program.constant("w"), program.ops[0]
    steps = bounds.largest_step(program.grid("x"))
    return len(bounds.float32_parts(weight, steps, op.attrs["groups"])) or None


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bool]]]:
    """The dtype of every convolution, and whether it adds the bias."""
    from halfstep.program.backends.numpy import NumpyBackend

    calls: list[tuple[str, bool]] = []
    convolve = NumpyBackend.convolve

    def spy(self: Any, x: Array, weight: Array, bias: Array | None, *rest: Any) -> Array:
        calls.append((x.dtype.name, bias is not None))
        return convolve(self, x, weight, bias, *rest)

    monkeypatch.setattr(NumpyBackend, "convolve", spy)
    yield calls


@pytest.mark.parametrize("name", WIDE)
def test_large_sums_are_exact(name: str, seen: list[tuple[str, bool]]) -> None:
    program, parts = WIDE[name]
    assert parts_of(program) == parts
    assert_sums_are_those_of_the_definition("conv", program, large_codes(program))
    total = int(bounds.accumulator_bounds(program, program.ops[0]).max())
    if parts is None:
        assert seen == [("float64", True)]
    else:
        assert seen == [("float32", total < 2**24)] * parts


@pytest.mark.parametrize("name", [name for name, (_, parts) in WIDE.items() if parts != 1])
def test_float32_alone_would_give_other_codes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bounds, kernels):
        monkeypatch.setattr(module, "FLOAT32_EXACT", 2**60)
    program, _ = WIDE[name]
    assert parts_of(program) == 1
    with pytest.raises(AssertionError, match=r"sums of|numpy and torch differ"):
        assert_sums_are_those_of_the_definition("conv", program, large_codes(program))


def test_a_bias_beyond_float32_is_added_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = WIDE["bias does not fit"]
    odd = np.full((1, 400, 1), 255, np.uint8)
    odd[0, :7, 0] -= 1
    assert_sums_are_those_of_the_definition("conv", program, odd)
    acc = _sums("conv", odd, program.constant("w"), program.ops[0].attrs)
    assert np.abs(acc).max() < 2**24 < np.abs(program.constant("b")).max() + np.abs(acc).max()


@pytest.mark.parametrize("inner", [258, 259, 1000])
def test_matmul_of_the_largest_codes_is_exact(inner: int) -> None:
    """The bound of 259 products of 255 x 255 is above 2^24: from there on in float64."""
    a = np.full((2, inner), 255, np.uint8)
    b = np.full((inner, 3), 255, np.uint8)
    a[:, 0], b[0] = [253, 254], [253, 254, 255]
    inputs = [codes("a", a.shape, grid()), codes("b", b.shape, grid())]
    y = codes("y", (2, 3), grid(2048.0, 0, QType(16, signed=False)))
    fields = {"attrs": {"alpha": 1.0}, "formula": "double_rounding"}
    program = one_op("matmul", inputs, y, Execution.INTEGER, **fields)
    acc = a.astype(np.int64) @ b.astype(np.int64)
    expected = ACCUMULATOR["double_rounding"](acc, *(np.float32(s) for s in (1, 1, 2048)), 0)
    np.testing.assert_array_equal(run(program, a, b), np.clip(expected, 0, 2**16 - 1))


def test_linear_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(120, 128, (3, 1200)).astype(np.int8)
    bias = (-255 * weight.astype(int).sum(axis=1)).astype(np.int32)
    y = grid(1.0, 2**15, QType(16, signed=False))
    ones = {"x_grid": grid(), "weight_grid": grid(1.0, 0, INT8_NARROW), "out_grid": y}
    program = weighted("linear", (N, 1200), (N, 3), weight, bias, **ones)
    x = np.where(rng.random((40, 1200)) < 0.02, 250, 255).astype(np.uint8)
    assert len(bounds.float32_parts(weight, 255, 1)) == 3
    assert_sums_are_those_of_the_definition("linear", program, x)
    for module in (bounds, kernels):
        monkeypatch.setattr(module, "FLOAT32_EXACT", 2**60)
    with pytest.raises(AssertionError, match=r"sums of|numpy and torch differ"):
        assert_sums_are_those_of_the_definition("linear", program, x)


# What a user may have allowed for training


@pytest.mark.parametrize("allowed", ["conv", "matmul"])
def test_fewer_bits_allowed_for_float32_do_not_reach_the_engine(
    allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfstep.program.backends.torch import TorchBackend

    backend = TorchBackend()
    x, weight = torch.ones(1, 1, 3), torch.ones(1, 1, 2)
    dtypes: list[torch.dtype] = []
    monkeypatch.setattr(torch.backends.mkldnn, allowed, _Precision("bf16"))
    for name in ("conv1d", "linear"):
        monkeypatch.setattr(f"torch.nn.functional.{name}", _recording(name, dtypes))
    assert backend.convolve(x, weight, None, (1,), (1,), 1).dtype == torch.float32
    assert backend.linear(x[0], torch.ones(2, 3), torch.ones(2)).dtype == torch.float32
    wide = [torch.float64, torch.float32]
    assert dtypes == (wide if allowed == "conv" else wide[::-1])


class _Precision:
    def __init__(self, name: str) -> None:
        self.fp32_precision = name


def _recording(name: str, dtypes: list[torch.dtype]) -> Any:
    function = getattr(torch.nn.functional, name)

    def call(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        dtypes.append(x.dtype)
        return function(x, *rest)

    return call


def test_autocast_of_the_caller_does_not_reach_the_engine() -> None:
    program, _ = WIDE["fits"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_sums_are_those_of_the_definition("conv", program, large_codes(program))


def test_every_sum_is_the_same_with_one_sample_as_with_many() -> None:
    program, _ = WIDE["two parts"]
    x = large_codes(program)[:5]
    alone = [run(program, x[i : i + 1]) for i in range(5)]
    np.testing.assert_array_equal(run(program, x), np.concatenate(list(itertools.chain(alone))))
