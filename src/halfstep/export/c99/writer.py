"""An integer program as a folder of plain C99: the model, its data, and the runtime.

| file | what is in it |
|---|---|
| ``NAME.h`` | how to call the model, and what its codes mean |
| ``NAME.c`` | every layer as a structure, and the calls in order |
| ``NAME_data.c``, ``NAME_data.h`` | weights, biases, multipliers and tables, read-only |
| ``halfstep*.c``, ``halfstep*.h`` | the runtime, the same for every model |
| ``sites.json`` | names, shapes and layouts of inputs, outputs and sites, for the verifier |
| ``cost.md``, ``cost.json`` | ROM, RAM, multiply-accumulates and estimated cycles |
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from halfstep.core.execution import Execution
from halfstep.errors import ExportError
from halfstep.export.c99 import source
from halfstep.export.c99.arena import Placement, place
from halfstep.export.c99.cost import cost_of, cost_page
from halfstep.export.c99.draft import Draft
from halfstep.export.c99.emitters import EMITTERS
from halfstep.export.c99.names import model_name
from halfstep.export.c99.numbers import stored_offset
from halfstep.export.c99.ports import Port, input_ports, output_ports
from halfstep.export.c99.walks import order_of
from halfstep.files import write_folder_atomically
from halfstep.formats.c_folder import COST, MANIFEST, SCHEMA
from halfstep.formats.in_memory import InMemory
from halfstep.program.ir import IntProgram

_RUNS = (Execution.INTEGER, Execution.COPY)


def export(program: IntProgram, path: str | Path, name: str = "model") -> None:
    """Write ``program`` into the folder ``path``, which is replaced; complete or not at all.

    Args:
        program: one whose operations all run on integers.
        path: the folder.
        name: what files, functions and macros of the model start with.

    Raises:
        ExportError: an operation without a form in C, or a folder that cannot be written.
    """
    contents = to_files(program, name)

    def fill(folder: Path) -> None:
        for file, text in contents.items():
            (folder / file).write_text(text, encoding="utf-8")

    write_folder_atomically(Path(path), fill)


def to_files(program: IntProgram, name: str = "model") -> dict[str, str]:
    """The text of every file of ``program``."""
    draft, ports = _drafted(program, name)
    placed = place([step.use for step in draft.steps], [draft.read(p.source) for p in ports[1]])
    return {**_sources(draft, ports, placed), **_reports(draft, ports, placed)}


def in_memory(program: IntProgram) -> dict[str, InMemory]:
    """How the model holds the codes of every site, in the order in which it shows them."""
    return {
        site["name"]: InMemory(tuple(site["order"]), site["offset"], "int8")
        for site in manifest(*_drafted(program, "model"))["sites"]
    }


def _drafted(program: IntProgram, name: str) -> tuple[Draft, tuple[list[Port], list[Port]]]:
    """Every operation as calls, and what goes in and comes out."""
    draft = Draft(program, model_name(name))
    ports = input_ports(draft), output_ports(draft)
    for op in program.ops:
        if op.execution is Execution.EDGE:
            _check_edge(program, op.output, op.kind)
            continue
        if op.execution not in _RUNS or op.kind not in EMITTERS:
            raise ExportError(
                f"{op.output}: {op.kind} ({op.execution}) has no form in C; plan for a target "
                "that runs integers only, such as 'c99'"
            )
        EMITTERS[op.kind](draft, op)
    for port in ports[1]:
        draft.read(port.source)
    return draft, ports


def _check_edge(program: IntProgram, output: str, kind: str) -> None:
    if kind == "dequantize" and output not in program.outputs:
        raise ExportError(
            f"{output}: real values inside of the program; a model in C has none. Plan for a "
            "target that runs integers only, such as 'c99'"
        )


def _sources(
    draft: Draft, ports: tuple[list[Port], list[Port]], placed: Placement
) -> dict[str, str]:
    name, constants = draft.prefix, list(draft.constants.values())
    return {
        f"{name}.h": source.header(draft, ports, placed),
        f"{name}.c": source.model(draft, ports, placed),
        f"{name}_data.h": source.data_header(name, constants),
        f"{name}_data.c": source.data(name, constants),
        **runtime_files(),
    }


def runtime_files() -> dict[str, str]:
    """The runtime in C, as it is shipped."""
    folder = files("halfstep.export.c99") / "runtime"
    return {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}


def _reports(
    draft: Draft, ports: tuple[list[Port], list[Port]], placed: Placement
) -> dict[str, str]:
    cost = cost_of(draft, placed)
    return {
        MANIFEST: json.dumps(manifest(draft, ports), indent=1),
        COST: json.dumps(cost.to_dict(), indent=1),
        "cost.md": cost_page(cost),
    }


def manifest(draft: Draft, ports: tuple[list[Port], list[Port]]) -> dict[str, Any]:
    """What a verifier needs to know of the files."""
    sites = []

    def samples(name: str) -> dict[str, int | None]:
        axis = _batch_axis(draft.tensor(name).shape)
        return {"batch_axis": axis, "batch_outer": draft.outer[name]}

    for site in source.traced_sites(draft):
        shape = draft.shape(site)
        grid = draft.program.grid(site)
        sites.append(
            {
                "name": site,
                "shape": list(shape),
                "order": list(order_of(len(shape), site in draft.last)),
                "offset": stored_offset(grid.qtype),
                "type": grid.qtype.storage.name,
                **samples(site),
            }
        )
    return {
        "schema": SCHEMA,
        "name": draft.prefix,
        "target": draft.program.target,
        "takes": len(draft.program.inputs),
        "inputs": [port.to_dict() for port in ports[0]],
        "outputs": [{**p.to_dict(), **samples(p.name)} for p in ports[1]],
        "sites": sites,
    }


def _batch_axis(shape: tuple[int, ...]) -> int | None:
    """The axis that grows with the batch."""
    return next((axis for axis, size in enumerate(shape) if size < 0), None)
