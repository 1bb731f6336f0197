"""The rules of the package's layout: who may import whom, and how long a file may be.

A *unit* is the first name below ``halfstep``: a folder (``core``) or a module (``lower``). The
package itself, ``halfstep/__init__.py``, is the unit ``halfstep``. Imports for type checking only
count like any other: a type that is needed is a dependency.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
VAGUE_NAMES = frozenset({"helpers", "misc", "util", "utils"})

PLAIN = frozenset({"errors", "journal", "catalog", "choices", "files", "progress", "verdict"})
"""Units that any other may import, ``core`` aside, which needs errors alone."""

EVERYTHING = frozenset({"*"})

MAY_IMPORT: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "catalog": frozenset({"errors"}),
    "choices": frozenset({"errors"}),
    "journal": frozenset({"errors", "catalog"}),
    "files": frozenset({"errors"}),
    "progress": frozenset({"errors"}),
    "verdict": frozenset({"errors"}),
    # the integer world: no torch
    "core": frozenset({"errors"}),
    "program": PLAIN | {"core"},
    "formats": PLAIN | {"core"},
    "export": PLAIN | {"core", "program", "formats"},
    "runtimes": PLAIN | {"core", "program", "formats"},
    "targets": PLAIN | {"core", "program", "export", "runtimes"},
    # the training world
    "quant": PLAIN | {"core"},
    "graph": PLAIN | {"core", "quant", "data"},
    "ptq": PLAIN | {"core", "quant", "graph", "data"},
    "training": PLAIN | {"core", "quant", "graph"},
    "search": PLAIN | {"core", "quant", "graph", "data"},
    "data": PLAIN,
    "weights": PLAIN,
    # between the two
    "functions": frozenset({"core"}),
    "lower": PLAIN | {"core", "quant", "graph", "program", "functions"},
    "pair_repair": PLAIN | {"core", "quant", "graph", "program", "lower"},
    "scale_repair": PLAIN | {"core", "quant", "graph"},
    "verify": PLAIN | {"core", "program", "runtimes", "data"},
    "golden": PLAIN | {"core", "program", "formats", "data"},
    # on top
    "images": PLAIN,
    "origin": PLAIN | {"data"},
    "lock": PLAIN | {"graph", "origin", "program", "ptq"},
    "simulate": PLAIN | {"graph", "lower", "program"},
    "quantize": EVERYTHING,
    "result": EVERYTHING,
    "conformance": EVERYTHING,
    "saved": EVERYTHING,
    "sources": EVERYTHING,
    "options": EVERYTHING,
    "job": EVERYTHING,
    "recipes": EVERYTHING,
    "report": EVERYTHING,
    "cli": EVERYTHING,
    "cli_advice": frozenset(),
    "cli_analyze": EVERYTHING,
    "cli_export": EVERYTHING,
    "cli_verify": EVERYTHING,
    "halfstep": EVERYTHING,
}
"""What each unit may import beside itself."""

WITHOUT_TORCH = PLAIN | {
    "core",
    "program",
    "formats",
    "export",
    "runtimes",
    "targets",
    "data",
    "verify",
    "golden",
}
STANDARD_LIBRARY_ONLY = frozenset({"errors", "catalog"})
TORCH_BACKEND = "program/backends/torch*.py"
TORCH_BACKEND_MODULE = "halfstep.program.backends.torch"


@dataclass(frozen=True)
class Import:
    """One imported name, such as ``halfstep.core.qtype.QType``, and where."""

    name: str
    line: int
    in_function: bool

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


def violations(
    path: PurePosixPath, source: str, required: frozenset[str], standard: frozenset[str]
) -> list[str]:
    """What is wrong with the module at ``path``, relative to the package: one line each.

    ``required`` names the import packages that are always installed, ``standard`` those of Python.
    """
    tree = ast.parse(source, filename=str(path))
    imports = list(imports_of(tree, path))
    unit = unit_of(path)
    found = [
        *wrong_directions(unit, imports),
        *torch_imports(unit, path, imports),
        *optional_imports(unit, imports, required | standard),
        *heavy_imports(unit, imports, standard),
        *vague_names(path),
        *over_budget(tree, source),
    ]
    return [f"{path}: {problem}" for problem in found]


def unit_of(path: PurePosixPath) -> str:
    if path.name == "__init__.py" and len(path.parts) == 1:
        return "halfstep"
    return path.parts[0].removesuffix(".py")


def imports_of(tree: ast.Module, path: PurePosixPath) -> Iterator[Import]:
    """Every import of the module, relative ones resolved; ``from a import b`` imports ``a.b``."""
    parents = ["halfstep", *path.parts[:-1]]
    deferred = {
        id(node)
        for function in functions_of(tree)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = [*base, *filter(None, [node.module])]
            names = [".".join([*module, alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(name, node.lineno, id(node) in deferred)


def functions_of(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def wrong_directions(unit: str, imports: list[Import]) -> Iterator[str]:
    """Imports against the table, and units that it lacks."""
    if unit not in MAY_IMPORT:
        yield f"{unit} has no line in MAY_IMPORT of tests/layers.py"
        return
    allowed = MAY_IMPORT[unit] | {unit}
    if "*" in allowed:
        return
    for item in imports:
        if item.package != "halfstep":
            continue
        below = item.name.split(".")[1:2]
        imported = below[0] if below and below[0] in MAY_IMPORT else "halfstep"
        if imported not in allowed:
            yield f"line {item.line}: {unit} may not import {imported} ({item.name})"


def torch_imports(unit: str, path: PurePosixPath, imports: list[Import]) -> Iterator[str]:
    """Torch, or the backend that imports it, where neither belongs."""
    if unit not in WITHOUT_TORCH or path.match(TORCH_BACKEND):
        return
    for item in imports:
        if item.package == "torch":
            yield f"line {item.line}: {unit} may not import torch; only {TORCH_BACKEND} does"
        elif item.name.startswith(TORCH_BACKEND_MODULE) and not item.in_function:
            yield f"line {item.line}: import the torch backend inside the function that needs it"


def optional_imports(unit: str, imports: list[Import], present: frozenset[str]) -> Iterator[str]:
    """Packages that may be missing, imported where that would break the import of the module."""
    for item in imports:
        if item.package not in present | {"halfstep"} and not item.in_function:
            yield (
                f"line {item.line}: {item.package} is optional for {unit}; "
                "import it inside the function that needs it"
            )


def heavy_imports(unit: str, imports: list[Import], standard: frozenset[str]) -> Iterator[str]:
    """Anything but the standard library in the plain data that everything imports."""
    if unit not in STANDARD_LIBRARY_ONLY:
        return
    for item in imports:
        if item.package not in standard | {"halfstep"}:
            yield f"line {item.line}: {unit} is plain data and may not import {item.package}"


def vague_names(path: PurePosixPath) -> Iterator[str]:
    """Files and folders whose name says nothing."""
    for part in path.parts:
        if part.removesuffix(".py") in VAGUE_NAMES:
            yield f"name {part} after what is in it"


def over_budget(tree: ast.Module, source: str) -> Iterator[str]:
    """Files and functions that are too long."""
    n_lines = len(source.splitlines())
    if n_lines > MAX_FILE_LINES:
        yield f"{n_lines} lines; a file has at most {MAX_FILE_LINES}"
    for function in functions_of(tree):
        n_lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if n_lines > MAX_FUNCTION_LINES:
            yield (
                f"line {function.lineno}: {function.name} has {n_lines} lines; "
                f"a function has at most {MAX_FUNCTION_LINES}"
            )
