"""The commands ``halfstep verify`` and ``halfstep prove``: what was saved, proven again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

from halfstep.conformance import conformance
from halfstep.data import example_of
from halfstep.errors import DataError
from halfstep.job import print_line, print_shortage
from halfstep.lock import Lock
from halfstep.options import (
    BatchSize,
    Mean,
    OptionalData,
    Quiet,
    Samples,
    Size,
    Std,
    Weights,
    preprocessing,
)
from halfstep.program.saturation import prove_sums
from halfstep.program.serialize import DESCRIPTION, load_program
from halfstep.progress import on_terminal, silent
from halfstep.quantize import peek
from halfstep.report.conformance import conformance_table
from halfstep.report.table import ending, verdict_text
from halfstep.result import versions
from halfstep.saved import model_stages, open_saved
from halfstep.sources import load_data, load_model, samples_of
from halfstep.verify import verify as run_verify


def verify(  # noqa: PLR0913 (one parameter an option)
    *,
    saved: Annotated[
        Path | None, typer.Argument(help="a folder that quantize wrote, or its artifact")
    ] = None,
    data: OptionalData = None,
    lock: Annotated[Path | None, typer.Option(help="a lock.json that it must match")] = None,
    model: Annotated[str | None, typer.Option(help="the float model, to compare it too")] = None,
    all_targets: Annotated[
        bool, typer.Option("--all-targets", help="quantize --model for each target, and prove it")
    ] = False,
    weights: Weights = None,
    samples: Samples = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = None,
    quiet: Quiet = False,
) -> None:
    """Prove a saved artifact again, on other data or on another machine; or all targets."""
    if all_targets and (saved is not None or model is None or data is None):
        raise DataError("verify --all-targets: it takes --model and --data, and no saved folder")
    if saved is None and not all_targets:
        raise DataError("verify: give a folder that quantize wrote, or --all-targets and --model")
    if lock is not None and saved is not None and not _matches(Lock.load(lock), saved):
        raise typer.Exit(1)
    if data is None:
        if lock is None:
            raise DataError("verify: give --data to run it on, or a --lock to compare it with")
        return
    batches = load_data(data, preprocessing(size, mean, std, batch_size, data))
    if saved is None:
        assert model is not None
        raise typer.Exit(_verify_all(load_model(model, weights), batches, samples, quiet))
    opened = open_saved(saved)
    compared = {}
    if model is not None:
        loaded = load_model(model, weights)
        head, batches = peek(batches)
        compared = model_stages(opened, loaded, example_of(head, loaded.forward, torch.as_tensor))
    shown = (silent if quiet else on_terminal)(batches, "verify")
    verdict = run_verify(
        opened.program,
        opened.artifact,
        samples_of(shown, opened.program.inputs, samples),
        stages=compared,
    )
    Console().print(verdict_text(verdict) if quiet else ending(verdict), soft_wrap=True)
    print_shortage("DATA", verdict.samples, samples)
    if compared and "fake-quantized" not in compared:
        print_line("no fake-quantized model: MODEL with the saved grids gives another program")
    raise typer.Exit(verdict.exit_code)


def _matches(lock: Lock, saved: Path) -> bool:
    """Print whether the files in ``saved`` are the locked ones, and which versions are not."""
    difference = lock.first_difference(saved if (saved / DESCRIPTION).exists() else saved.parent)
    print_line(f"lock: {difference or 'artifact, program and plan are the locked ones'}")
    for line in lock.other_versions(versions()):
        print_line(f"lock: {line}")
    return not difference


def prove(
    saved: Annotated[Path, typer.Argument(help="a folder that quantize wrote")],
    accumulator: Annotated[
        str, typer.Option(help="int16_pairs (CPUs without VNNI), int24 or int32")
    ] = "int16_pairs",
) -> None:
    """Bound the sums of products of a saved program, over all inputs that there can be.

    Exit code 1: a sum may overflow, or there are none.
    """
    proof = prove_sums(load_program(saved), accumulator)
    print_line(str(proof))
    raise typer.Exit(int(not proof.ops or not proof.safe))  # of nothing, nothing is proven


def _verify_all(model: nn.Module, batches: Iterable[Any], samples: int | None, quiet: bool) -> int:
    shown = silent if quiet else on_terminal
    rows = conformance(model, batches, verify_samples=samples or 64, progress=shown)
    Console().print(conformance_table(rows))
    for row in rows:
        if row.verdict is None:
            print_line(f"{row.target}: {row.note}")
        else:
            print_shortage(f"{row.target}: DATA", row.verdict.samples, samples)
    if in_source := [row.target for row in rows if row.rom is not None]:
        print_line(f"bytes of {', '.join(in_source)}: read-only data; see cost.md for RAM and code")
    # Nothing proven is an error, whatever the reason.
    return max(row.exit_code for row in rows) if any(row.verdict for row in rows) else 2
