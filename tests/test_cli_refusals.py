"""What a user gets wrong on the command line: one line that names the option, before long work."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from halfstep import cli
from halfstep.cli_advice import on_command_line

NETWORK = """
import torch
from torch import nn

def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

def one_batch():
    return [torch.randn(4, 3, 8, 8)]

def empty():
    return []

def other_size():
    return [torch.randn(4, 3, 6, 6)]

def doubles():
    return [torch.randn(4, 3, 8, 8).double()]

def second_is_wrong():
    yield torch.randn(4, 3, 8, 8)
    yield torch.randn(4, 3, 6, 6)
"""
AS_IN_DATA = "--test-data: input:in: batch 0: asked for float32 (N, 3, 8, 8), as in DATA; found "


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "net.py"
    file.write_text(NETWORK)
    yield file
    sys.modules.pop(str(file), None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonsense"], "halfstep: No such option: --nonsense. See halfstep --help"),
        (["quantiz"], "halfstep: No such command 'quantiz'. Did you mean 'quantize'? See halfstep"),
        (["quantize"], "halfstep quantize: Missing argument 'MODEL'. See halfstep quantize --help"),
        (["quantize", "x", "--data"], "halfstep quantize: Option '--data' requires an argument. "),
        (["verify", "--samples", "0"], "halfstep verify: Invalid value for '--samples': "),
        (["list", "a", "b"], "halfstep list: Got unexpected extra argument"),
    ],
)
def test_a_wrong_use_is_one_line(arguments: list[str], said: str) -> None:
    found = CliRunner().invoke(cli.app, arguments, prog_name="halfstep")
    assert found.exit_code == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith(said)
    assert found.stdout == ""


def test_without_arguments_the_help_is_shown() -> None:
    found = CliRunner().invoke(cli.app, [], prog_name="halfstep")
    assert "Usage: halfstep" in found.output and "quantize" in found.output


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("absent.npz", "--test-data: absent.npz: there is no such file"),
        ("absent", "--test-data: DATA absent: there is no such folder; give an image folder"),
        ("NET:on_batch", "--test-data: unknown callable of NET 'on_batch': did you mean 'one_b"),
        ("NET:empty", "--test-data: the data has no batch: it is empty"),
        (
            "NET:other_size",
            f"{AS_IN_DATA}float32 (N, 3, 6, 6)",
        ),
        (
            "NET:doubles",
            f"{AS_IN_DATA}float64 (N, 3, 8, 8)",
        ),
    ],
)
def test_test_data_are_looked_at_first(
    data: str, said: str, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halfstep.job.quantize", lambda *_, **__: pytest.fail("long work"))
    given = ["--data", f"{net}:one_batch", "--test-data", data.replace("NET", str(net))]
    found = run("quantize", f"{net}:tiny", *given, "--out", net.parent / "never")
    assert found.exit_code == 2, found.output
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"error: {said.replace('NET', str(net))}")


@pytest.mark.parametrize("option", ["--mean=0", "--std=1", "--batch-size=2"])
def test_options_of_images_are_refused_for_callables(option: str, net: Path) -> None:
    given = ["--data", f"{net}:one_batch", option]
    found = run("quantize", f"{net}:tiny", *given, "--out", net.parent / "never")
    assert found.exit_code == 2
    said = f"error: {option.partition('=')[0]}: it is for image folders and .npz files, and "
    assert found.stderr.startswith(f"{said}{net}:one_batch gives batches as the model takes them.")


@pytest.mark.parametrize("data", ["NET:one_batch", "images.npz"])
def test_a_size_is_refused_where_no_image_is_resized(data: str, net: Path, tmp_path: Path) -> None:
    given = ["--data", data.replace("NET", str(net)), "--size=8"]
    found = run("quantize", f"{net}:tiny", *given, "--out", tmp_path / "never")
    assert found.exit_code == 2
    assert found.stderr.startswith("error: --size: it is for image folders, and ")


def test_options_of_images_are_taken_where_test_data_are_images(net: Path, tmp_path: Path) -> None:
    images = np.zeros((2, 3, 8, 8), np.uint8)
    np.savez(tmp_path / "test.npz", images=images)
    given = ["--data", f"{net}:one_batch", "--test-data", tmp_path / "test.npz"]
    normalized = ["--mean", "0.5", "--std", "0.25"]
    found = run("quantize", f"{net}:tiny", *given, *normalized, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.stderr


def test_later_test_data_are_named_as_well(net: Path) -> None:
    given = ["--data", f"{net}:one_batch", "--test-data", f"{net}:second_is_wrong"]
    found = run("quantize", f"{net}:tiny", *given, "--out", net.parent / "never")
    assert found.exit_code == 2
    assert "error: --test-data: " in found.stderr and "Nx3x8x8" in found.stderr
    assert not (net.parent / "never").exists()


def test_fewer_samples_than_asked_for_are_said(net: Path) -> None:
    out, data = net.parent / "out", ["--data", f"{net}:one_batch"]
    many = ["--samples", 9, "--quiet"]
    found = run("quantize", f"{net}:tiny", *data, *many, "--out", out)
    assert "DATA has 4 of the 9 samples that --samples asks for\n" in found.stdout
    test = ["--test-data", f"{net}:one_batch"]
    found = run("quantize", f"{net}:tiny", *data, *test, *many, "--out", out)
    assert "--test-data has 4 of the 9 samples that --samples asks for\n" in found.stdout
    found = run("verify", out, *data, *many)
    assert found.stdout.endswith("DATA has 4 of the 9 samples that --samples asks for\n")
    found = run("export", out, *data, "--golden", net.parent / "golden", "--samples", 9)
    assert "DATA has 4 of the 9 samples that --samples asks for\n" in found.stdout
    found = run("verify", out, *data, "--samples", 4)
    assert "that --samples asks for" not in found.stdout


def test_where_there_are_no_sums_nothing_is_proven(net: Path) -> None:
    data = ["--data", f"{net}:one_batch", "--quiet", "--out", net.parent / "out"]
    assert run("quantize", f"{net}:tiny", *data, "--target", "tensorrt").exit_code == 0
    found = run("prove", net.parent / "out")
    assert found.exit_code == 1
    assert found.stdout == (
        "int16_pairs: nothing to prove: no operation adds products of codes in it\n"
    )
    found = run("prove", net.parent / "out", "--accumulator", "int32")
    assert found.exit_code == 0 and "int32: proven: the sums of all 2 operations" in found.stdout


PLAN = "plan.yaml ('halfstep plan --out' writes one, --plan takes it)"
SPECS = f"under specs in {PLAN}"
IN_FULL = (
    "Change the plan with --weight-type int8_narrow, or 'qtype: int8_narrow' for 0:weight "
    f"{SPECS}, keep the operation in float with 'NAME: float' under executions in plan.yaml, "
    "or see what it accepts: halfstep list targets"
)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            ["--weight-type", "int16"],
            IN_FULL,
        ),
        (
            ["--activation-type", "uint16"],
            "Change the plan with --activation-type uint8, or 'qtype: uint8' for input_1:in under ",
        ),
        (
            ["--group-size", 9],
            "Take one scale a channel with no --group-size, or 'group_size: null' for 0:weight und",
        ),
    ],
)
def test_advice_names_options_and_lines_of_the_plan(
    asked: list[object], said: str, net: Path
) -> None:
    found = run("plan", f"{net}:tiny", "--data", f"{net}:one_batch", *asked)
    assert found.exit_code == 2
    assert said in found.stderr and "plan.edit" not in found.stderr


@pytest.mark.parametrize(
    ("python", "said"),
    [
        (
            "keep it in float with plan.keep_float('a.b')",
            f"keep it in float with 'a.b: float' under executions in {PLAN}",
        ),
        (
            """plan.edit("it's:out", symmetric=True, qtype='int8')""",
            f"--activation-type int8, or 'symmetric: true, qtype: int8' for it's:out {SPECS}",
        ),
        (
            "or capture a part: capture(model, example, only='backbone').",
            "or capture a part: give as MODEL a callable that makes that part alone.",
        ),
        ("Try calibrator='mse'", "Try --calibrator mse"),
        ("ranges by weight_calibrator='mse'", "ranges by --weight-calibrator mse"),
    ],
)
def test_python_becomes_the_command_line(python: str, said: str) -> None:
    assert on_command_line(python) == said


def test_no_advice_stays_in_python() -> None:
    """Every text of the package that names such a call is one that the command line rewords."""
    package = Path(cli.__file__).parent
    call = re.compile(
        r"plan\.(edit|keep_float)\b|\bcapture\([^)]*only=|search\.(allocate|partially)"
    )
    for file in [package / "core" / "target.py", package / "search" / "advice.py"]:
        for found in ast.walk(ast.parse(file.read_text())):
            if isinstance(found, ast.JoinedStr):
                text = "".join(
                    v.value if isinstance(v, ast.Constant) else "'a'" for v in found.values
                )
                assert not call.search(on_command_line(text)), text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "this is not a saved plan: it is not YAML (while parsing a flow node"),
        ("", "this is not a saved plan: it does not hold names and values"),
        ("target: c99", "this is not a saved plan: it has no 'specs'"),
    ],
)
def test_what_is_no_plan_is_named_once(text: str, said: str, net: Path) -> None:
    plan = net.parent / "plan.yaml"
    plan.write_text(text)
    given = ["--data", f"{net}:one_batch", "--plan", plan, "--out", net.parent / "never"]
    found = run("quantize", f"{net}:tiny", *given)
    assert found.exit_code == 2
    assert found.stderr.startswith(f"error: {plan}: {said}")
    assert found.stderr.count(str(plan)) == 1
