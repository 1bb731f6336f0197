"""The whole job of ``halfstep quantize`` and ``halfstep demo``, and what it prints."""

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from halfstep.catalog import find
from halfstep.core.target import Target
from halfstep.errors import HalfstepError, RuntimeUnavailableError
from halfstep.files import write_contents
from halfstep.options import naming
from halfstep.progress import on_terminal, silent
from halfstep.quantize import quantize, stages
from halfstep.report.coverage import coverage_text
from halfstep.report.latency import Gain, compare_with_float
from halfstep.report.table import ending, verdict_text
from halfstep.result import Result
from halfstep.runtimes.cc import code_bytes
from halfstep.sources import Peeked, check_alike, samples_of
from halfstep.verify import verify


def run_job(
    model: nn.Module,
    data: Iterable[Any],
    test: Iterable[Any] | None,
    out: Path,
    samples: int | None,
    quiet: bool,
    **choices: Any,
) -> int:
    """Quantize, verify, save and report.

    Args:
        model: the float model.
        data: batches to calibrate on.
        test: batches to verify on, instead of the first of ``data``.
        out: the folder to write.
        samples: how many samples to verify on.
        quiet: print the verdict alone.
        **choices: of ``halfstep.quantize``.

    Returns:
        The exit code, which is the verdict's.
    """
    progress = silent if quiet else on_terminal
    if test is not None:
        data = Peeked(data)
        with naming("--test-data"):
            test = Peeked(test)
            check_alike(test.head, data.head, model.forward)
    held = 0 if test is not None else samples or 64
    result = quantize(model, data, verify_samples=held, progress=progress, **choices)
    target: Target = find("target", result.program.target)
    if test is not None and target.run is not None:
        result = _verified(result, model, progress(test, "verify"), samples)
    result.save(out)
    if result.verdict is None:
        coverage = coverage_text(result.program.integer_coverage())
        print_line(
            f"not verified: target '{target.name}' has no "
            f"{'artifact' if target.artifact is None else 'runtime'}; integer MACs: {coverage}"
        )
    elif quiet:
        Console().print(verdict_text(result.verdict), soft_wrap=True)
    else:
        gain = _gain(result)
        Console().print(ending(result.verdict, gain, result.journal), soft_wrap=True)
    if result.verdict is not None:
        what = "DATA" if test is None else "--test-data"
        print_shortage(what, result.verdict.samples, samples)
    if not quiet:
        if cost := _cost(result):
            print_line(cost)
        print_line(f"written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return result.verdict.exit_code if result.verdict else 0


def print_shortage(what: str, found: int, asked: int | None) -> None:
    """Say so where there are fewer samples than were asked for."""
    if asked is not None and found < asked:
        print_line(f"{what} has {found} of the {asked} samples that --samples asks for")


def print_line(text: str) -> None:
    """Print ``text`` as it is."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _verified(result: Result, model: nn.Module, data: Iterable[Any], samples: int | None) -> Result:
    """``result`` with the verdict on other data than it was calibrated on."""
    assert result.artifact is not None
    name, contents = result.artifact
    with (
        tempfile.TemporaryDirectory() as folder,
        result.journal.step("verify"),
        naming("--test-data"),
    ):
        path = Path(folder) / name
        write_contents(path, contents)
        batches = samples_of(data, result.program.inputs, samples)
        verdict = verify(result.program, path, batches, stages=stages(model, result.model))
    return replace(result, verdict=verdict)


def _cost(result: Result) -> str:
    """What the artifact says of ROM, RAM and cycles, and the size of its code; mostly nothing."""
    contents = b"" if result.artifact is None else result.artifact[1]
    if isinstance(contents, bytes) or "cost.md" not in contents:
        return ""
    head = contents["cost.md"].decode().partition("\n|")[0].strip()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c99"
        write_contents(path, contents)
        try:
            code = f"{code_bytes(path):,} bytes, for this machine with -Os"
        except RuntimeUnavailableError as error:
            code = str(error)
    return f"{head}\ncode: {code}"


def _gain(result: Result) -> Gain | str:
    with result.journal.step("compare"):
        try:
            return compare_with_float(result)
        except HalfstepError as error:
            return str(error)
