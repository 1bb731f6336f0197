"""Bounds of accumulators: some input reaches them, and none goes beyond."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from halfstep.core.execution import Execution
from halfstep.core.qtype import INT8, INT8_NARROW, UINT8, QType
from halfstep.program import bounds
from halfstep.program.bounds import accumulator_bounds, float32_parts, largest_step, weight_scales
from halfstep.program.ir import IntProgram, Op
from tests.broken import program as broken
from tests.program import oracle
from tests.program.build import N, codes, grid, one_op, weighted

Array = NDArray[Any]
CONV = {"stride": (1,), "padding": ((0, 0),), "dilation": (1,), "groups": 2}


@pytest.mark.parametrize(
    ("qtype", "zero_point", "largest"),
    [(UINT8, 0, 255), (UINT8, 255, 255), (UINT8, 100, 155), (INT8, 0, 128), (INT8, -128, 255),
     (INT8_NARROW, 0, 127), (QType(4, False), 9, 9), (QType(16), 5, 32773)],
)  # fmt: skip
def test_largest_step(qtype: QType, zero_point: int, largest: int) -> None:
    assert largest_step(grid(1, zero_point, qtype)) == largest


TERNARY = QType(2, narrow=True)  # -1, 0, 1
ODD = QType(2, signed=False)  # 0 to 3


@st.composite
def layers(draw: Any) -> tuple[IntProgram, Array]:
    """A layer with one position, and all inputs that its codes allow: a few hundred."""
    kind = draw(st.sampled_from(["conv", "conv_transpose", "linear"]))
    n_codes = {"conv": 3, "conv_transpose": 1, "linear": 1}[kind] * 2
    groups = 2 if kind != "linear" else 1
    inputs, attrs = 2, {}
    if kind == "conv":
        shapes = (N, inputs, 3), (N, 4, 1), (4, inputs // groups, 3)
        attrs = CONV
    elif kind == "conv_transpose":
        shapes = (N, inputs, 1), (N, 6, 1), (inputs, 3, 1)
        attrs = {**CONV, "output_padding": (0,)}
    else:
        shapes = (N, inputs), (N, 3), (3, inputs)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = rng.integers(-127, 128, shapes[2]).astype(np.int8)
    bias = rng.integers(-300, 300, shapes[1][1]).astype(np.int32)
    grids = [grid(1, 0, TERNARY), grid(1, 0, ODD), grid(1, 2, ODD), grid(1, -2, QType(2))]
    on = draw(st.sampled_from(grids))
    program = weighted(kind, *shapes[:2], weight, bias, attrs, x_grid=on)
    every = np.arange(on.qtype.qmin, on.qtype.qmax + 1)
    x = np.stack(np.meshgrid(*[every] * n_codes), axis=-1).reshape(-1, *shapes[0][1:])
    return program, x


def assert_bound_holds(
    bound: Callable[[IntProgram, Op], Array], program: IntProgram, x: Array
) -> None:
    """Law: no input goes beyond the bound; with as many steps up as down, some reach it."""
    op, on = program.ops[0], program.grid("x")
    steps = x.astype(np.int64) - int(on.zero_point)
    weight, bias = (program.constant(name).astype(np.int64) for name in "wb")
    if op.kind == "linear":
        acc = steps @ weight.T
    else:
        definition = oracle.convolution if op.kind == "conv" else oracle.transposed
        acc = definition(steps, weight, **op.attrs)[..., 0]
    reached = np.abs(acc + bias).max(axis=0)
    found = bound(program, op)
    assert found.shape == reached.shape, "bound of another shape"
    assert np.all(reached <= found), "bound too small"
    if on.qtype is TERNARY:
        np.testing.assert_array_equal(reached, found, "bound too large")


def law(bound: Callable[[IntProgram, Op], Array]) -> None:
    @settings(max_examples=100)
    @given(layers())
    def holds(layer: tuple[IntProgram, Array]) -> None:
        assert_bound_holds(bound, *layer)

    holds()


def test_bounds_hold_and_are_reached() -> None:
    law(accumulator_bounds)


@pytest.mark.parametrize("specimen", broken.BOUND_SPECIMENS)
def test_broken_bound_is_rejected(specimen: str) -> None:
    with pytest.raises(AssertionError, match=r"bound too|bound of"):
        law(broken.BOUND_SPECIMENS[specimen])


def product(shape_a: tuple[int, ...], shape_b: tuple[int, ...]) -> IntProgram:
    inputs = [codes("a", shape_a, grid(1, 5)), codes("b", shape_b, grid(1, 0, INT8))]
    y = codes("y", (N, 1), grid())
    return one_op("matmul", inputs, y, Execution.INTEGER, attrs={"alpha": 1.0}, formula="float")


def test_a_matmul_has_one_bound() -> None:
    program = product((N, 3, 7), (N, 7, 2))
    assert accumulator_bounds(program, program.ops[0]).tolist() == [7 * 250 * 128]


def test_no_accumulator_holds_a_sum_over_the_batch() -> None:
    program = product((3, N), (N, 2))
    assert accumulator_bounds(program, program.ops[0]).max() > 2**31


def test_scales_of_a_transposed_convolution_repeat_for_its_groups() -> None:
    on = grid([1.0, 2.0], [0, 0], INT8_NARROW, axis=1)
    ones = np.ones((2, 2, 1), np.int8)
    attrs = {**CONV, "output_padding": (0,)}
    program = weighted("conv_transpose", (N, 2, 1), (N, 4, 1), ones, None, attrs, weight_grid=on)
    assert weight_scales(program.ops[0], on).tolist() == [1, 2, 1, 2]
    assert weight_scales(program.ops[0], grid(3.0)) == 3
    assert weight_scales(replace(program.ops[0], kind="conv"), on).tolist() == [1, 2]


@given(
    st.integers(1, 3),
    st.integers(1, 30),
    st.integers(1, 3),
    st.sampled_from([1, 255, 4000, 65535]),
    st.integers(0, 2**32 - 1),
)
def test_parts_cover_all_channels_once_and_each_fits_float32(
    outputs: int, inputs: int, kernel: int, steps: int, seed: int
) -> None:
    weight = np.random.default_rng(seed).integers(-127, 128, (outputs, inputs, kernel))
    parts = float32_parts(weight, steps, 1)
    sums = [np.abs(weight[:, part]).sum(axis=(1, 2)).max() * steps for part in parts]
    assert all(total < bounds.FLOAT32_EXACT for total in sums)
    covered = [channel for part in parts for channel in range(inputs)[part]]
    assert covered == (list(range(inputs)) if parts else [])
    fits = np.abs(weight).sum(axis=(1, 2)).max() * steps < bounds.FLOAT32_EXACT
    assert (parts == [slice(None)]) == fits
    if not parts:
        assert np.abs(weight).sum(axis=(1, 2)).max() * steps * 2 > bounds.FLOAT32_EXACT


def test_parts_at_the_edge() -> None:
    edge = np.asarray([[[2**12], [2**12]]])
    assert float32_parts(edge, 2**11 - 1, 1) == [slice(None)]
    assert float32_parts(edge, 2**11, 1) == [slice(0, 1), slice(1, 2)]
    assert float32_parts(edge, 2**12, 1) == []
    assert float32_parts(edge, 2**11, 2) == []
    assert float32_parts(edge, 2**11 - 1, 2) == [slice(None)]
    many = np.full((1, bounds.MOST_PARTS + 1, 1), 2**12)
    assert len(float32_parts(many[:, 1:], 2**12 - 1, 1)) == bounds.MOST_PARTS
    assert float32_parts(many, 2**12 - 1, 1) == []
