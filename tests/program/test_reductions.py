"""Means and sums along axes: a formula of the whole sum, and sums that the accumulators hold."""

from typing import Any

import numpy as np
import pytest

from halfstep.core.execution import Execution
from halfstep.core.pooling import MEAN
from halfstep.core.qtype import INT8
from halfstep.errors import ProgramError
from halfstep.program.check import check
from halfstep.program.engine import Engine
from halfstep.program.ir import IntProgram
from tests.program.build import N, codes, grid, one_op
from tests.program.kinds import random_codes

SHAPE = (2, 4, 6, 5)
X, Y = grid(0.05, -7, INT8), grid(0.09, 11, INT8)
AXES = [(1,), (3,), (1, 3), (2, 3), (1, 2, 3)]


def reduced(
    kind: str, axes: tuple[int, ...], keep: bool, formula: str, size: int = 6
) -> IntProgram:
    shape = (N, 4, size, 5)
    kept = [1 if axis in axes else n for axis, n in enumerate(shape)]
    out = kept if keep else [n for axis, n in enumerate(shape) if axis not in axes]
    tensors = [codes("x", shape, X)], codes("y", tuple(out), Y)
    attrs = {"axes": axes, "keepdim": keep}
    return one_op(kind, *tensors, Execution.INTEGER, attrs=attrs, formula=formula)


@pytest.mark.parametrize("formula", MEAN)
@pytest.mark.parametrize("kind", ["mean", "sum"])
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("keep", [False, True])
def test_a_sum_is_requantized_once(
    kind: str, axes: tuple[int, ...], keep: bool, formula: str
) -> None:
    program = check(reduced(kind, axes, keep, formula))
    values = random_codes(SHAPE, INT8)
    total = (values.astype(np.int64) + 7).sum(axis=axes, keepdims=keep)
    count = int(np.prod([SHAPE[axis] for axis in axes])) if kind == "mean" else 1
    expected = np.clip(MEAN[formula](total, count, X.scale, Y.scale, -7, 11), -128, 127)
    for backend in ("numpy", "torch"):
        (found,) = Engine(program, backend).run([values]).outputs
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_sums_that_32_bits_may_not_hold_are_refused(kind: str) -> None:
    fields: Any = {"axes": (2,), "keep": False, "formula": "divided_scale"}
    largest = (2**31 - 1) // 134  # of steps from -121 to 134
    assert check(reduced(kind, size=largest, **fields))
    with pytest.raises(ProgramError, match=r"y: .* breaks the rule 'accumulators': .* 2147483732"):
        check(reduced(kind, size=largest + 1, **fields))


def test_a_sum_over_the_batch_is_refused() -> None:
    with pytest.raises(ProgramError, match="y: sum breaks the rule 'accumulators'"):
        check(reduced("sum", (0, 1), False, "divided_scale"))
