"""The verdict says failed whenever the artifact computes something else, and names where."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

import halfstep as hs
from halfstep.verdict import SiteReport, Status, Verdict
from tests.models import Call, Residual, seeded
from tests.pipeline import Lowered, lowered, normal_inputs

Change = Callable[[NDArray[Any]], NDArray[Any]]


@pytest.fixture(scope="module")
def residual() -> Lowered:
    return lowered(Residual(), normal_inputs((3, 6, 6)))


@pytest.fixture(scope="module")
def island() -> Lowered:
    """A float layer norm between two integer products."""
    parts = (nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    return lowered(Call(lambda a, norm, b, x: b(norm(a(x))), *parts), normal_inputs((6,)))


# Hand-made verdicts --------------------------------------------------------------------------


def verdict(*largest: int, bound: int = 0, samples: int = 4, comparable: bool = True) -> Verdict:
    sites = tuple(
        SiteReport(f"op{i}:out", "conv", "integer", 10, int(d > 0), d, comparable=comparable)
        for i, d in enumerate(largest)
    )
    return Verdict("onnxruntime", samples, sites, bound)


@pytest.mark.parametrize(
    ("made", "status", "exit_code"),
    [
        (verdict(0, 0), Status.EXACT, 0),
        (verdict(0, 0, bound=1), Status.EXACT, 0),
        (verdict(0, 1, bound=1), Status.BOUNDED, 0),
        (verdict(0, 2, bound=1), Status.FAILED, 1),
        (verdict(0, 1), Status.FAILED, 1),
        (verdict(), Status.FAILED, 1),
        (verdict(0, samples=0), Status.FAILED, 1),
        (verdict(0, comparable=False), Status.FAILED, 1),
    ],
    ids=[
        "equal",
        "equal under a bound",
        "within the bound",
        "beyond the bound",
        "no bound",
        "no sites",
        "no samples",
        "nothing comparable",
    ],
)
def test_status(made: Verdict, status: Status, exit_code: int) -> None:
    assert (made.status, made.exit_code) == (status, exit_code)
    assert str(made).startswith(f"{status}: ")
    assert made.to_dict()["status"] == str(status)


def test_one_of_a_thing_is_no_plural() -> None:
    one = str(verdict(0, samples=1)).splitlines()[0]
    assert one == "exact: 0 of 10 codes differ on 1 site over 1 sample (onnxruntime)"


def test_sites_of_float_kernels_do_not_count() -> None:
    sites = (SiteReport("a:out", "conv", "integer", 10), verdict(3, comparable=False).sites[0])
    made = Verdict("onnxruntime", 4, sites)
    assert (made.status, made.mismatches) == (Status.EXACT, 0)
    assert "not counted: 1 site from float kernels (largest distance 3)" in str(made)


def test_one_differing_site_is_listed() -> None:
    text = str(verdict(0, 5))
    assert text.startswith("failed: 1 of 20 codes differ on 2 sites over 4 samples (onnxruntime)")
    assert "op1:out: 1 of 10 differ, by up to 5" in text
    assert "op0:out" not in text


# Tampered files ------------------------------------------------------------------------------


def tamper(path: Path, name: str, change: Change) -> None:
    """Replace the initializer ``name`` of an ONNX file by ``change`` of it."""
    model = onnx.load(path)
    constant = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    before = numpy_helper.to_array(constant)
    after = np.asarray(change(before.copy()), before.dtype)
    assert after.shape == before.shape and not np.array_equal(after, before)
    constant.CopyFrom(numpy_helper.from_array(after, name))
    onnx.save(model, path)


def replaced(index: tuple[int, ...], change: Callable[[Any], Any]) -> Change:
    def run(values: NDArray[Any]) -> NDArray[Any]:
        values[index] = change(values[index])
        return values

    return run


@pytest.mark.parametrize(
    ("name", "change", "site", "cause"),
    [
        (
            "stem:weight",
            replaced((1, 0, 1, 1), lambda code: -127 if code > 0 else 127),
            "stem:out",
            "conv: stem:weight has other numbers in it, 1 of 108",
        ),
        (
            "conv:weight/scale",
            replaced((2,), lambda scale: 2 * scale),
            "conv:out",
            "conv: conv:weight/scale has other numbers in it, 1 of 4",
        ),
        (
            "conv:out/zero_point",
            lambda code: code - 5,
            "conv:out",
            "conv: conv:out/zero_point has other numbers in it, 1 of 1",
        ),
        (
            "add:out/zero_point",
            lambda code: code + 5,
            "add:out",
            "add: add:out/zero_point has other numbers in it, 1 of 1",
        ),
        (
            "fc:bias",
            replaced((3,), lambda code: code + 4000),
            "fc:out",
            "linear: fc:bias has other numbers in it, 1 of 5",
        ),
    ],
    ids=["weight code", "weight scale", "zero point", "zero point of add", "bias code"],
)
def test_a_tampered_file_fails_at_the_tampered_operation(
    residual: Lowered, tmp_path: Path, name: str, change: Change, site: str, cause: str
) -> None:
    path = residual.export(tmp_path)
    tamper(path, name, change)
    found = hs.verify(residual.program, path, residual.samples())
    assert (found.status, found.exit_code) == (Status.FAILED, 1)
    assert next(report.site for report in found.sites if report.mismatches) == site
    cause += ": the artifact was not made from this program, or changed since"
    assert found.cause == f"{site}: {cause}"
    assert f"first divergence: {site}: {cause}" in str(found)


def test_the_file_of_another_program_with_the_same_sites_is_told(
    residual: Lowered, tmp_path: Path
) -> None:
    other = lowered(seeded(Residual(), 1), normal_inputs((3, 6, 6)), redraw=False)
    path = other.export(tmp_path)
    found = hs.verify(residual.program, path, residual.samples())
    assert found.status is Status.FAILED
    weights = r"stem:out: conv: stem:weight has other numbers in it, \d+ of 108"
    said = f"{weights}: the artifact was not made from this program, or changed since"
    assert re.fullmatch(said, found.cause)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_file_with_the_numbers_of_its_program_is_not_called_another_s(
    target: str, tmp_path: Path
) -> None:
    made = lowered(Residual(), normal_inputs((3, 6, 6)), target=target)
    path = made.export(tmp_path)
    wrong = [
        replace(op, clamp=(0, 3)) if op.output == "stem:out" else op for op in made.program.ops
    ]
    found = hs.verify(replace(made.program, ops=tuple(wrong)), path, made.samples())
    assert found.cause.startswith("stem:out: conv: ")
    assert "not made from this program" not in found.cause


def test_a_product_that_is_not_fused_is_told(residual: Lowered, tmp_path: Path) -> None:
    """The bias is on another scale than the products: the pattern of fusion is gone."""
    path = residual.export(tmp_path)
    model = onnx.load(path)
    scale = next(t for t in model.graph.initializer if t.name == "conv:weight/scale")
    doubled = numpy_helper.from_array(2 * numpy_helper.to_array(scale), "doubled")
    model.graph.initializer.append(doubled)
    reader = next(node for node in model.graph.node if "conv:weight/scale" in node.input)
    reader.input[1] = "doubled"
    onnx.save(model, path)
    found = hs.verify(residual.program, path, residual.samples())
    assert found.cause == "conv:out: conv: fusion: the runtime runs it in float32"


def test_the_first_differing_code_is_named_by_sample_and_position(
    residual: Lowered, tmp_path: Path
) -> None:
    path = residual.export(tmp_path)
    tamper(path, "fc:bias", replaced((3,), lambda code: code + 4000))
    found = hs.verify(residual.program, path, residual.samples())
    report = next(report for report in found.sites if report.site == "fc:out")
    assert report.first == (0, 3)
    assert (report.compared, report.mismatches) == (6 * 5, 6)


def test_an_untouched_file_is_exact_and_integer(residual: Lowered, tmp_path: Path) -> None:
    found = residual.prove(tmp_path)
    assert (found.status, found.mismatches, found.cause) == (Status.EXACT, 0, "")
    assert found.samples == 6
    assert (found.integer_coverage, found.integer_in_runtime) == (1.0, 1.0)
    compared = {report.site: report.compared for report in found.sites}
    assert compared["stem:out"] == 6 * 4 * 6 * 6
    assert all(compared.values())


# Float islands -------------------------------------------------------------------------------


def test_a_float_island_is_not_counted_and_what_follows_is_exact(
    island: Lowered, tmp_path: Path
) -> None:
    found = island.prove(tmp_path)
    assert next(report.site for report in found.sites if not report.comparable) == "part.1:out"
    assert found.floats == {"part.1": "ONNX Runtime has no integer kernel for it"}
    behind = next(report for report in found.sites if report.site == "part.2:out")
    assert behind.comparable and behind.compared == 6 * 4 and behind.mismatches == 0
    assert (found.status, found.mismatches) == (Status.EXACT, 0)
    assert found.integer_in_runtime == 1.0


def test_what_follows_a_float_island_is_compared(island: Lowered, tmp_path: Path) -> None:
    path = island.export(tmp_path)
    tamper(path, "part.2:bias", replaced((2,), lambda code: code + 8000))
    found = hs.verify(island.program, path, island.samples())
    assert found.status is Status.FAILED
    assert found.cause.startswith("part.2:out: linear: part.2:bias has other numbers in it, 1 of 4")


# Decisions -----------------------------------------------------------------------------------


def test_labels_give_accuracy_and_stages_give_agreement(residual: Lowered, tmp_path: Path) -> None:
    samples = residual.samples()
    engine = hs.Engine(residual.program)
    decisions = np.concatenate([engine.run(x).outputs[0].argmax(1) for x in samples])
    # By hand: the engine is right in the first four of six, "third" where the label is 3.
    labels = np.where(np.arange(6) < 4, decisions, (decisions + 1) % 5)

    def third(inputs: Any) -> NDArray[Any]:
        return np.eye(5, dtype=np.float32)[np.full(len(inputs[0]), 3)]

    def shifted(inputs: Any) -> NDArray[Any]:
        return np.roll(engine.run(inputs).outputs[0], 1, axis=1)

    data = [(*x, y) for x, y in zip(samples, (labels[:3], labels[3:]), strict=True)]
    stages = {"third": third, "shifted": shifted}
    found = hs.verify(residual.program, residual.export(tmp_path), data, stages=stages)
    assert found.accuracy == pytest.approx(
        {
            "engine": 4 / 6,
            "runtime": 4 / 6,
            "shifted": 2 / 6,
            "third": np.count_nonzero(labels == 3) / 6,
        }
    )
    assert found.agreement == pytest.approx(
        {
            "runtime and engine": 1.0,
            "shifted and engine": 0.0,
            "third and engine": np.count_nonzero(decisions == 3) / 6,
        }
    )


def test_without_labels_there_is_no_accuracy(residual: Lowered, tmp_path: Path) -> None:
    found = residual.prove(tmp_path)
    assert found.accuracy == {}
    assert found.agreement == {"runtime and engine": 1.0}


def test_a_printed_verdict_names_the_first_sites_and_counts_the_rest() -> None:
    sites = [SiteReport(f"s{i}", "conv", "integer", 9, 1, 1, (0,)) for i in range(9)]
    islands = [SiteReport(f"f{i}", "quantize", "edge", 9, comparable=False) for i in range(8)]
    lines = str(Verdict("onnxruntime", 4, (*sites, *islands))).splitlines()
    assert lines[0] == "failed: 9 of 81 codes differ on 9 sites over 4 samples (onnxruntime)"
    assert lines[6] == "  s5: 1 of 9 differ, by up to 1, first at (0,)"
    assert lines[7] == "  and 3 more sites"
    assert lines[8].endswith("(largest distance 0): f0, f1, f2, f3, f4, f5, ...")
    assert lines[9].startswith("  integer multiply-accumulates: none: it has no convolution")
