"""A target that promises a distance: one operation on equal inputs, and no word on what follows."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import halfstep as hs
from halfstep.catalog import find
from halfstep.verdict import SiteReport, Status, Verdict
from tests.models import Residual
from tests.pipeline import Lowered, lowered, normal_inputs

Codes = Mapping[str, NDArray[Any]]
Change = Callable[[NDArray[Any]], NDArray[Any]]
module = import_module("halfstep.verify")  # the package has a function of this name
FIRST = "stem:out"


@pytest.fixture(scope="module")
def residual() -> Lowered:
    return lowered(Residual(), normal_inputs((3, 6, 6)))


def nudged(codes: NDArray[Any], steps: int) -> NDArray[Any]:
    """Every code moved by ``steps``, towards the middle."""
    moved = codes.astype(np.int64)
    return (moved + np.where(moved > 128, -steps, steps)).astype(codes.dtype)


class Nearly:
    """A runtime that is the engine, but for one site, and but for its outputs when deployed."""

    program: hs.IntProgram
    steps = 0
    deployed_steps = 0.0

    def __init__(self, path: Path, sites: Collection[str]) -> None:
        del path
        self.exposed = bool(sites)

    def run(self, inputs: Sequence[NDArray[Any]]) -> Codes:
        engine = hs.Engine(self.program)
        plain = engine.run(inputs, keep=[FIRST]).kept[FIRST]
        anchors = {FIRST: nudged(plain, self.steps)}
        run = engine.run(inputs, keep=self.program.sites, anchors=anchors)
        outputs = dict(zip(self.program.outputs, run.outputs, strict=True))
        if not self.exposed:
            return {name: value + self.deployed_steps for name, value in outputs.items()}
        return {**run.kept, **outputs, **anchors}

    def integer_kernel_of(self, sites: Sequence[str]) -> Mapping[str, bool]:
        return dict.fromkeys(sites, True)

    def constants(self) -> Codes:
        return {}


def found(
    residual: Lowered, monkeypatch: pytest.MonkeyPatch, bound: int, steps: int, apart: float = 0
) -> Verdict:
    target = replace(find("target", "onnxruntime"), bound=bound)
    grid = residual.program.grid("fc:out")
    fields = {
        "program": residual.program,
        "steps": steps,
        "deployed_steps": np.float32(apart * grid.scale),
    }
    monkeypatch.setattr(module, "find", lambda *_: target)
    monkeypatch.setattr(module, "resolve", lambda _: type("Made", (Nearly,), fields))
    return hs.verify(residual.program, "nowhere", residual.samples(), backend="numpy")


def test_one_operation_is_judged_on_the_runtimes_own_inputs(
    residual: Lowered, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = found(residual, monkeypatch, bound=1, steps=1)
    assert made.status is Status.BOUNDED
    assert {site.site for site in made.comparable if site.mismatches} == {FIRST}
    assert made.end_to_end[0].mismatches, "what follows from the difference is reported"
    assert "promised: 1 at most, by one operation on equal inputs" in str(made)
    assert "output, end to end:" in str(made)


@pytest.mark.parametrize(("bound", "steps"), [(1, 2), (0, 1)])
def test_more_than_was_promised_fails(
    residual: Lowered, monkeypatch: pytest.MonkeyPatch, bound: int, steps: int
) -> None:
    made = found(residual, monkeypatch, bound, steps)
    assert made.status is Status.FAILED
    assert made.cause == f"{FIRST}: conv: " + (
        "rounding: another formula, one code apart"
        if steps == 1
        else "saturation or overflow of partial sums, or other weights or biases"
    )


def test_equality_under_a_bound_is_exact(
    residual: Lowered, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = found(residual, monkeypatch, bound=1, steps=0)
    assert (made.status, made.end_to_end[0].mismatches) == (Status.EXACT, 0)


def test_what_only_the_deployed_file_does_is_never_exact(
    residual: Lowered, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = found(residual, monkeypatch, bound=1, steps=0, apart=3)
    assert (made.status, made.mismatches) == (Status.BOUNDED, 0)
    assert made.end_to_end[0].largest == 3
    exact = found(residual, monkeypatch, bound=0, steps=0, apart=3)
    assert exact.status is Status.FAILED


def test_end_to_end_alone_proves_nothing() -> None:
    report = SiteReport("output", "output", "end to end", 10)
    assert Verdict("openvino", 4, (), 1, (report,)).status is Status.FAILED
