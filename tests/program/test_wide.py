"""Accumulators and biases of more than 32 bits: exact, and refused where they would not be."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from halfstep.core.qtype import ACCUMULATOR_BITS, QType
from halfstep.core.requant import ACCUMULATOR, INT32_ONLY, float_multiplier
from halfstep.errors import ProgramError
from halfstep.program.bounds import accumulator_bounds
from halfstep.program.check import check
from halfstep.program.engine import Engine
from halfstep.program.ir import IntProgram
from tests.program.build import N, grid, weighted

INT16, INT48 = QType(16), QType(48)
LARGEST = 2**47 - 1


def layer(bias: int, inputs: int = 8, bias_type: QType = INT48, bits: int = 48) -> IntProgram:
    """One output, all weights and codes as large as 16 bits allow, a bias beside them."""
    weight = np.full((1, inputs), 32767, np.int16)
    return weighted(
        "linear", (N, inputs), (N, 1), weight, np.asarray([bias], bias_type.storage),
        x_grid=grid(2.0**-15, 0, INT16),
        weight_grid=grid(2.0**-15, 0, QType(16, narrow=True)),
        out_grid=grid(2.0**6, 0, INT16),
        bias_type=bias_type,
        accumulator_bits=bits,
    )  # fmt: skip


def codes(program: IntProgram, x: Any, backend: str) -> Any:
    return Engine(check(program), backend).run([np.asarray(x, np.int16)]).outputs[0]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_sum_of_48_bits_is_exact(backend: str) -> None:
    """Sum and bias differ by 2^15 out of 2^44: any of the two alone, or in float32, is lost."""
    inputs = 2**13
    product = inputs * 32767 * 32767
    program = layer(-product + 2**15, inputs)
    program = replace(program, tensors={
        **program.tensors, "y": replace(program.tensor("y"), grid=grid(2.0**-15, 0, INT16)),
    })  # fmt: skip
    x = np.full((1, inputs), 32767)
    acc = 2**15
    multiplier = float_multiplier(np.float32(2.0**-15), np.float32(2.0**-15), np.float32(2.0**-15))
    assert codes(program, x, backend).tolist() == [[round(acc * float(multiplier))]] == [[1]]


def test_the_bound_is_the_largest_sum() -> None:
    room = LARGEST - 8 * 32768 * 32767
    assert int(accumulator_bounds(layer(room), layer(room).ops[0])[0]) == LARGEST
    assert check(layer(room)) is not None
    text = rf"accumulators may reach {LARGEST + 1} in channel 0, and have 48 bits$"
    with pytest.raises(ProgramError, match=text):
        check(layer(room + 1))
    assert check(layer(room + 1, bits=49, bias_type=QType(49))) is not None


def test_an_int32_bias_still_fits_wide_accumulators() -> None:
    assert check(layer(2**31 - 1, bias_type=QType(32))) is not None


def test_formulas_of_31_bits_take_32_bit_sums_only() -> None:
    assert ACCUMULATOR.keys() - INT32_ONLY == {"float"}
    program = layer(0)
    ops = (replace(program.ops[0], formula="single_rounding"),)
    with pytest.raises(ProgramError, match=r"'accumulators': .*, and have 32 bits$"):
        check(replace(program, ops=ops))


@pytest.mark.parametrize("bits", [31, 54, 64])
def test_widths_that_float64_does_not_hold_are_refused(bits: int) -> None:
    assert bits not in ACCUMULATOR_BITS
    text = rf"^program accumulators of {bits} bits: asked for 32 to 53, in which the engine adds"
    with pytest.raises(ProgramError, match=text):
        check(replace(layer(0), accumulator_bits=bits))
