"""Imports point one way, optional packages stay optional, and files stay short."""

import re
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest

from tests.layers import (
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    MAY_IMPORT,
    WITHOUT_TORCH,
    violations,
)

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "halfstep"
STANDARD = frozenset(sys.stdlib_module_names)
IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml"}


def required_packages() -> frozenset[str]:
    """The import names of the dependencies in pyproject.toml, extras aside."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in project["dependencies"]]
    return frozenset(IMPORTED_AS.get(name, name.replace("-", "_")) for name in names)


REQUIRED = required_packages()


def check(path: str, source: str) -> list[str]:
    return violations(PurePosixPath(path), source, REQUIRED, STANDARD)


def test_the_package_obeys_its_layers_and_line_budget() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert files, f"no module under {PACKAGE}"
    found = [
        problem
        for file in files
        for problem in check(file.relative_to(PACKAGE).as_posix(), file.read_text())
    ]
    assert not found, "\n" + "\n".join(found)


def test_the_table_has_no_cycle() -> None:
    remaining = {unit: set(allowed) - {"*"} for unit, allowed in MAY_IMPORT.items()}
    while remaining:
        leaves = {unit for unit, allowed in remaining.items() if not allowed & remaining.keys()}
        assert leaves, f"these import each other: {sorted(remaining)}"
        remaining = {unit: remaining[unit] for unit in remaining.keys() - leaves}


def test_units_without_torch_cannot_reach_it_through_another() -> None:
    reached = frozenset[str]().union(*(MAY_IMPORT[unit] for unit in WITHOUT_TORCH))
    assert reached <= WITHOUT_TORCH


def test_required_packages_are_read_from_the_project_file() -> None:
    assert {"numpy", "torch", "onnx_ir", "array_api_compat", "yaml", "PIL"} <= REQUIRED
    assert "pytest" not in REQUIRED


def function_of(n_lines: int, name: str = "f") -> str:
    return f"def {name}():\n" + "    pass\n" * (n_lines - 1)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/grid.py", "from halfstep.errors import PlanError"),
        ("core/grid.py", "from .qtype import QType"),
        ("core/__init__.py", "from .qtype import QType"),
        ("program/engine.py", "from halfstep.core.requant import requantize"),
        ("program/engine.py", "def f():\n    from halfstep.program.backends.torch import run"),
        ("program/backends/torch.py", "import torch"),
        ("program/backends/torch_cuda.py", "import torch.nn.functional as F"),
        ("targets/onnxruntime.py", "from halfstep.export.onnx_qdq import export"),
        ("graph/plan.py", "import torch\nfrom halfstep import catalog\nimport yaml"),
        ("lower.py", "from halfstep.graph.capture import Graph\nfrom halfstep.program import ir"),
        ("verify.py", "from halfstep.runtimes.ort import run"),
        ("recipes/ptq.py", "import halfstep as hs"),
        ("__init__.py", "from halfstep.lower import lower"),
        ("runtimes/openvino.py", "def f():\n    import openvino"),
        ("core/grid.py", function_of(MAX_FUNCTION_LINES)),
        ("core/grid.py", "x = 1\n" * MAX_FILE_LINES),
    ],
)
def test_a_module_that_obeys_is_accepted(path: str, source: str) -> None:
    assert check(path, source) == []


@pytest.mark.parametrize(
    ("unit", "forbidden"),
    [
        ("errors", "core"),
        ("catalog", "quant"),
        ("journal", "core"),
        ("core", "catalog"),
        ("core", "journal"),
        ("core", "program"),
        ("program", "export"),
        ("program", "graph"),
        ("export", "targets"),
        ("export", "runtimes"),
        ("runtimes", "export"),
        ("targets", "graph"),
        ("targets", "lower"),
        ("quant", "graph"),
        ("quant", "program"),
        ("graph", "ptq"),
        ("graph", "program"),
        ("graph", "targets"),
        ("ptq", "training"),
        ("ptq", "targets"),
        ("training", "search"),
        ("search", "recipes"),
        ("lower", "targets"),
        ("lower", "ptq"),
        ("verify", "graph"),
        ("verify", "export"),
        ("quant", "cli"),
        ("quant", "report"),
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        "import halfstep.{0}.x",
        "from halfstep.{0}.x import y",
        "from halfstep import {0}",
        "from ..{0} import y",
        "def f():\n    from halfstep.{0} import y",
    ],
)
def test_an_import_against_the_direction_is_rejected(unit: str, forbidden: str, form: str) -> None:
    (problem,) = check(f"{unit}/module.py", form.format(forbidden))
    assert f"{unit} may not import {forbidden} (halfstep.{forbidden}" in problem


@pytest.mark.parametrize("source", ["import halfstep as hs", "from halfstep import capture"])
def test_only_the_top_may_import_the_package_itself(source: str) -> None:
    (problem,) = check("graph/plan.py", source)
    assert "graph may not import halfstep (halfstep" in problem


def test_a_unit_without_a_line_in_the_table_is_rejected() -> None:
    assert check("deploy/board.py", "import numpy") == [
        "deploy/board.py: deploy has no line in MAY_IMPORT of tests/layers.py"
    ]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/grid.py", "import torch"),
        ("journal.py", "import torch"),
        ("program/engine.py", "def f():\n    import torch.nn"),
        ("program/backends/numpy.py", "from torch import Tensor"),
        ("export/onnx_qdq.py", "from torch.fx import GraphModule"),
        ("runtimes/ort.py", "import torch"),
        ("targets/torch.py", "import torch"),
    ],
)
def test_torch_in_the_integer_world_is_rejected(path: str, source: str) -> None:
    (problem,) = check(path, source)
    assert "may not import torch; only program/backends/torch*.py does" in problem


def test_the_torch_backend_imported_by_a_module_is_rejected() -> None:
    (problem,) = check("program/engine.py", "from halfstep.program.backends import torch")
    assert "import the torch backend inside the function" in problem


@pytest.mark.parametrize(
    "source",
    [
        "import openvino",
        "from ai_edge_litert.interpreter import Interpreter",
        "try:\n    import accelerate\nexcept ImportError:\n    pass",
        "class A:\n    import accelerate",
    ],
)
def test_an_optional_package_imported_by_a_module_is_rejected(source: str) -> None:
    (problem,) = check("training/loop.py", source)
    assert "optional for training; import it inside the function" in problem


@pytest.mark.parametrize("path", ["catalog.py", "errors.py"])
def test_plain_data_that_imports_more_than_python_is_rejected(path: str) -> None:
    (problem,) = check(path, "import numpy as np")
    assert "is plain data and may not import numpy" in problem


@pytest.mark.parametrize("path", ["graph/utils.py", "quant/helpers/rounding.py"])
def test_a_vague_name_is_rejected(path: str) -> None:
    (problem,) = check(path, "")
    assert "after what is in it" in problem


def test_a_long_file_is_rejected() -> None:
    (problem,) = check("core/grid.py", "x = 1\n" * (MAX_FILE_LINES + 1))
    assert problem == "core/grid.py: 301 lines; a file has at most 300"


@pytest.mark.parametrize("prefix", ["", "async "])
def test_a_long_function_is_rejected(prefix: str) -> None:
    source = "x = 1\n" + prefix + function_of(MAX_FUNCTION_LINES + 1, "quantize")
    (problem,) = check("core/grid.py", source)
    assert problem == "core/grid.py: line 2: quantize has 61 lines; a function has at most 60"
