"""A saved program is the program bit for bit, and what is damaged is refused."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from halfstep.core.execution import BATCH, Execution
from halfstep.core.grid import Affine
from halfstep.core.qtype import INT8_NARROW, INT32, UINT8, QType
from halfstep.errors import DataError, HalfstepError, ProgramError
from halfstep.program.engine import Engine
from halfstep.program.ir import IntProgram, Op, Tensor
from halfstep.program.serialize import ARRAYS, DESCRIPTION, load_program, same_program, save_program

ODD_ATTRS = {
    "padding": ((0, 1), (2, 3)),
    "value": -math.inf,
    "eps": 1e-5,
    "mode": "constant",
    "divisor": None,
    "ceil_mode": False,
}


def grid(qtype: QType, scale: float, zero_point: int = 0) -> Affine:
    return Affine(qtype, np.array(scale), np.array(zero_point))


def program() -> IntProgram:
    """Quantize, a linear layer with a clamp, a table of a narrow type, and out again."""
    source, middle, out = grid(UINT8, 0.1, 3), grid(UINT8, 1 / 3), grid(QType(4, False), 0.7, 1)
    scales = np.array([0.01, 0.02], np.float32)
    weight = Affine(INT8_NARROW, scales, np.zeros(2), 0)
    bias = Affine(INT32, source.scale * scales, np.zeros(2), 0)
    tensors = [
        Tensor("x", (BATCH, 3)),
        Tensor("x:in", (BATCH, 3), source),
        Tensor("w", (2, 3), weight, data=np.array([[-127, 0, 120], [1, 2, 60]], np.int8)),
        Tensor("b", (2,), bias, data=np.array([700, -7000], np.int32)),
        Tensor("y:out", (BATCH, 2), middle),
        Tensor("table", (256,), None, "uint8", (np.arange(256) % 16).astype(np.uint8)),
        Tensor("z:out", (BATCH, 2), out),
        Tensor("z", (BATCH, 2)),
    ]
    integer, edge = Execution.INTEGER, Execution.EDGE
    ops = (
        Op("quantize", ("x",), "x:in", edge, formula="division"),
        Op("linear", ("x:in", "w", "b"), "y:out", integer, {}, "float", (0, 200), "fc", 6),
        Op("lookup", ("y:out", "table"), "z:out", integer, ODD_ATTRS, module="act", reason="why"),
        Op("dequantize", ("z:out",), "z", edge),
    )
    return IntProgram("onnxruntime", ("x",), ("z",), {t.name: t for t in tensors}, ops)


def grouped(group_size: int) -> Affine:
    """Two scales for each of the two channels of "w", the first of them that of the channel."""
    scale = np.array([[0.01, 0.005], [0.02, 0.004]], np.float32)[:, : -(-3 // group_size)]
    return Affine(INT8_NARROW, scale, np.zeros(scale.shape), 0, group_size)


def in_groups() -> IntProgram:
    """``program`` with scales of groups and wide accumulators."""
    return replace(with_tensor("w", grid=grouped(2)), accumulator_bits=48)


def in_pairs() -> IntProgram:
    """``program`` for kernels that add two products in 16 bits."""
    return replace(program(), pair_sum_bits=16)


@pytest.mark.parametrize("make", [program, in_groups, in_pairs])
def test_a_loaded_program_is_the_saved_one(make: Any, tmp_path: Path) -> None:
    saved = make()
    save_program(saved, tmp_path)
    loaded = load_program(tmp_path)
    assert str(loaded) == str(saved)
    assert loaded.accumulator_bits == saved.accumulator_bits
    assert loaded.pair_sum_bits == saved.pair_sum_bits
    assert [vars(op) for op in loaded.ops] == [vars(op) for op in saved.ops]
    assert list(loaded.tensors) == list(saved.tensors)
    for name, tensor in saved.tensors.items():
        found = loaded.tensor(name)
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        assert (found.grid is None) == (tensor.grid is None)
        if tensor.grid is not None:
            assert loaded.grid(name).same_as(tensor.grid)
        assert (found.data is None) == (tensor.data is None)
        if tensor.data is not None:
            assert np.array_equal(loaded.constant(name), tensor.data)


def test_a_loaded_program_computes_the_same(tmp_path: Path) -> None:
    save_program(program(), tmp_path)
    x = np.linspace(-1, 30, 300, dtype=np.float32).reshape(100, 3)
    runs = [
        Engine(each, "numpy").run([x], keep=each.sites)
        for each in (program(), load_program(tmp_path))
    ]
    assert len(np.unique(runs[0].kept["z:out"])) > 4
    for site in program().sites:
        assert np.array_equal(runs[0].kept[site], runs[1].kept[site])


def with_tensor(name: str, **changes: Any) -> IntProgram:
    whole = program()
    changed = replace(whole.tensor(name), **changes)
    return replace(whole, tensors={**whole.tensors, name: changed})


def with_op(index: int, **changes: Any) -> IntProgram:
    ops = list(program().ops)
    ops[index] = replace(ops[index], **changes)
    return replace(program(), ops=tuple(ops))


@pytest.mark.parametrize(
    "other",
    [
        with_tensor("w", data=np.array([[-127, 0, 120], [1, 2, 61]], np.int8)),
        with_tensor("x:in", grid=grid(UINT8, float(np.nextafter(np.float32(0.1), 1)), 3)),
        with_tensor("x:in", grid=grid(UINT8, 0.1, 4)),
        with_tensor("z:out", grid=grid(UINT8, 0.7, 1)),
        with_op(1, formula="fixed_point"),
        with_op(1, clamp=(0, 201)),
        with_op(2, attrs={**ODD_ATTRS, "value": math.inf}),
        replace(program(), target="reference"),
        replace(program(), accumulator_bits=48),
        in_pairs(),
        with_tensor("w", grid=grouped(2)),
        with_tensor("w", grid=grouped(3)),
    ],
)
def test_another_program_is_not_the_same(other: IntProgram) -> None:
    assert same_program(program(), program())
    assert not same_program(program(), other)


def edit_description(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = json.loads((folder / DESCRIPTION).read_text())
        change(data)
        (folder / DESCRIPTION).write_text(json.dumps(data))

    return damage


def edit_arrays(change: Callable[[dict[str, NDArray[Any]]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        arrays = load_file(folder / ARRAYS)
        change(arrays)
        save_file(arrays, folder / ARRAYS)

    return damage


def truncate(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def test_a_file_that_says_nothing_of_pairs_has_none(tmp_path: Path) -> None:
    save_program(in_pairs(), tmp_path)
    edit_description(lambda data: data.pop("pair_sum_bits"))(tmp_path)
    assert load_program(tmp_path).pair_sum_bits is None


def test_a_program_of_the_first_schema_is_still_read(tmp_path: Path) -> None:
    def older(data: dict[str, Any]) -> None:
        data["schema"] = 1
        del data["accumulator_bits"]
        for tensor in data["tensors"]:
            if tensor["grid"] is not None:
                del tensor["grid"]["group_size"]

    save_program(program(), tmp_path)
    edit_description(older)(tmp_path)
    loaded = load_program(tmp_path)
    assert loaded.accumulator_bits == 32
    assert same_program(loaded, program())


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (lambda folder: (folder / DESCRIPTION).unlink(), DataError, "no saved program"),
        (lambda folder: (folder / ARRAYS).unlink(), DataError, "no saved program"),
        (truncate(DESCRIPTION), DataError, "a damaged program"),
        (truncate(ARRAYS), DataError, "a damaged program"),
        (
            edit_description(lambda d: d.update(schema=3)),
            DataError,
            "asked for schema 2 or older, found 3",
        ),
        (edit_description(lambda d: d.pop("accumulator_bits")), DataError, "'accumulator_bits'"),
        (
            edit_description(lambda d: d.update(accumulator_bits=64)),
            ProgramError,
            "^program accumulators of 64 bits: asked for 32 to 53",
        ),
        (edit_description(lambda d: d["ops"][1].pop("clamp")), DataError, "KeyError: 'clamp'"),
        (edit_description(lambda d: d["ops"][1].update(execution="x")), DataError, "'x' is not"),
        (edit_description(lambda d: d["ops"].pop(1)), ProgramError, "before they exist"),
        (edit_arrays(lambda a: a.pop("w/scale")), DataError, "KeyError: 'w/scale'"),
        (edit_arrays(lambda a: a.update({"w/scale": -a["w/scale"]})), DataError, "be positive"),
        (
            edit_arrays(lambda a: a.update({"w/data": a["w/data"].astype(np.int32)})),
            DataError,
            r"w: asked for int8 of shape \(2, 3\), found int32",
        ),
        (
            edit_arrays(lambda a: a.update({"w/data": a["w/data"] - np.int8(1)})),
            ProgramError,
            "w has codes -128",
        ),
    ],
)
def test_a_damaged_program_is_refused(
    damage: Callable[[Path], None], error: type[HalfstepError], text: str, tmp_path: Path
) -> None:
    save_program(program(), tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=text):
        load_program(tmp_path)


def test_an_attribute_without_a_form_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="an attribute of type float32 has no form in JSON"):
        save_program(with_op(2, attrs={"slope": np.float32(1)}), tmp_path)
    assert list(tmp_path.iterdir()) == []
