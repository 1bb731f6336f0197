"""The specification of a program: every rule accepts a program that keeps it, and only that."""

import re
from dataclasses import replace

import numpy as np
import pytest

from halfstep.core.execution import Execution
from halfstep.core.qtype import INT8_NARROW
from halfstep.errors import ProgramError
from halfstep.program import check as module
from halfstep.program.check import check
from halfstep.program.formulas import FORMULAS
from halfstep.program.kernels import KERNELS
from tests.broken import program as broken
from tests.program.build import N, grid, weighted
from tests.program.kinds import CODES

SPECIMENS = [(rule, name) for rule, found in broken.CHECK_SPECIMENS.items() for name in found]


def test_a_program_that_keeps_every_rule_is_returned() -> None:
    program = broken.a_program()
    assert check(program) is program


def test_small_weights_keep_the_rule_of_pairs() -> None:
    program = replace(broken.a_program(), pair_sum_bits=16)
    assert check(program) is program


@pytest.mark.parametrize("case", CODES)
def test_programs_of_one_operation_are_accepted(case: str) -> None:
    program, _ = CODES[case]
    assert check(program) is program


@pytest.mark.parametrize(("rule", "specimen"), SPECIMENS)
def test_a_program_that_breaks_a_rule_is_rejected(rule: str, specimen: str) -> None:
    program, message = broken.CHECK_SPECIMENS[rule][specimen]
    with pytest.raises(ProgramError, match=message) as found:
        check(program())
    if specimen != "output never made":
        assert f"breaks the rule '{rule}'" in str(found.value)


def test_every_rule_of_the_documentation_has_a_specimen() -> None:
    assert module.__doc__ is not None
    rules = re.findall(r"^\d\. (\w+):", module.__doc__, re.MULTILINE)
    assert rules == ["order", "worlds", "codes", "copies", "formulas", "bias", "weights",
                     "accumulators", "pairs"]  # fmt: skip
    assert set(broken.CHECK_SPECIMENS) == set(rules)


def test_every_integer_kernel_has_formulas_or_needs_none() -> None:
    kinds = {kind for execution, kind in KERNELS if execution is Execution.INTEGER}
    assert kinds | {"quantize"} == FORMULAS.keys() | {"max_pool", "lookup"}
    assert all(FORMULAS.values())


def test_groups_of_a_transposed_convolution_share_scales() -> None:
    weight = np.ones((4, 3, 2), np.int8)
    attrs = {
        "stride": (1,), "padding": ((0, 0),), "dilation": (1,), "groups": 2,
        "output_padding": (0,),
    }  # fmt: skip
    scales = grid([0.1, 0.2, 0.3], [0, 0, 0], INT8_NARROW, axis=1)
    shapes = (N, 4, 5), (N, 6, 6)
    bias = np.arange(6, dtype=np.int32)
    program = weighted("conv_transpose", *shapes, weight, bias, attrs, weight_grid=scales)
    assert program.grid("b").scale.shape == (6,)
    assert check(program) is program
