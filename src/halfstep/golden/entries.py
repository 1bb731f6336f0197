"""What there is to write of a program, and how values lie in the files."""

from fnmatch import fnmatchcase

from halfstep.catalog import find
from halfstep.core.execution import Execution
from halfstep.core.target import Target, resolve
from halfstep.errors import unknown_name
from halfstep.formats.in_memory import InMemory
from halfstep.golden.index import Entry
from halfstep.program.ir import IntProgram, Op

# An entry without its shape and hash, which a run gives, and how its values lie in the file.
Planned = tuple[Entry, InMemory]


def planned_sites(program: IntProgram, pattern: str) -> list[Planned]:
    """Every site that matches the glob, in order of execution.

    Files have the numbers that the artifact itself gives to sites, if it does.

    Raises:
        UnknownNameError: no site matches.
    """
    makers = {op.output: op for op in program.ops}
    exact = _determined(program)
    found = []
    layouts = _layouts(program)
    for number, (site, layout) in enumerate(layouts.items()):
        if not fnmatchcase(site, pattern):
            continue
        grid = program.tensors[site].grid
        entry = Entry(
            name=site,
            file=f"{number:03d}.bin",
            kind=makers[site].kind,
            order=layout.order,
            dtype=layout.dtype,
            type="" if grid is None else grid.qtype.name,
            scale=None if grid is None else float(grid.scale),
            zero_point=None if grid is None else int(grid.zero_point) - layout.offset,
            exact=exact[site],
            inputs=_read(program, makers[site]),
        )
        found.append((entry, layout))
    if not found:
        raise unknown_name("site", pattern, layouts)
    return found


def planned_inputs(program: IntProgram) -> list[Planned]:
    """The real values, or indices, that the program takes."""
    return [
        _real(program, name, f"in{place}.bin", "input") for place, name in enumerate(program.inputs)
    ]


def planned_outputs(program: IntProgram) -> list[Planned]:
    """The real values that the program gives."""
    makers = {op.output: op for op in program.ops}
    exact = _determined(program)
    return [
        _real(
            program,
            name,
            f"out{place}.bin",
            makers[name].kind,
            exact=exact[name],
            inputs=_read(program, makers[name]),
        )
        for place, name in enumerate(program.outputs)
    ]


def _real(
    program: IntProgram,
    name: str,
    file: str,
    kind: str,
    exact: bool = True,
    inputs: tuple[str, ...] = (),
) -> Planned:
    tensor = program.tensors[name]
    layout = InMemory.as_computed(len(tensor.shape), tensor.dtype)
    entry = Entry(
        name=name,
        file=file,
        kind=kind,
        order=layout.order,
        dtype=layout.dtype,
        exact=exact,
        inputs=inputs,
    )
    return entry, layout


def _layouts(program: IntProgram) -> dict[str, InMemory]:
    """How the artifact holds every site; as the program computes it, if nothing else is known."""
    target: Target = find("target", program.target)
    if target.in_memory is not None:
        layouts: dict[str, InMemory] = resolve(target.in_memory)(program)
        return layouts
    tensors = ((site, program.tensors[site]) for site in program.sites)
    return {site: InMemory.as_computed(len(t.shape), t.dtype) for site, t in tensors}


def _determined(program: IntProgram) -> dict[str, bool]:
    """For every computed tensor, whether no float kernel is among what it is computed from."""
    exact: dict[str, bool] = {}
    for op in program.ops:
        before = all(exact.get(name, True) for name in op.inputs)
        exact[op.output] = before and op.execution is not Execution.FLOAT
    return exact


def _read(program: IntProgram, op: Op) -> tuple[str, ...]:
    """What an operation reads, constants aside."""
    return tuple(name for name in op.inputs if program.tensors[name].data is None)
