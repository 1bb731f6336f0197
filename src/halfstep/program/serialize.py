"""An integer program on disk: ``program.json`` says what, ``program.safetensors`` holds the arrays.

Codes, scales and zero points are stored as the arrays that they are, so a loaded program is the
saved one bit for bit. What is loaded passes the specification of ``program.check`` again. Schema 1,
which older versions wrote, has 32-bit accumulators and no groups of scales; it is still read. So is
a file that says nothing of sums of pairs.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from halfstep.core.execution import Execution
from halfstep.core.grid import Affine
from halfstep.core.qtype import QType
from halfstep.errors import DataError, HalfstepError
from halfstep.files import write_atomically
from halfstep.program.check import check
from halfstep.program.ir import IntProgram, Op, Tensor

SCHEMA = 2
READABLE = (1, SCHEMA)
DESCRIPTION, ARRAYS = "program.json", "program.safetensors"
Arrays = Mapping[str, NDArray[Any]]


def save_program(program: IntProgram, folder: str | Path) -> None:
    """Write the two files of ``program`` into ``folder``, which exists.

    Raises:
        ExportError: the folder cannot be written.
    """
    for name, data in program_files(program).items():
        write_atomically(Path(folder) / name, data)


def program_files(program: IntProgram) -> dict[str, bytes]:
    """The two files of ``program``, by name; the same bytes for the same program."""
    description, arrays = describe(program)
    text = json.dumps(description, allow_nan=False)
    return {ARRAYS: save(arrays), DESCRIPTION: text.encode()}


def load_program(folder: str | Path) -> IntProgram:
    """Read what ``save_program`` wrote, and check it.

    Raises:
        DataError: a file is missing, damaged, or of another version of Halfstep.
        ProgramError: the files hold a program that breaks its specification.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / DESCRIPTION).read_bytes())
        arrays = load((folder / ARRAYS).read_bytes())
    except OSError as error:
        raise DataError(
            f"{folder}: no saved program ({error.strerror}: {Path(str(error.filename)).name}); "
            "give a folder that Result.save or 'halfstep quantize' wrote"
        ) from error
    except (ValueError, SafetensorError) as error:
        raise DataError(f"{folder}: a damaged program ({error}); save it again") from error
    found = description.get("schema") if isinstance(description, dict) else None
    if found not in READABLE:
        raise DataError(
            f"{folder / DESCRIPTION}: asked for schema {SCHEMA} or older, found {found}; "
            "it was written by another version of Halfstep, save it again"
        )
    try:
        program = _program(description, arrays)
    except (KeyError, TypeError, ValueError, AttributeError, HalfstepError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{folder}: a damaged program ({what}); save it again") from error
    return check(program)


def same_program(one: IntProgram, other: IntProgram) -> bool:
    """Whether both have the same operations on the same tensors, constants and grids included."""
    mine, my_arrays = describe(one)
    theirs, their_arrays = describe(other)
    return (
        mine == theirs
        and my_arrays.keys() == their_arrays.keys()
        and all(np.array_equal(my_arrays[name], their_arrays[name]) for name in my_arrays)
    )


def describe(program: IntProgram) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Plain data for JSON, and every array by ``tensor/data``, ``/scale`` or ``/zero_point``."""
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in program.tensors.values():
        if tensor.data is not None:
            arrays[f"{tensor.name}/data"] = tensor.data
        if tensor.grid is not None:
            arrays[f"{tensor.name}/scale"] = tensor.grid.scale
            arrays[f"{tensor.name}/zero_point"] = tensor.grid.zero_point
    description = {
        "schema": SCHEMA,
        "target": program.target,
        "accumulator_bits": program.accumulator_bits,
        "pair_sum_bits": program.pair_sum_bits,
        "inputs": list(program.inputs),
        "outputs": list(program.outputs),
        "tensors": [_describe_tensor(tensor) for tensor in program.tensors.values()],
        "ops": [{f.name: _plain(getattr(op, f.name)) for f in fields(op)} for op in program.ops],
    }
    return description, arrays


def _describe_tensor(tensor: Tensor) -> dict[str, Any]:
    grid = tensor.grid
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "grid": None
        if grid is None
        else {"type": grid.qtype.name, "axis": grid.axis, "group_size": grid.group_size},
        "constant": tensor.data is not None,
    }


def _plain(value: Any) -> Any:
    """A field of an operation as JSON: tuples are lists, and JSON has no infinity."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, str | int | float):
        return str(value) if isinstance(value, Execution) else value
    raise TypeError(f"an attribute of type {type(value).__name__} has no form in JSON: {value!r}")


def _value(plain: Any) -> Any:
    """The inverse of ``_plain`` for one attribute."""
    if isinstance(plain, list):
        return tuple(_value(item) for item in plain)
    return float(plain["float"]) if isinstance(plain, dict) else plain


def _program(description: Mapping[str, Any], arrays: Arrays) -> IntProgram:
    if description["schema"] == 1:
        description = _from_schema_1(description)
    tensors = [_tensor(data, arrays) for data in description["tensors"]]
    return IntProgram(
        description["target"],
        tuple(description["inputs"]),
        tuple(description["outputs"]),
        {tensor.name: tensor for tensor in tensors},
        tuple(_op(data) for data in description["ops"]),
        description["accumulator_bits"],
        description.get("pair_sum_bits"),
    )


def _from_schema_1(description: Mapping[str, Any]) -> dict[str, Any]:
    tensors = [
        data if data["grid"] is None else {**data, "grid": {**data["grid"], "group_size": None}}
        for data in description["tensors"]
    ]
    return {**description, "accumulator_bits": 32, "tensors": tensors}


def _tensor(data: Mapping[str, Any], arrays: Arrays) -> Tensor:
    name, shape, grid = data["name"], tuple(data["shape"]), None
    if data["grid"] is not None:
        scale, zero_point = arrays[f"{name}/scale"], arrays[f"{name}/zero_point"]
        qtype, axis, group_size = (data["grid"][key] for key in ("type", "axis", "group_size"))
        grid = Affine(QType.parse(qtype), scale, zero_point, axis, group_size)
    values = arrays[f"{name}/data"] if data["constant"] else None
    tensor = Tensor(name, shape, grid, data["dtype"], values)
    if values is not None and (values.shape, values.dtype.name) != (shape, tensor.dtype):
        found = f"{values.dtype.name} of shape {values.shape}"
        raise ValueError(f"{name}: asked for {tensor.dtype} of shape {shape}, found {found}")
    return tensor


def _op(data: Mapping[str, Any]) -> Op:
    values = {
        f.name: _value(data[f.name]) for f in fields(Op) if f.name not in ("attrs", "execution")
    }
    attrs = {key: _value(value) for key, value in data["attrs"].items()}
    return Op(**values, attrs=attrs, execution=Execution(data["execution"]))
