"""What ``quantize`` gives back, on disk: every file parses, and a save is whole or nothing."""

import json
from pathlib import Path

import onnx
import pytest
from torch import nn

import halfstep as hs
from halfstep.errors import ExportError
from halfstep.program.serialize import load_program, same_program
from tests.models import Residual, normal, seeded

PROGRAM = {
    "program.json",
    "program.safetensors",
    "program.txt",
    "encodings.json",
    "lock.json",
    "plan.yaml",
    "report.html",
}


def quantized(model: nn.Module, target: str = "onnxruntime") -> hs.Result:
    return hs.quantize(seeded(model), [normal(4, 3, 6, 6)], target=target)


@pytest.fixture(scope="module")
def result() -> hs.Result:
    return quantized(Residual())


@pytest.fixture(scope="module")
def without_artifact() -> hs.Result:
    return quantized(Residual(), "reference")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_saved_files_parse_and_hold_the_result(result: hs.Result, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    result.save(folder)
    assert names(folder) == PROGRAM | {"model.onnx", "verdict.json"}
    onnx.checker.check_model(onnx.load(folder / "model.onnx"), full_check=True)
    assert same_program(load_program(folder), result.program)
    assert hs.Plan.load(folder / "plan.yaml").diff(result.model.plan) == []
    assert (folder / "program.txt").read_text() == f"{result.program}\n"


def test_the_saved_verdict_is_that_of_the_result(result: hs.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    proof = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert result.verdict is not None
    assert (proof["status"], proof["mismatches"], proof["samples"]) == ("exact", 0, 4)
    assert [site["site"] for site in proof["sites"]] == [s.site for s in result.verdict.sites]
    assert {"python", "torch", "numpy", "onnx", "onnxruntime"} <= proof["versions"].keys()
    assert proof["agreement"].keys() == {
        "float and engine",
        "fake-quantized and engine",
        "runtime and engine",
    }


def test_saved_encodings_are_the_grids_of_the_program(result: hs.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "encodings.json").read_text())
    assert (saved["schema"], saved["target"]) == (1, "onnxruntime")
    with_grid = {name for name, t in result.program.tensors.items() if t.grid is not None}
    assert saved["sites"].keys() == with_grid
    for site, encoding in saved["sites"].items():
        grid = result.program.grid(site)
        assert encoding["type"] == grid.qtype.name
        assert encoding["scale"] == grid.scale.tolist()
        assert encoding["zero_point"] == grid.zero_point.tolist()
        assert encoding["axis"] == grid.axis
    assert len(saved["sites"]["stem:weight"]["scale"]) == 4


def test_a_saved_artifact_is_verified_again(result: hs.Result, tmp_path: Path) -> None:
    result.save(tmp_path)
    verdict = hs.verify(load_program(tmp_path), tmp_path / "model.onnx", [normal(3, 3, 6, 6)])
    assert (str(verdict.status), verdict.mismatches) == ("exact", 0)


def test_saving_again_replaces_the_whole_folder(
    result: hs.Result, without_artifact: hs.Result, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    result.save(folder)
    without_artifact.save(folder)
    assert names(folder) == PROGRAM
    assert same_program(load_program(folder), without_artifact.program)
    assert names(tmp_path) == {"out"}


def test_what_a_notebook_shows_is_short(result: hs.Result, without_artifact: hs.Result) -> None:
    verdict = str(result.verdict)
    assert repr(result) == str(result) == f"Result({verdict.splitlines()[0]})"
    assert repr(without_artifact) == "Result(not verified)"
    assert repr(result.verdict) == verdict
    assert repr(result.program) == "IntProgram(onnxruntime: 8 operations, 7 sites)"


def test_an_empty_folder_is_taken(result: hs.Result, tmp_path: Path) -> None:
    result.save(tmp_path)
    assert "model.onnx" in names(tmp_path)


@pytest.mark.parametrize("first", [False, True], ids=["foreign alone", "beside a saved result"])
@pytest.mark.parametrize("what", ["notes.txt", "checkpoints/epoch1.txt"])
def test_a_folder_with_foreign_files_is_refused(
    result: hs.Result, tmp_path: Path, what: str, first: bool
) -> None:
    if first:
        result.save(tmp_path)
    foreign = tmp_path / what
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("mine")
    before = names(tmp_path)
    with pytest.raises(ExportError, match=r"it holds files of others.* choose a new or an empty"):
        result.save(tmp_path)
    assert foreign.read_text() == "mine"
    assert names(tmp_path) == before


def test_golden_files_are_replaced_with_the_result_that_they_are_of(
    result: hs.Result, tmp_path: Path
) -> None:
    result.save(tmp_path)
    hs.write_golden(result.program, [normal(1, 3, 6, 6)], tmp_path / "golden")
    result.save(tmp_path)
    assert "golden" not in names(tmp_path)
    hs.write_golden(result.program, [normal(1, 3, 6, 6)], tmp_path / "golden")
    (tmp_path / "golden" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="it holds files of others, such as golden, and saving"):
        result.save(tmp_path)
    assert (tmp_path / "golden" / "notes.txt").read_text() == "mine"


def test_a_target_without_artifact_gives_the_program_alone(
    without_artifact: hs.Result, tmp_path: Path
) -> None:
    assert (without_artifact.artifact, without_artifact.verdict) == (None, None)
    without_artifact.save(tmp_path / "out")
    assert names(tmp_path / "out") == PROGRAM
    assert same_program(load_program(tmp_path / "out"), without_artifact.program)
    with pytest.raises(ExportError, match="target 'reference' has no artifact; the engine runs"):
        hs.export(without_artifact.program, tmp_path / "model.onnx")


def test_without_samples_nothing_is_claimed(tmp_path: Path) -> None:
    result = hs.quantize(seeded(Residual()), [normal(4, 3, 6, 6)], verify_samples=0)
    assert result.verdict is None
    result.save(tmp_path / "out")
    assert "verdict.json" not in names(tmp_path / "out")
