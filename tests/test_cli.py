"""The command line, from end to end on a tiny network: exit codes, files, and what is printed."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner, Result

from halfstep import cli
from halfstep.graph.insert import QuantizedModel
from halfstep.graph.plan import Plan
from halfstep.journal import Journal, Record
from halfstep.program.serialize import load_program
from halfstep.recipes.ptq import ptq
from halfstep.report.latency import Gain, interleaved_minimum
from halfstep.report.table import ending
from halfstep.verdict import SiteReport, Verdict

NETWORK = """
import torch
from torch import nn

def tiny(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    )

def other():
    return tiny(1)

def islands():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3))

def pool():
    return nn.Sequential(nn.MaxPool2d(2), nn.ReLU())

def breaks_off():
    for seed in range(3):
        if seed == 2:
            raise OSError("the disk is gone")
        yield torch.randn(4, 3, 8, 8)

def one_batch():
    return [torch.randn(4, 3, 8, 8)]
"""
ANY = "onnxruntime_any"
NORMALIZED = ["--mean", "0.5,0.4,0.3", "--std", "0.25"]
SAVED_FILES = {
    "encodings.json",
    "lock.json",
    "model.onnx",
    "plan.yaml",
    "program.json",
    "program.safetensors",
    "program.txt",
    "report.html",
    "verdict.json",
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network and its data: ``data.npz`` to calibrate on, ``test.npz`` with labels."""
    path = tmp_path_factory.mktemp("cli")
    (path / "net.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    np.savez(path / "data.npz", images=images[:10])
    np.savez(path / "test.npz", images=images[10:], labels=rng.integers(0, 3, 30))
    np.savez(path / "rows.npz", inputs=rng.normal(size=(10, 6)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def quantized(folder: Path) -> Result:
    """One run of the main command, whose output several tests read."""
    data = ["--data", folder / "data.npz", "--test-data", folder / "test.npz"]
    return run("quantize", f"{folder}/net.py:tiny", *data, *NORMALIZED, "--out", folder / "out")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    sys.modules.pop("net", None)


def rows(output: str) -> dict[str, list[str]]:
    """The body of the table of decisions, by stage."""
    lines = [line for line in output.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    return {stage: values for stage, *values in cells}


def test_quantize_proves_and_saves(quantized: Result, folder: Path) -> None:
    assert quantized.exit_code == 0, quantized.output
    assert {path.name for path in (folder / "out").iterdir()} == SAVED_FILES
    verdict = json.loads((folder / "out" / "verdict.json").read_text())
    assert (verdict["status"], verdict["samples"]) == ("exact", 30)
    assert f"written to {folder / 'out'}: encodings.json, lock.json, model.onnx" in quantized.output


def test_prove_bounds_the_sums_of_a_saved_program(quantized: Result, folder: Path) -> None:
    assert quantized.exit_code == 0, quantized.output
    found = run("prove", folder / "out")
    assert found.exit_code == 1
    assert "int16_pairs: not proven: the sums of " in found.output
    assert "channels may overflow: " in found.output
    wide = run("prove", folder / "out", "--accumulator", "int24")
    assert wide.exit_code == 0
    assert "int24: proven: the sums of all 2 operations fit" in wide.output
    assert run("prove", folder / "out", "--accumulator", "int12").exit_code == 2
    assert run("prove", folder).exit_code == 2


def test_quantize_for_any_cpu_repairs(folder: Path) -> None:
    data, out = ["--data", folder / "data.npz", *NORMALIZED], folder / "any"
    found = run(
        "quantize", f"{folder}/net.py:tiny", *data, "--out", out, "--target", ANY, "--quiet"
    )
    assert found.exit_code == 0, found.output
    assert run("prove", out).exit_code == 0
    test = ["--data", folder / "test.npz", *NORMALIZED, "--model", f"{folder}/net.py:tiny"]
    again = run("verify", out, *test)
    assert again.exit_code == 0, again.output


def test_quantize_prints_what_was_found(quantized: Result, folder: Path) -> None:
    verdict = json.loads((folder / "out" / "verdict.json").read_text())
    table = rows(quantized.output)
    assert list(table) == ["float", "fake-quantized", "engine", "runtime"]
    assert {s: v[0] for s, v in table.items()} == {
        stage: f"{share:.2%}" for stage, share in verdict["accuracy"].items()
    }
    assert table["float"][1] == f"{verdict['agreement']['float and engine']:.2%}"
    assert table["runtime"][1] == "100.00%" and table["engine"][1] == ""
    for text in (
        "exact: 0 of ",
        "sites over 30 samples (onnxruntime)",
        "integer MACs  100.00% planned, 100.00% in the runtime",
        "not integer   no operation",
        "kB integer: ratio ",
        "ms integer: speed-up ",
        "verify ",
    ):
        assert text in quantized.stdout
    size = (folder / "out" / "model.onnx").stat().st_size
    assert f" {size / 1000:,.0f} kB integer" in quantized.stdout


def test_no_bars_and_no_colour_where_there_is_no_terminal(quantized: Result) -> None:
    assert "\x1b" not in quantized.output
    assert quantized.stderr == ""


def test_quiet_prints_the_verdict_alone(folder: Path) -> None:
    data = ["--data", folder / "data.npz", *NORMALIZED, "--samples", 6]
    result = run("quantize", f"{folder}/net.py:tiny", *data, "--quiet", "--out", folder / "quiet")
    assert result.exit_code == 0
    (line,) = result.output.splitlines()
    assert line.startswith("exact: 0 of ") and "over 6 samples" in line


def test_a_saved_folder_is_verified_without_the_model(quantized: Result, folder: Path) -> None:
    for path in (folder / "out", folder / "out" / "model.onnx"):
        result = run("verify", path, "--data", folder / "test.npz", *NORMALIZED, "--samples", 7)
        assert result.exit_code == 0, result.output
        assert list(rows(result.output)) == ["engine", "runtime"]
        assert "over 7 samples" in result.output


def test_with_its_model_all_stages_are_compared(quantized: Result, folder: Path) -> None:
    data = ["--data", folder / "test.npz", *NORMALIZED]
    result = run("verify", folder / "out", *data, "--model", f"{folder}/net.py:tiny")
    assert result.exit_code == 0, result.output
    assert rows(result.output) == rows(quantized.output)


def test_another_model_is_not_passed_off_as_the_fake_quantized(
    quantized: Result, folder: Path
) -> None:
    data = ["--data", folder / "test.npz", *NORMALIZED]
    result = run("verify", folder / "out", *data, "--model", f"{folder}/net.py:other")
    assert list(rows(result.output)) == ["float", "engine", "runtime"]
    assert "MODEL with the saved grids gives another program" in result.output


def test_a_changed_artifact_fails(quantized: Result, folder: Path, tmp_path: Path) -> None:
    for name in SAVED_FILES:
        (tmp_path / name).write_bytes((folder / "out" / name).read_bytes())
    model = onnx.load(tmp_path / "model.onnx")
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "0:weight")
    codes = numpy_helper.to_array(weight).copy()
    codes[2] //= 2
    weight.CopyFrom(numpy_helper.from_array(codes, weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    result = run("verify", tmp_path, "--data", folder / "test.npz", *NORMALIZED)
    assert result.exit_code == 1
    assert "failed: " in result.output and "first divergence: 0:out: conv" in result.output


def test_choices_reach_the_plan_and_the_program(folder: Path) -> None:
    types = ["--weight-type", "int4", "--activation-type", "uint7", "--per-tensor"]
    methods = ["--calibrator", "mse", "--weight-calibrator", "percentile", "--first-last", "int6"]
    where = ["--target", "reference", "--out", folder / "choices"]
    data = ["--data", folder / "data.npz", *NORMALIZED]
    result = run("quantize", f"{folder}/net.py:tiny", *data, *types, *methods, *where)
    assert result.exit_code == 0, result.output
    assert "has no artifact; integer MACs: 100.00% planned" in result.output
    specs = Plan.load(folder / "choices" / "plan.yaml").specs
    assert str(specs["0:weight"]) == "int6 per-tensor percentile symmetric"
    assert str(specs["0:out"]) == "uint7 per-tensor mse"
    assert load_program(folder / "choices").grid("0:weight").qtype.name == "int6"


def test_formats_of_scales_reach_the_plan(folder: Path) -> None:
    source = [f"{folder}/net.py:tiny", "--data", folder / "data.npz", *NORMALIZED]
    shown = run("plan", *source, "--pow2", "--group-size", 9, "--target", "reference")
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.output.split())
    assert "0:weight int8_narrow in groups of 9 (axis 0) minmax symmetric pow2" in words
    assert "0:out uint8 per-tensor mse pow2" in words
    result = run("quantize", *source, "--pow2", "--out", folder / "pow2")
    assert result.exit_code == 0, result.output
    for site, grid in json.loads((folder / "pow2" / "encodings.json").read_text())["sites"].items():
        assert (np.frexp(grid["scale"])[0] == 0.5).all(), site
    refused = run("quantize", *source, "--group-size", 9, "--out", folder / "never")
    assert refused.exit_code == 2
    assert "has no integer kernel with a scale for each group of weights" in refused.stderr


def test_a_plan_is_shown_written_edited_and_used(folder: Path) -> None:
    source = [f"{folder}/net.py:islands", "--data", folder / "rows.npz"]
    shown = run("plan", *source, "--out", folder / "plan.yaml")
    assert shown.exit_code == 0, shown.output
    assert "not integer: 1: ONNX Runtime has no integer kernel for it" in shown.output
    assert "not integer: 1 of 3 operations" in shown.output
    assert "integer MACs: 100.00% planned" in shown.output
    Plan.load(folder / "plan.yaml").keep_float("2", "as an example").save(folder / "plan.yaml")
    result = run("quantize", *source, "--plan", folder / "plan.yaml", "--out", folder / "islands")
    assert result.exit_code == 0, result.output
    assert "integer MACs  66.67% planned, 66.67% in the runtime" in result.output
    assert "not integer   1: ONNX Runtime has no integer kernel" in result.output
    assert "not integer   2: as an example" in result.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--target", "referenc"], "unknown target 'referenc': did you mean 'reference'?"),
        (["--recipe", "ptqq"], "unknown recipe 'ptqq': did you mean 'ptq'?"),
        (["--calibrator", "minmx"], "unknown calibrator 'minmx': did you mean 'minmax'?"),
        (["--weight-type", "int16"], "0:weight: asked for int16 per-channel"),
        (["--plan", "absent.yaml"], "absent.yaml: it cannot be read (No such file"),
        (["--test-data", "absent.npz"], "error: --test-data: absent.npz: there is no such file"),
        (["--weights", "absent.safetensors"], "absent.safetensors: there is no such file"),
        (["--mean", "0,x"], "--mean: asked for numbers such as 0.5,0.4,0.4, found 0,x"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(
    arguments: list[str], text: str, folder: Path
) -> None:
    data = ["--data", folder / "data.npz", *NORMALIZED]
    given = [f"{folder}/net.py:tiny", *data, *arguments, "--out", folder / "never"]
    result = run("quantize", *given)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and text in line
    assert result.stdout == "" and not (folder / "never").exists()


@pytest.mark.parametrize("option", ["--data", "--test-data"])
def test_a_loader_that_raises_is_named_with_its_batch(option: str, folder: Path) -> None:
    net = folder / "net.py"
    data = {"--data": f"{net}:one_batch", option: f"{net}:breaks_off"}
    given = [word for pair in data.items() for word in pair]
    result = run("quantize", f"{net}:tiny", *given, "--out", folder / "never")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    named = "" if option == "--data" else f"{option}: "
    failed = f"DATA {net}:breaks_off: batch 2: it failed: OSError: the disk is gone ({net}, line "
    assert line.startswith(f"error: {named}{failed}")
    assert not (folder / "never").exists()


def test_a_loader_that_raises_is_named_by_plan_and_verify(quantized: Result, folder: Path) -> None:
    data = ["--data", f"{folder}/net.py:breaks_off"]
    result = run("verify", folder / "out", *data)
    assert result.exit_code == 2 and "batch 2: it failed: OSError: the disk" in result.stderr
    assert run("plan", f"{folder}/net.py:tiny", *data).exit_code == 0, "one batch is enough"


def test_a_model_without_multiplications_has_no_coverage(folder: Path) -> None:
    source = [f"{folder}/net.py:pool", "--data", f"{folder}/net.py:one_batch"]
    none = "none: it has no convolution, linear layer or matrix product"
    assert f"integer MACs: {none}\n" in run("plan", *source).output
    result = run("quantize", *source, "--out", folder / "pool")
    assert result.exit_code == 0, result.output
    assert f"integer MACs  {none}\n" in result.output and "100.00% planned" not in result.output
    result = run("quantize", *source, "--target", "reference", "--out", folder / "pool")
    assert f"has no artifact; integer MACs: {none}\n" in result.output


def test_options_of_the_recipe_are_set_as_yaml(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def noting(
        *given: Any, rounds: int = 3, rate: float = 0.1, word: str = "", **choices: Any
    ) -> QuantizedModel:
        asked.update(rounds=rounds, rate=rate, word=word, per_channel=choices["per_channel"])
        return ptq(*given, **choices)

    monkeypatch.setattr("halfstep.recipes.ptq.ptq", noting)
    settings = ["rounds=5", "rate=1e-3", "word='12'", "per-channel=no"]
    given = [word for setting in settings for word in ("--set", setting)]
    data = ["--data", folder / "data.npz", *NORMALIZED, "--out", folder / "set"]
    result = run("quantize", f"{folder}/net.py:tiny", *data, *given)
    assert result.exit_code == 0, result.output
    assert asked == {"rounds": 5, "rate": 1e-3, "word": "12", "per_channel": False}
    assert "--set rounds=3" in run("list", "recipes").output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--set", "nonsense=1"], "unknown ptq option 'nonsense': known are activations, calibr"),
        (["--set", "calibratr=mse"], "'calibrator'"),
        (["--set", "target=reference"], "unknown ptq option 'target'"),
        (["--set", "per_channel=4"], "per_channel: asked for bool, found 4"),
        (["--set", "weights"], "--set weights: write --set option=value"),
        (["--set", "=3"], "--set =3: write --set option=value"),
        (["--set", "weights=[4"], "--set weights=[4: '[4' is not YAML; quote it"),
        (["--set", "weights=int4", "--set", "weights=int5"], "weights is given twice; keep one"),
        (["--set", "weights=int4", "--weight-type", "int5"], "weights is given twice; keep one"),
        (["--recipe", "ptqq", "--set", "a=1"], "unknown recipe 'ptqq': did you mean 'ptq'?"),
    ],
)
def test_settings_that_are_refused(arguments: list[str], text: str, folder: Path) -> None:
    data = ["--data", folder / "data.npz", *NORMALIZED, "--out", folder / "never"]
    result = run("quantize", f"{folder}/net.py:tiny", *data, *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and text in line
    assert not (folder / "never").exists()


def test_a_plan_and_choices_exclude_each_other(quantized: Result, folder: Path) -> None:
    data = ["--data", folder / "data.npz", *NORMALIZED, "--plan", folder / "out" / "plan.yaml"]
    for option, text in (
        ("--per-tensor", "no choice of per_channel"),
        ("--target=reference", "is for target"),
    ):
        result = run("quantize", f"{folder}/net.py:tiny", *data, option, "--out", folder / "never")
        assert result.exit_code == 2 and text in result.stderr


def test_a_folder_with_other_files_is_left_alone(folder: Path) -> None:
    data = ["--data", folder / "data.npz", *NORMALIZED]
    before = {path.name for path in folder.iterdir()}
    result = run("quantize", f"{folder}/net.py:tiny", *data, "--out", folder)
    assert result.exit_code == 2 and "it holds files of others" in result.stderr
    assert {path.name for path in folder.iterdir()} == before


def test_a_saved_folder_is_replaced(folder: Path) -> None:
    data = ["--data", folder / "data.npz", *NORMALIZED, "--quiet", "--out", folder / "twice"]
    for name in ("tiny", "other"):
        assert run("quantize", f"{folder}/net.py:{name}", *data).exit_code == 0
    result = run("verify", folder / "twice", "--data", folder / "data.npz", *NORMALIZED)
    assert result.exit_code == 0


@pytest.mark.parametrize("name", ["absent", "data.npz"])
def test_what_was_not_saved_cannot_be_verified(name: str, folder: Path) -> None:
    result = run("verify", folder / name, "--data", folder / "data.npz")
    assert result.exit_code == 2
    assert "there is no such file or folder" in result.stderr or "no saved program" in result.stderr


def test_the_catalog_is_listed() -> None:
    everything, targets = run("list"), run("list", "targets")
    for name in ("targets", "recipes", "calibrators", "quantizers", "minmax", "ptq", "ste"):
        assert name in everything.output
    assert "onnxruntime" in targets.output and "minmax" not in targets.output
    assert "weights int8_narrow" in " ".join(targets.output.replace("│", " ").split())
    result = run("list", "target")
    assert result.exit_code == 2 and "did you mean 'targets'" in result.stderr


def test_the_demo_runs_the_example(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resnet.py").write_text(NETWORK.replace("tiny(seed=0)", "resnet20(seed=0)"))
    (tmp_path / "data.py").write_text(
        "import torch\n"
        "x, y = torch.randn(30, 3, 8, 8), torch.arange(30) % 3\n"
        "def calibration():\n    return [(x[:10], y[:10])]\n"
        "def test():\n    return [(x[10:], y[10:])]\n"
    )
    monkeypatch.setattr(cli, "EXAMPLE", tmp_path)
    result = run("demo", "--out", tmp_path / "out" / "demo")
    assert result.exit_code == 0, result.output
    assert "over 20 samples" in result.output and "top-1" in result.output
    assert {path.name for path in (tmp_path / "out" / "demo").iterdir()} == SAVED_FILES


def test_the_demo_outside_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "EXAMPLE", tmp_path / "examples" / "cifar10")
    result = run("demo")
    assert result.exit_code == 2
    assert "demo: there is no examples/cifar10 beside the package" in result.stderr


# The report


def printed(verdict: Verdict, gain: Gain | str = "", journal: Journal | None = None) -> str:
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as capture:
        console.print(ending(verdict, gain, journal), soft_wrap=True)
    return capture.get()


def site(name: str, mismatches: int = 0, largest: int = 0) -> SiteReport:
    return SiteReport(name, "conv", "integer", 100, mismatches, largest)


def test_a_failed_verdict_names_its_cause_and_the_first_sites() -> None:
    sites = (site("a"), *(site(f"b{i}", 5, 2) for i in range(6)))
    text = printed(Verdict("onnxruntime", 3, sites, cause="b0: conv: rounding"))
    assert text.startswith("failed: 30 of 700 codes differ on 7 sites over 3 samples")
    assert "  first divergence: b0: conv: rounding\n" in text
    assert "  b3: 5 of 100 codes differ, by up to 2\n  and 2 more sites\n" in text
    assert "b4" not in text and "stage" not in text


def test_float_operations_are_grouped_by_reason() -> None:
    floats = {f"norm{i}": "no kernel" for i in range(6)} | {"head": "asked for"}
    text = printed(Verdict("onnxruntime", 3, (site("a"),), floats=floats))
    assert "  not integer   norm0, norm1, norm2, norm3 and 2 more: no kernel\n" in text
    assert "  not integer   head: asked for\n" in text


def test_the_gain_and_the_time_of_each_step() -> None:
    journal = Journal([Record("capture", 1.25), Record("verify", 2.5)])
    gain = Gain(4_000_000, 1_000_000, 0.003, 0.0015, 30)
    text = printed(Verdict("onnxruntime", 3, (site("a"),)), gain, journal)
    assert "  file size     4,000 kB float, 1,000 kB integer: ratio 4.00\n" in text
    assert "3.000 ms float, 1.500 ms integer: speed-up 2.00 (batch 1, fastest of 30 runs" in text
    assert "  seconds       3.8: capture 1.2, verify 2.5\n" in text
    text = printed(Verdict("onnxruntime", 3, (site("a"),)), "it takes no float model")
    assert "  latency       not compared with float: it takes no float model\n" in text


def test_timed_functions_take_turns() -> None:
    calls: list[str] = []
    found = interleaved_minimum({n: lambda n=n: calls.append(n) for n in "ab"}, 3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert found.keys() == {"a", "b"} and all(0 <= value < np.inf for value in found.values())
