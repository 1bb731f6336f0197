"""``halfstep analyze`` on a tiny network: what is printed, and what is refused."""

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
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    )
    with torch.no_grad():
        model[-1].weight.mul_(20)  # sure of its decisions, so that noise counts
    return model

def stream():
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        yield torch.randn(8, 3, 8, 8, generator=generator)
"""
LOW_BITS = ["--weight-type", "int2_narrow", "--activation-type", "uint3"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(
        cli.app, ["analyze", *(str(argument) for argument in arguments)], env={"COLUMNS": "160"}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("analyze")
    (path / "net.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(20, 3, 8, 8)).astype(np.float32)
    np.savez(path / "data.npz", inputs=images, labels=rng.integers(0, 3, 20))
    return path


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    sys.modules.pop("net", None)


def test_analyze_prints_every_step(folder: Path) -> None:
    result = run(f"{folder}/net.py:tiny", "--data", folder / "data.npz", *LOW_BITS)
    assert result.exit_code == 0, result.output
    for text in (
        "accuracy on 20 samples",
        "nothing (float)",
        "all, 32 bits",
        "weights alone",
        "activations alone",
        "The simulation is the float model while nothing is quantized: largest difference of an",
        "Layers, the most sensitive first",
        "all but it",
        "Sites",
        "own SQNR",
        "0:weight",
        "4:out",
        "What to try",
        "  1. ",
    ):
        assert text in result.output, text


def test_samples_limit_what_is_measured_and_streams_are_read_once(folder: Path) -> None:
    result = run(f"{folder}/net.py:tiny", "--data", f"{folder}/net.py:stream", "--samples", 10)
    assert result.exit_code == 0, result.output
    assert "sqnr on 10 samples" in result.output


def test_quiet_is_the_advice_alone(folder: Path) -> None:
    arguments = (f"{folder}/net.py:tiny", "--data", folder / "data.npz", "--metric", "kl")
    result = run(*arguments, *LOW_BITS, "--quiet")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[-1] == "If none of this is enough: train with quantizers on."
    assert len(lines) >= 3


def test_errors_are_one_line_and_code_2(folder: Path) -> None:
    result = run(f"{folder}/net.py:tiny", "--data", folder / "data.npz", "--metric", "top1")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: unknown metric 'top1': ")
    assert len(result.stderr.splitlines()) == 1
