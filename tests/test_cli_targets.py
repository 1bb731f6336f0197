"""The command line for targets other than the first: a bounded one, and one without a runtime."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from halfstep import cli

NETWORK = """
import torch
from torch import nn

def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "net.py").write_text(NETWORK)
    inputs = np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs)
    yield tmp_path
    sys.modules.pop("net", None)


def quantize(folder: Path, target: str, *more: object) -> Result:
    data = ["--data", folder / "data.npz", "--out", folder / "out"]
    return run("quantize", f"{folder}/net.py:tiny", *data, "--target", target, *more)


def test_openvino_is_verified(folder: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra 'openvino'")
    found = quantize(folder, "openvino")
    assert found.exit_code == 0, found.output
    verdict = json.loads((folder / "out" / "verdict.json").read_text())
    assert verdict["status"] in ("exact", "bounded")
    assert verdict["bound"] == 1
    assert [site["site"] for site in verdict["end_to_end"]] == ["output"]
    assert run("verify", folder / "out", "--data", folder / "data.npz").exit_code == 0


def test_tensorrt_is_written_and_said_not_to_be_verified(folder: Path) -> None:
    found = quantize(folder, "tensorrt", "--test-data", folder / "data.npz")
    assert found.exit_code == 0, found.output
    assert "not verified: target 'tensorrt' has no runtime; integer MACs: 100.00%" in found.output
    names = {path.name for path in (folder / "out").iterdir()}
    assert "model.onnx" in names
    assert "verdict.json" not in names
    again = run("verify", folder / "out", "--data", folder / "data.npz")
    assert again.exit_code == 2
    assert "target 'tensorrt' has no runtime: there is nothing to compare with" in again.output
