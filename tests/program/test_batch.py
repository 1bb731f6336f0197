"""Where samples lie in a batch, and how they are put together again."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfstep.core.execution import BATCH, Execution
from halfstep.errors import ProgramError
from halfstep.formats.layout import joined
from halfstep.program.batch import batch_multiples, outer_sizes
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


def test_a_reshape_that_tears_samples_apart_is_refused_by_name() -> None:
    program = moved((BATCH, 3, 4), (2, BATCH), perm=(1, 0, 2))
    with pytest.raises(ProgramError, match=r"^r0: reshape from .* to .* tears samples apart; keep"):
        outer_sizes(program)


def test_how_many_times_the_batch_a_size_is() -> None:
    joined_heads = moved((BATCH, 5, 8), (5, BATCH, 4), (5, BATCH, 2, 4), perm=(1, 0, 2))
    assert batch_multiples(joined_heads) == {"x": 1, "t": 1, "r0": 2, "r1": 1}
    joined_tokens = moved((BATCH, 5, 8), (BATCH, 8), perm=(1, 0, 2))
    assert batch_multiples(joined_tokens) == {"x": 1, "t": 1, "r0": 5}
