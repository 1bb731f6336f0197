"""Where samples lie in a batch, and how they are put together again."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfstep.core.execution import BATCH, Execution
from halfstep.errors import ProgramError
from halfstep.formats.layout import joined
from halfstep.program.batch import one_sample, outer_sizes
from halfstep.program.engine import Engine
from halfstep.program.ir import IntProgram, Op, Tensor


def moved(*shapes: tuple[int, ...], perm: tuple[int, ...]) -> IntProgram:
    """``x`` transposed, then reshaped to one shape after the other."""
    after = tuple(shapes[0][axis] for axis in perm)
    names = ["x", "t", *(f"r{i}" for i in range(len(shapes) - 1))]
    tensors = {
        name: Tensor(name, shape)
        for name, shape in zip(names, [shapes[0], after, *shapes[1:]], strict=True)
    }
    ops = [Op("transpose", ("x",), "t", Execution.FLOAT, {"perm": perm})]
    ops += [
        Op("reshape", (before,), name, Execution.FLOAT, {"shape": tensors[name].shape})
        for before, name in itertools.pairwise(names[1:])
    ]
    return IntProgram("reference", ("x",), (names[-1],), tensors, tuple(ops))


@given(st.data())
def test_samples_that_were_moved_apart_are_put_where_a_batch_has_them(data: st.DataObject) -> None:
    """One sample at a time, joined, is what numpy makes of the whole batch."""
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    perm = tuple(data.draw(st.permutations(range(len(sizes) + 1))))
    at = perm.index(0)
    first = data.draw(st.integers(0, at))  # these axes in front of the samples are joined to them
    last = data.draw(st.integers(at, len(sizes)))
    after = [(BATCH, *sizes)[axis] for axis in perm]
    shape = (*after[:first], BATCH, *after[last + 1 :])
    program = moved((BATCH, *sizes), shape, perm=perm)
    outer = outer_sizes(program)["r0"]
    assert outer == math.prod(after[first:at])
    batch = np.arange(3 * math.prod(sizes)).reshape(3, *sizes)
    size = outer * math.prod(after[at + 1 : last + 1])
    alone = [
        batch[i : i + 1].transpose(perm).reshape(*shape[:first], size, *shape[first + 1 :])
        for i in range(3)
    ]
    whole = batch.transpose(perm).reshape(*shape[:first], 3 * size, *shape[first + 1 :])
    np.testing.assert_array_equal(joined(alone, first, outer), whole)
    if outer > 1 and size > 1:
        assert not np.array_equal(joined(alone, first), whole)


def test_a_reshape_back_ends_it() -> None:
    program = moved((BATCH, 5, 4), (BATCH, 4), (5, BATCH, 4), perm=(1, 0, 2))
    assert outer_sizes(program) == {"x": 1, "t": 1, "r0": 5, "r1": 1}


def test_what_is_computed_value_by_value_keeps_it() -> None:
    program = moved((BATCH, 5, 4), (BATCH, 4), perm=(1, 0, 2))
    result = Tensor("y", (BATCH, 4))
    op = Op("relu", ("r0",), "y", Execution.FLOAT)
    longer = replace(
        program, tensors={**program.tensors, "y": result}, ops=(*program.ops, op), outputs=("y",)
    )
    assert outer_sizes(longer)["y"] == 5


TORN = {
    "in front": moved((BATCH, 3, 4), (2, BATCH), perm=(1, 0, 2)),
    "behind": moved((BATCH, 2, 3), (BATCH, 2), perm=(1, 0, 2)),
}


@pytest.mark.parametrize("case", TORN)
def test_a_reshape_that_tears_samples_apart_is_refused_by_name(case: str) -> None:
    program = TORN[case]
    with pytest.raises(ProgramError, match=r"^r0: reshape from .* to .* tears samples apart; keep"):
        outer_sizes(program)


N, ALL = BATCH, (0, 0)
WINDOW = {"kernel": (2,), "stride": (1,), "padding": (ALL,), "dilation": (1,)}
# Operations on several samples: the kind, the inputs, the output and the attributes; and what
# differs in one that keeps them apart.
Form = tuple[str, list[tuple[int, ...]], tuple[int, ...], dict[str, Any]]
MIXING: dict[str, tuple[Form, Form]] = {
    "a mean": (
        ("mean", [(N, 4)], (4,), {"axes": (0,), "keepdim": False}),
        ("mean", [(N, 4)], (N,), {"axes": (1,), "keepdim": False}),
    ),
    "a sum": (
        ("sum", [(3, N, 4)], (3, 1, 1), {"axes": (1, 2), "keepdim": True}),
        ("sum", [(3, N, 4)], (1, N, 1), {"axes": (0, 2), "keepdim": True}),
    ),
    "a softmax": (
        ("softmax", [(3, N)], (3, N), {"axis": -1}),
        ("softmax", [(3, N)], (3, N), {"axis": 0}),
    ),
    "a join": (
        ("concat", [(N, 4), (N, 4)], (N, 4), {"axis": 0}),
        ("concat", [(N, 4), (N, 4)], (N, 8), {"axis": 1}),
    ),
    "a join with a constant": (
        ("concat", [(2, 4), (N, 4)], (N, 4), {"axis": 0}),
        ("concat", [(N, 1, 4), (N, 2, 4)], (N, 3, 4), {"axis": 1}),
    ),
    "a choice": (
        ("slice", [(N, 4)], (N, 4), {"axis": 0, "start": 0, "stop": 2**63 - 1, "step": 2}),
        ("slice", [(N, 4)], (N, 2), {"axis": 1, "start": 0, "stop": 4, "step": 2}),
    ),
    "padding": (
        ("pad", [(N, 4)], (N, 4), {"padding": ((0, 1), ALL), "mode": "constant", "value": 0}),
        ("pad", [(N, 4)], (N, 5), {"padding": (ALL, (0, 1)), "mode": "constant", "value": 0}),
    ),
    "a product": (
        ("matmul", [(4, N), (N, 5)], (4, 5), {"alpha": 1.0}),
        ("matmul", [(N, 4), (4, 5)], (N, 5), {"alpha": 1.0}),
    ),
    "a product with a vector": (
        ("matmul", [(3, 4, 5), (N,)], (3, 4), {"alpha": 1.0}),
        ("matmul", [(N, 4, 5), (5,)], (N, 4), {"alpha": 1.0}),
    ),
    "all pairs": (
        ("mul", [(N, 1, 4), (1, N, 4)], (N, N, 4), {}),
        ("mul", [(N, 1, 4), (1, 3, 4)], (N, 3, 4), {}),
    ),
    "a window": (
        ("max_pool", [(2, 3, N)], (2, 3, N), WINDOW),
        ("max_pool", [(N, 3, 5)], (N, 3, 4), WINDOW),
    ),
}


def one(form: Form) -> IntProgram:
    kind, shapes, out, attrs = form
    names = [f"x{i}" for i in range(len(shapes))]
    tensors = {n: Tensor(n, shape) for n, shape in zip(names, shapes, strict=True)}
    op = Op(kind, tuple(names), "y", Execution.FLOAT, attrs)
    return IntProgram("c99", tuple(names), ("y",), {**tensors, "y": Tensor("y", out)}, (op,))


@pytest.mark.parametrize("case", MIXING)
def test_what_reads_several_samples_is_refused_by_name(case: str) -> None:
    mixing, apart = map(one, MIXING[case])
    text = f"^y: {mixing.ops[0].kind} of .* several samples .*'c99' runs one at a time; change"
    with pytest.raises(ProgramError, match=text):
        outer_sizes(mixing)
    assert outer_sizes(apart)["y"] == 1


def test_values_that_have_their_samples_in_other_places_do_not_meet() -> None:
    """Both are (4 N, 2): of one, samples are neighbours, and of the other they are 4 rows apart."""
    tensors = {
        "x": Tensor("x", (BATCH, 4, 2)),
        "t": Tensor("t", (4, BATCH, 2)),
        "a": Tensor("a", (BATCH, 2)),
        "b": Tensor("b", (BATCH, 2)),
        "y": Tensor("y", (BATCH, 2)),
    }
    to_rows = {"shape": (BATCH, 2)}
    ops = (
        Op("transpose", ("x",), "t", Execution.FLOAT, {"perm": (1, 0, 2)}),
        Op("reshape", ("x",), "a", Execution.FLOAT, to_rows),
        Op("reshape", ("t",), "b", Execution.FLOAT, to_rows),
        Op("add", ("a", "b"), "y", Execution.FLOAT),
    )
    with pytest.raises(ProgramError, match=r"^y: add of .* several samples"):
        outer_sizes(IntProgram("c99", ("x",), ("y",), tensors, ops))


def test_one_sample_is_what_the_engine_makes_of_one() -> None:
    program = moved((BATCH, 5, 4), (BATCH, 4), (5, BATCH, 2, 2), perm=(1, 0, 2))
    names = [op.output for op in program.ops]
    kept = Engine(program).run([np.zeros((1, 5, 4), np.float32)], keep=names).kept
    found = one_sample(program)
    assert found["x"] == (1, 5, 4)
    assert {name: found[name] for name in names} == {n: kept[n].shape for n in names}
