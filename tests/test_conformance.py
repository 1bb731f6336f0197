"""One model on every target: rows are complete, refusals are named, the exit code is honest."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import halfstep as hs
from halfstep.catalog import family
from halfstep.cli import app
from halfstep.report.conformance import COLUMNS, cells, conformance_table
from halfstep.report.latency import Gain
from halfstep.verdict import SiteReport, Verdict
from tests.models import Residual, normal, seeded


def batches() -> list[torch.Tensor]:
    return [normal(4, 3, 8, 8, seed=seed) for seed in (1, 2)]


def test_every_target_with_an_artifact_has_a_row_and_a_proof_where_it_runs() -> None:
    rows = hs.conformance(seeded(Residual()), batches(), verify_samples=5, timed=False)
    tables = {name: entry.load() for name, entry in family("target").items()}
    assert [row.target for row in rows] == [n for n, t in tables.items() if t.artifact is not None]
    for row in rows:
        assert row.size, row.note
        assert (row.rom is not None) == row.target.startswith("c99")
        assert row.rom is None or 0 < row.rom < row.size
        if tables[row.target].run is None:
            assert row.verdict is None and row.note == "written; no runtime here opens it"
        else:
            assert row.verdict is not None and row.verdict.samples == 5
            assert row.verdict.status is hs.Status.EXACT, str(row.verdict)
            assert row.exit_code == 0 and row.note == ""


def test_what_a_target_refuses_is_said_and_the_others_go_on() -> None:
    module = seeded(nn.Sequential(nn.Linear(6, 6), nn.PReLU(), nn.Linear(6, 2)))
    data = iter([normal(4, 6), normal(4, 6, seed=1)])
    rows = hs.conformance(module, data, targets=["c99", "onnxruntime"], timed=True)
    refused, proven = rows
    assert refused.verdict is None and refused.size is None
    assert refused.note.startswith("refused: target 'c99' runs integers only")
    assert proven.verdict is not None and proven.gain is not None
    assert len(cells(refused)) == len(cells(proven)) == len(COLUMNS)
    assert conformance_table(rows).row_count == 2


def test_a_failed_verdict_fails_the_row() -> None:
    site = SiteReport("a:out", "conv", "integer", compared=10, mismatches=1, largest=2)
    verdict = Verdict("onnxruntime", samples=1, sites=(site,))
    row = hs.Conformance("onnxruntime", verdict, None, 100, "")
    assert row.exit_code == 1
    assert cells(row)[1:5] == ("failed", "10", "1", "2")


def test_the_table_fits_80_columns_and_c_counts_its_constants() -> None:
    site = SiteReport("a:out", "conv", "integer", compared=451_173_376, mismatches=12, largest=9)
    verdict = Verdict("c99", samples=64, sites=(site,), integer_in_runtime=1.0)
    gain = Gain(40_000_000, 10_000_000, 0.002, 0.001, 3)
    rows = [
        hs.Conformance("onnxruntime_any", verdict, gain, 11_795_281, ""),
        hs.Conformance("c99", verdict, None, 53_113_080, "", rom=11_802_345),
    ]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(conformance_table(rows))
    lines = [line.split() for line in capture.get().splitlines()[-2:]]
    seen = ["failed", "451,173,376", "12", "9", "100.00%"]
    assert lines[0] == ["onnxruntime_any", *seen, "0.50", "11,795,281"]
    assert lines[1] == ["c99", *seen, "11,802,345"]


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(hs.HalfstepError, match="unknown target 'onnxruntim': did you mean"):
        hs.conformance(seeded(Residual()), batches(), targets=["onnxruntim"])


def test_the_command_line_proves_all_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\nfrom torch import nn\n\n"
        "def net():\n    torch.manual_seed(0)\n    return nn.Linear(4, 3).eval()\n\n"
        "def data():\n    return [torch.randn(4, 4)]\n"
    )
    monkeypatch.setenv("COLUMNS", "200")
    asked = ["verify", "--all-targets", "--model", f"{file}:net", "--data", f"{file}:data"]
    done = CliRunner().invoke(app, [*asked, "--samples", "4", "--quiet"])
    assert done.exit_code == 0, done.output
    for name, entry in family("target").items():
        assert (f"\n{name} " in done.output) == (entry.load().artifact is not None)
    assert "failed" not in done.output
    assert "bytes of c99, c99_fixed: read-only data; see cost.md for RAM and code\n" in done.output


def test_nothing_proven_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\nfrom torch import nn\n\n"
        "class Net(nn.Module):\n    def forward(self, x):\n        return x.cumsum(1)\n\n"
        "def net():\n    return Net()\n\ndef data():\n    return [torch.randn(4, 4)]\n"
    )
    monkeypatch.setenv("COLUMNS", "200")
    asked = ["verify", "--all-targets", "--model", f"{file}:net", "--data", f"{file}:data"]
    done = CliRunner().invoke(app, [*asked, "--quiet"])
    assert done.exit_code == 2, done.output
    assert "c99: refused: " in done.output and "cumsum" in done.output


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["verify", "--data", "x.npz"], "give a folder that quantize wrote, or --all-targets"),
        (["verify", "--all-targets", "--data", "x.npz"], "it takes --model and --data"),
    ],
)
def test_what_is_missing_is_said(asked: list[str], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4), np.float32))
    place = [str(tmp_path / "x.npz") if word == "x.npz" else word for word in asked]
    done = CliRunner().invoke(app, place)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
