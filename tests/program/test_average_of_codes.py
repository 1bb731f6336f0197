"""Average pools by the formulas of means: each window by the number of values that it averages."""

from typing import Any

import numpy as np
import pytest

from halfstep.core.execution import Execution
from halfstep.core.pooling import MEAN
from halfstep.core.qtype import INT8
from halfstep.program.engine import Engine
from tests.program.build import N, codes, grid, one_op
from tests.program.kinds import random_codes

SHAPE = (2, 3, 7, 6)
WINDOW = {"kernel": (3, 2), "stride": (2, 2), "padding": ((1, 1), (0, 1)), "ceil_mode": False}


def pooled(formula: str, include: bool, divisor: int | None) -> Any:
    x, y = grid(0.05, -7, INT8), grid(0.04, 11, INT8)
    attrs = {**WINDOW, "count_include_pad": include, "divisor": divisor}
    tensors = [codes("x", (N, *SHAPE[1:]), x)], codes("y", (N, 3, 4, 3), y)
    program = one_op("avg_pool", *tensors, Execution.INTEGER, attrs=attrs, formula=formula)
    values = random_codes(SHAPE, INT8)
    (found,) = Engine(program).run([values]).outputs
    return values.astype(np.int64) + 7, found, (x.scale, y.scale, -7, 11)


@pytest.mark.parametrize("formula", MEAN)
@pytest.mark.parametrize(("include", "divisor"), [(False, None), (True, None), (True, 5)])
def test_each_window_is_a_mean_of_its_own(formula: str, include: bool, divisor: int | None) -> None:
    steps, found, (scale_in, scale_out, zero_in, zero_out) = pooled(formula, include, divisor)
    counts = set()
    for i in range(4):
        for j in range(3):
            rows, columns = slice(max(2 * i - 1, 0), 2 * i + 2), slice(2 * j, 2 * j + 2)
            window = steps[:, :, rows, columns]
            count = divisor or (6 if include else window[0, 0].size)
            counts.add(count)
            expected = MEAN[formula](
                window.sum(axis=(2, 3)), count, scale_in, scale_out, zero_in, zero_out
            )
            np.testing.assert_array_equal(found[:, :, i, j], np.clip(expected, -128, 127))
    assert len(counts) == (1 if include else 2)
