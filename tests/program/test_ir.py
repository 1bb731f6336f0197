"""The integer program: frozen, printable, and plain about what it holds."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from halfstep.core.execution import Execution
from halfstep.core.qtype import INT8, QType
from halfstep.errors import UnknownNameError
from halfstep.program.ir import IntProgram, Op, Tensor, sizes
from tests.broken.program import a_program
from tests.program.build import N, codes, grid, one_op, real


def test_a_tensor_of_codes_has_the_dtype_of_its_type() -> None:
    assert codes("x", (N,), grid(1, 0, INT8)).dtype == "int8"
    assert codes("x", (N,), grid(1, 0, QType(3, False))).dtype == "uint8"
    assert Tensor("x", (N,), grid(1, 0, QType(12)), dtype="float32").dtype == "int16"
    assert real("x", (N,)).dtype == "float32"


def test_constants_are_contiguous_and_read_only() -> None:
    values = np.arange(6.0).reshape(2, 3).T
    tensor = real("x", (3, 2), data=values)
    assert tensor.data is not None
    assert tensor.data.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(tensor.data, values)
    with pytest.raises(ValueError, match="read-only"):
        tensor.data[0, 0] = 1
    scalar = real("s", (), data=np.asarray(2.0))
    assert scalar.data is not None
    assert scalar.data.shape == ()


def test_programs_are_frozen() -> None:
    program = a_program()
    with pytest.raises(FrozenInstanceError):
        program.ops = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        program.tensors["x"] = real("x", ())  # type: ignore[index]
    with pytest.raises(TypeError):
        program.ops[0].attrs["axis"] = 1  # type: ignore[index]


def test_what_is_asked_by_name() -> None:
    program = a_program()
    assert program.tensor("h").grid is program.grid("h")
    np.testing.assert_array_equal(program.constant("b"), [7, -7])
    with pytest.raises(UnknownNameError, match="unknown tensor 'hh': did you mean 'h'"):
        program.tensor("hh")
    with pytest.raises(TypeError, match="x holds real values, not codes"):
        program.grid("x")
    with pytest.raises(TypeError, match="h is computed, not a constant"):
        program.constant("h")


def test_sites_are_the_computed_codes_in_order() -> None:
    assert a_program().sites == ("q", "h", "l", "p", "s", "c", "m")


def test_sizes() -> None:
    assert sizes((N, 3, 4)) == "Nx3x4"
    assert sizes(()) == "scalar"


def test_integer_coverage_counts_multiplications() -> None:
    x, y = real("x", (N, 3)), real("y", (N, 3))
    floats = one_op("exp", [x], y, Execution.FLOAT)
    assert floats.integer_coverage() is None, "nothing multiplies and accumulates"
    ops = [
        Op("linear", ("x",), "y", how, macs=macs)
        for how, macs in ((Execution.INTEGER, 30), (Execution.FLOAT, 60), (Execution.COPY, 0))
    ]
    assert replace(floats, ops=tuple(ops)).integer_coverage() == pytest.approx(1 / 3)
    assert replace(floats, ops=tuple(ops[1:])).integer_coverage() == 0


def test_a_program_prints_every_tensor_and_operation() -> None:
    assert str(a_program()).splitlines() == [
        "program for reference(x) with 32-bit accumulators",
        "%w [2x3] int8_narrow 2 scales in [0.01, 0.02] on axis 0",
        "%b [2] int32 2 scales in [0.001, 0.002] on axis 0",
        "%t [256] uint8",
        "%v [2x3] int8 scale=0.1 zero_point=0",
        "%q = quantize(%x) [edge:division]",
        "    : %q [Nx3] uint8 scale=0.1 zero_point=3",
        "%h = linear(%q, %w, %b) clamp=(100, 255) [integer:float]",
        "    : %h [Nx2] uint8 scale=0.2 zero_point=100",
        "%l = lookup(%h, %t) clamp=(0, 200) [integer]",
        "    : %l [Nx2] uint8 scale=0.2 zero_point=100",
        "%p = softmax(%l) axis=1 [integer:table]",
        "    : %p [Nx2] uint8 scale=0.00390625 zero_point=0",
        "%s = add(%h, %l) [integer:fused]",
        "    : %s [Nx2] uint8 scale=0.2 zero_point=100",
        "%c = concat(%h, %s) axis=1 [copy]",
        "    : %c [Nx4] uint8 scale=0.2 zero_point=100",
        "%m = matmul(%c, %c) alpha=1.0 [integer:float]",
        "    : %m [Nx4x4] uint8 scale=0.2 zero_point=100",
        "%r = dequantize(%c) [edge]",
        "    : %r [Nx4] float32",
        "%f = exp(%r) [float]",
        "    : %f [Nx4] float32",
        "return f",
    ]


def test_an_empty_program_prints() -> None:
    assert str(IntProgram("reference", (), (), {}, ())) == (
        "program for reference() with 32-bit accumulators\nreturn "
    )
