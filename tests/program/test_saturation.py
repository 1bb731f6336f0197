"""Proofs of sums: every bound is reached by some input and exceeded by none."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from halfstep.core.execution import Execution
from halfstep.core.qtype import INT8, UINT8, QType
from halfstep.errors import UnknownNameError
from halfstep.program import pairs, saturation
from halfstep.program.code_ranges import code_ranges, read_range
from halfstep.program.engine import Engine
from halfstep.program.ir import IntProgram, Op, Tensor
from halfstep.program.pairs import adds_pairs, from_pairs, in_pairs, pair_sums
from halfstep.program.saturation import prove_sums
from tests.broken import saturation as broken
from tests.program.build import N, codes, grid, one_op, weighted

Array = NDArray[Any]
TWO_BITS = QType(2, signed=False)  # 0 to 3, stored as uint8


def conv(inputs: int, kernel: tuple[int, ...], groups: int = 1, zero: int = 1) -> IntProgram:
    """A convolution with one output position, of random weights."""
    rng = np.random.default_rng(inputs * 100 + sum(kernel) + groups)
    weight = rng.integers(-127, 128, (4, inputs, *kernel)).astype(np.int8)
    ones = (1,) * len(kernel)
    attrs = {
        "stride": ones,
        "dilation": ones,
        "padding": ((0, 0),) * len(kernel),
        "groups": groups,
    }
    shapes = (N, inputs * groups, *kernel), (N, 4, *ones)
    return weighted("conv", *shapes, weight, None, attrs, x_grid=grid(1, zero, TWO_BITS))


def linear(inputs: int, on: QType = TWO_BITS, zero: int = 1) -> IntProgram:
    rng = np.random.default_rng(inputs)
    weight = rng.integers(-127, 128, (3, inputs)).astype(np.int8)
    bias = rng.integers(-400, 400, 3).astype(np.int32)
    return weighted("linear", (N, inputs), (N, 3), weight, bias, x_grid=grid(1, zero, on))


LAYERS = {
    "conv of 2 channels": conv(2, (2,)),
    "conv of 3 channels": conv(3, (2,)),
    "conv in two dimensions": conv(1, (2, 2)),
    "grouped conv": conv(2, (2,), groups=2),
    "conv with an odd number of products": conv(1, (3,)),
    "linear": linear(4),
    "linear with an odd number of inputs": linear(5),
    "linear of one input": linear(1, zero=0),
}


# Sums of pairs


def added_first(weight: Array, x: Array) -> Array:
    """By the definition, one product after the other: (samples, pairs) of one output channel.

    Args:
        weight: (inputs of the group, *kernel).
        x: the group's codes at the kernel's positions, (samples, inputs of the group, *kernel).
    """
    products = [
        x[(slice(None), channel, *position)].astype(np.int64) * int(weight[(channel, *position)])
        for position in np.ndindex(*weight.shape[1:])
        for channel in range(weight.shape[0])
    ]
    return np.stack([sum(products[i : i + 2]) for i in range(0, len(products), 2)], axis=1)


def every_input(program: IntProgram) -> Array:
    shape = program.tensor("x").shape[1:]
    qtype = program.grid("x").qtype
    values = itertools.product(range(qtype.qmin, qtype.qmax + 1), repeat=int(np.prod(shape)))
    return np.array(list(values)).reshape(-1, *shape)


def assert_pair_sums_are_reached(
    bounds: Callable[..., tuple[Array, Array]], program: IntProgram
) -> None:
    """Law: over all inputs, the smallest and the largest sum of a pair are the bounds."""
    op, x, weight = program.ops[0], every_input(program), program.constant("w")
    groups = op.attrs.get("groups", 1)
    lowest, highest = bounds(program, op, code_ranges(program))
    for output, row in enumerate(weight):
        group = output // (len(weight) // groups)
        sums = added_first(row, x.reshape(len(x), groups, -1, *x.shape[2:])[:, group])
        assert (lowest[output], highest[output]) == (sums.min(), sums.max()), "another bound"


@pytest.mark.parametrize("layer", LAYERS)
def test_some_input_reaches_the_bound_of_pairs_and_none_goes_beyond(layer: str) -> None:
    assert adds_pairs(LAYERS[layer], LAYERS[layer].ops[0])
    assert_pair_sums_are_reached(pair_sums, LAYERS[layer])


def for_all_layers(bounds: Callable[..., Any]) -> None:
    for program in LAYERS.values():
        assert_pair_sums_are_reached(bounds, program)


@pytest.mark.parametrize("specimen", broken.SUM_SPECIMENS)
def test_a_broken_bound_of_pairs_is_rejected(specimen: str) -> None:
    with pytest.raises(AssertionError, match="another bound"):
        for_all_layers(broken.SUM_SPECIMENS[specimen])


@pytest.mark.parametrize("specimen", broken.ORDER_SPECIMENS)
def test_a_broken_order_of_pairs_is_rejected(
    specimen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "in_pairs", broken.ORDER_SPECIMENS[specimen])
    with pytest.raises(AssertionError, match="another bound"):
        for_all_layers(pair_sums)


@pytest.mark.parametrize("shape", [(3, 4), (3, 5), (2, 3, 2), (4, 1, 3, 3), (2, 2, 2, 3)])
def test_pairs_become_the_weight_again(shape: tuple[int, ...]) -> None:
    weight = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert np.array_equal(from_pairs(in_pairs(weight), shape), weight)


def product(a: QType, b: QType, inner: int = 2) -> IntProgram:
    inputs = [codes("a", (N, 3, inner), grid(1, 0, a)), codes("b", (N, inner, 3), grid(1, 0, b))]
    out, fields = codes("y", (N, 3, 3), grid()), {"attrs": {"alpha": 1.0}, "formula": "float"}
    return one_op("matmul", inputs, out, Execution.INTEGER, **fields)


def test_pairs_of_a_product_of_activations() -> None:
    small, signed = QType(2, signed=False), QType(2)
    program = product(small, signed)
    pairs_of = [
        a @ b
        for a in itertools.product(range(4), repeat=2)
        for b in (np.array(b) for b in itertools.product(range(-2, 2), repeat=2))
    ]
    (lowest,), (highest,) = pair_sums(program, program.ops[0], code_ranges(program))
    assert (lowest, highest) == (min(pairs_of), max(pairs_of))
    alone = product(small, signed, inner=1)
    assert [end.tolist() for end in pair_sums(alone, alone.ops[0], code_ranges(alone))] == [
        [-6],
        [3],
    ]


def test_what_adds_no_pairs() -> None:
    depthwise = conv(1, (3,), groups=4)
    others = [product(UINT8, UINT8), product(INT8, INT8), linear(4, INT8), depthwise]
    assert not any(adds_pairs(program, program.ops[0]) for program in others)
    assert not prove_sums(depthwise, "int16_pairs").ops
    assert adds_pairs(product(UINT8, INT8), product(UINT8, INT8).ops[0])
    # With one group a kernel may as well be that of any other convolution.
    assert adds_pairs(conv(1, (3,)), conv(1, (3,)).ops[0])


# Accumulators


@pytest.mark.parametrize("layer", ["linear", "linear with an odd number of inputs"])
def test_some_input_reaches_the_bound_of_partial_sums(layer: str) -> None:
    program = LAYERS[layer]
    steps = every_input(program) - int(program.grid("x").zero_point)
    products = steps[:, None] * program.constant("w").astype(np.int64)
    bias = np.broadcast_to(program.constant("b"), (len(steps), 3))[..., None]
    terms = np.concatenate([products, bias], axis=2)
    (found,) = prove_sums(program, "int24").ops
    assert found.highest == np.maximum(terms, 0).sum(axis=2).max()
    assert found.lowest == np.minimum(terms, 0).sum(axis=2).min()


def wide(inputs: int, weight: int) -> IntProgram:
    data = np.zeros((3, inputs), np.int8)
    data[1] = weight
    return weighted("linear", (N, inputs), (N, 3), data, x_grid=grid(1, 0))


@pytest.mark.parametrize(
    ("accumulator", "fits", "overflows"),
    [
        ("int24", wide(259, 127), wide(260, 127)),  # 259 * 127 * 255 is below 2^23
        ("int24", wide(263, -125), wide(264, -125)),
        ("int16_pairs", wide(2, 64), wide(2, 65)),
        ("int16_pairs", wide(2, -64), wide(2, -65)),
        ("int16_pairs", wide(1, 127), wide(3, 127)),
        ("int32", wide(66_000, 127), wide(66_400, 127)),
    ],
)
def test_the_limit(accumulator: str, fits: IntProgram, overflows: IntProgram) -> None:
    assert prove_sums(fits, accumulator).safe
    (found,) = prove_sums(overflows, accumulator).unsafe
    assert found.unsafe == (1,)


def test_every_operation_with_sums_is_in_the_proof() -> None:
    program = product(UINT8, UINT8, inner=200)
    (found,) = prove_sums(program, "int32").ops
    assert (found.lowest, found.highest) == (-200 * 255**2, 200 * 255**2)
    assert not prove_sums(program, "int24").safe


# Ranges of codes


def chain() -> IntProgram:
    """Codes through a clamp, a table, copies, padding and a constant beside them."""
    on, one = grid(1, 2), grid(1, 0)
    table = np.concatenate([np.arange(40, 70), np.arange(226) % 7 + 50]).astype(np.uint8)
    tensors = [
        Tensor("x", (N, 1, 1), one),
        Tensor("one", (1,), one, data=np.uint8([1])),
        Tensor("product", (N, 1, 1), one),
        Tensor("table", (256,), dtype="uint8", data=table),
        Tensor("looked", (N, 1, 1), on),
        Tensor("padded", (N, 1, 3), on),
        Tensor("constant", (1, 1, 3), on, data=np.uint8([[[90, 91, 92]]])),
        Tensor("repeated", (N, 1, 3), on),
        Tensor("joined", (N, 2, 3), on),
    ]
    integer, copy = Execution.INTEGER, Execution.COPY
    margins = {"padding": ((0, 0), (0, 0), (1, 1)), "mode": "constant", "value": 0.0}
    ops = (
        Op("mul", ("x", "one"), "product", integer, {}, "offset_inside", (5, 20)),
        Op("lookup", ("product", "table"), "looked", integer, clamp=(46, 255)),
        Op("pad", ("looked",), "padded", copy, margins),
        Op("expand", ("constant",), "repeated", copy, {"shape": (N, 1, 3)}),
        Op("concat", ("padded", "repeated"), "joined", copy, {"axis": 1}),
    )
    by_name = {tensor.name: tensor for tensor in tensors}
    return IntProgram("reference", ("x",), ("joined",), by_name, ops)


def test_ranges_are_those_that_inputs_reach() -> None:
    program = chain()
    made = [op.output for op in program.ops]
    x = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1)
    kept = Engine(program).run([x], keep=made).kept
    found = code_ranges(program)
    assert found["x"] == (0, 255)
    for name in made:
        assert found[name] == (kept[name].min(), kept[name].max()), name
    assert found["looked"] == (46, 60)
    assert found["padded"] == (2, 60)
    assert found["joined"] == (2, 92)


def test_a_convolution_reads_its_padding() -> None:
    x, op = codes("x", (N, 1, 4), grid(1, 200)), Op("conv", ("x",), "y", Execution.INTEGER)
    padded = Op("conv", ("x",), "y", Execution.INTEGER, {"padding": ((0, 1),)})
    program = IntProgram("reference", ("x",), (), {"x": x}, ())
    assert read_range(program, op, {"x": (3, 7)}) == (3, 7)
    assert read_range(program, padded, {"x": (3, 7)}) == (3, 200)


def test_a_clamp_in_front_makes_weights_safe() -> None:
    program = chain()
    weight = np.full((1, 3), 127, np.int8)
    tensors = dict(program.tensors)
    tensors["w"] = codes("w", weight.shape, grid(1, 0, INT8), weight)
    tensors["y"] = codes("y", (N, 2, 1), grid())
    layer = Op("linear", ("joined", "w"), "y", Execution.INTEGER, {}, "float")
    longer = IntProgram("reference", ("x",), ("y",), tensors, (*program.ops, layer))
    (found,) = prove_sums(longer, "int16_pairs").ops
    assert found.highest == 2 * 92 * 127
    assert found.safe


# For people


def test_the_report_names_channels() -> None:
    data = np.full((12, 4), 127, np.int8)
    data[3] = 1
    program = weighted("linear", (N, 4), (N, 12), data, x_grid=grid(1, 0))
    proof = prove_sums(program, "int16_pairs")
    assert (
        str(proof)
        == repr(proof)
        == (
            "int16_pairs: not proven: the sums of 1 of 1 operation may not fit -32768 to 32767\n"
            "  y: linear: sums from 0 to 64770; 11 of 12 channels may overflow: "
            "0, 1, 2, 4, 5, 6, 7, 8 and 3 more"
        )
    )
    assert str(prove_sums(program, "int32")) == (
        "int32: proven: the sums of 1 operation fit -2147483648 to 2147483647, whatever the "
        "input\n  y: linear: sums from 0 to 129540"
    )


def test_an_unknown_accumulator_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown accumulator 'int16_pair': did you mean"):
        prove_sums(LAYERS["linear"], "int16_pair")
    assert set(saturation.ACCUMULATORS) == {"int32", "int24", "int16_pairs"}
