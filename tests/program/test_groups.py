"""Weights with a scale for each group: exact sums, requantized and added by the definition."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from halfstep.core.grid import Affine, group_count
from halfstep.core.qtype import INT8_NARROW, QType
from halfstep.core.requant import float_multiplier
from halfstep.errors import ProgramError
from halfstep.program.check import check
from halfstep.program.engine import Engine
from halfstep.program.ir import IntProgram
from halfstep.program.kernels import groups as module
from tests.program import oracle
from tests.program.build import N, grid, weighted

Array = NDArray[Any]
WINDOW = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}


def group_grid(shape: tuple[int, ...], size: int, rng: np.random.Generator) -> Affine:
    n_groups = group_count(int(np.prod(shape[1:])), size)
    scale = np.exp(rng.uniform(-7, -3, (shape[0], n_groups))).astype(np.float32)
    return Affine(INT8_NARROW, scale, np.int32(0), 0, size)


def layer(
    kind: str, size: int, seed: int, has_bias: bool = True, inputs: int = 4, conv_groups: int = 1
) -> tuple[IntProgram, Array]:
    """A layer with groups of so many weights, and codes to run it on."""
    rng = np.random.default_rng(seed)
    x_grid = grid(0.05, 7)
    if kind == "linear":
        shapes, attrs = ((N, 3, inputs), (N, 3, 6), (6, inputs)), {}
    else:
        kernel = (inputs // conv_groups, 3, 2)
        shapes, attrs = ((N, inputs, 6, 7), (N, 6, 3, 8), (6, *kernel)), {
            **WINDOW, "groups": conv_groups,
        }  # fmt: skip
    weight = rng.integers(-127, 128, shapes[2]).astype(np.int8)
    bias = rng.integers(-9000, 9000, 6).astype(np.int32) if has_bias else None
    scales = group_grid(shapes[2], size, rng)
    program = weighted(kind, *shapes[:2], weight, bias, attrs, x_grid=x_grid, weight_grid=scales)
    x = rng.integers(0, 256, (3, *shapes[0][1:])).astype(np.uint8)
    return check(program), x


def by_definition(program: IntProgram, x: Array) -> Array:
    """Every group alone in int64, then one float32 product and one float32 sum after the other."""
    op, y = program.ops[0], program.grid("y")
    weight, on = program.constant("w").astype(np.int64), program.grid("w")
    assert on.group_size is not None
    steps = x.astype(np.int64) - int(program.grid("x").zero_point)
    axis = -1 if op.kind == "linear" else 1
    total = np.float32(0)
    flat = weight.reshape(len(weight), -1)
    for group, scale in enumerate(on.scale.T):
        alone = np.zeros_like(flat)
        at = slice(group * on.group_size, (group + 1) * on.group_size)
        alone[:, at] = flat[:, at]
        alone = alone.reshape(weight.shape)
        acc = steps @ alone.T if axis == -1 else oracle.convolution(steps, alone, **op.attrs)
        total = total + _term(acc, program.grid("x"), scale, y, axis)
    if len(op.inputs) > 2:
        bias = program.constant("b").reshape(
            [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
        )
        total = total + _term(bias, program.grid("x"), on.scale.max(axis=1), y, axis)
    return np.clip(np.rint(total) + int(y.zero_point), 0, 255).astype(np.uint8)


def _term(acc: Array, x: Affine, scale: Array, y: Affine, axis: int) -> Array:
    multiplier = float_multiplier(x.scale, scale, y.scale)
    shape = [1] * acc.ndim
    shape[axis] = -1
    return acc.astype(np.float32) * multiplier.reshape(shape)


def codes(program: IntProgram, x: Array, backend: str = "numpy") -> Array:
    return Engine(program, backend).run([x]).outputs[0]


CASES = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["linear", "conv"]),
        "size": st.integers(1, 26),
        "seed": st.integers(0, 999),
        "has_bias": st.booleans(),
    }
)


@given(CASES)
@settings(max_examples=40, deadline=None)
def test_codes_are_those_of_the_definition(case: dict[str, Any]) -> None:
    program, x = layer(**case)
    expected = by_definition(program, x)
    np.testing.assert_array_equal(codes(program, x), expected)
    np.testing.assert_array_equal(codes(program, x, "torch"), expected)


@pytest.mark.parametrize("conv_groups", [2, 3, 6])
@pytest.mark.parametrize("size", [1, 4, 5, 6])
def test_groups_of_a_grouped_convolution(conv_groups: int, size: int) -> None:
    program, x = layer("conv", size, 0, inputs=6, conv_groups=conv_groups)
    expected = by_definition(program, x)
    for backend in ("numpy", "torch"):
        np.testing.assert_array_equal(codes(program, x, backend), expected)


@pytest.mark.parametrize(
    ("x", "code"), [((3, 2**13, -(2**13)), 0), ((2**13, -(2**13), 3), 1), ((2**13, 3, -(2**13)), 0)]
)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_groups_are_added_in_their_order(x: tuple[int, ...], code: int, backend: str) -> None:
    """3/4 vanishes beside 2^24, and is rounded to 1 where that was taken away before."""
    weight = np.asarray([[1 if value == 3 else 2**13 for value in x]], np.int16)
    wide = QType(16)
    program = weighted(
        "linear", (N, 3), (N, 1), weight,
        x_grid=grid(1, 0, wide),
        weight_grid=Affine(wide, np.ones((1, 3)), np.int32(0), 0, 1),
        out_grid=grid(4, 0, wide),
        accumulator_bits=48,
    )  # fmt: skip
    assert codes(check(program), np.asarray([x], np.int16), backend).tolist() == [[code]]


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_one_group_is_a_channel(kind: str) -> None:
    """With one group, and without a bias, which is added elsewhere, the codes are the same."""
    program, x = layer(kind, 99, 3, has_bias=False)
    tensors = dict(program.tensors)
    on = program.grid("w")
    plain = Affine(on.qtype, on.scale[:, 0], np.int32(0), 0)
    tensors["w"] = type(tensors["w"])("w", tensors["w"].shape, plain, data=program.constant("w"))
    alone = IntProgram("reference", ("x",), ("y",), tensors, program.ops)
    np.testing.assert_array_equal(codes(program, x), codes(alone, x))


def test_sums_too_large_for_float32_are_added_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    wide = QType(16, narrow=True)
    weight = rng.integers(-32767, 32768, (3, 40)).astype(np.int16)
    scale = np.exp(rng.uniform(-12, -11, (3, 2))).astype(np.float32)
    program = weighted(
        "linear", (N, 40), (N, 3), weight, None,
        x_grid=grid(0.001, 0, QType(16)),
        weight_grid=Affine(wide, scale, np.int32(0), 0, 20),
        out_grid=grid(0.01, 0, QType(16)),
        accumulator_bits=48,
    )  # fmt: skip
    x = rng.integers(-32768, 32768, (5000, 40)).astype(np.int16)
    steps = x.astype(np.int64)
    terms = [
        (steps[:, at] @ weight[:, at].T.astype(np.int64)).astype(np.float32)
        * float_multiplier(np.float32(0.001), scale[:, g], np.float32(0.01))
        for g, at in enumerate((slice(0, 20), slice(20, 40)))
    ]
    expected = np.clip(np.rint(terms[0] + terms[1]), -32768, 32767)
    for backend in ("numpy", "torch"):
        np.testing.assert_array_equal(codes(check(program), x, backend), expected)
    monkeypatch.setattr(module, "FLOAT32_EXACT", 2**62)
    assert (codes(program, x) != expected).any(), "float32 alone gives other codes"


def test_what_has_no_form_for_groups_is_refused() -> None:
    program, _ = layer("linear", 2, 0)
    ops = tuple(_changed(op, formula="double_rounding") for op in program.ops)
    text = r"^y: linear breaks the rule 'weights': groups along axis 0 with formula 'double_round"
    with pytest.raises(ProgramError, match=text):
        check(IntProgram("reference", ("x",), ("y",), program.tensors, ops))


def _changed(op: Any, **fields: Any) -> Any:
    return type(op)(**{**vars(op), **fields})
