"""The command ``halfstep export``: a saved result as golden files for firmware to test itself."""

from pathlib import Path
from typing import Annotated

import typer

from halfstep.errors import DataError, counted
from halfstep.golden.vectors import write_golden
from halfstep.job import print_line, print_shortage
from halfstep.lock import LOCK, PLAN, Lock
from halfstep.options import BatchSize, Data, Mean, Quiet, Size, Std, preprocessing
from halfstep.program.serialize import load_program
from halfstep.progress import on_terminal, silent
from halfstep.sources import load_data


def export(  # noqa: PLR0913 (one parameter an option)
    *,
    saved: Annotated[Path, typer.Argument(help="a folder that quantize wrote")],
    data: Data,
    golden: Annotated[Path, typer.Option(help="folder to write; replaced as a whole")],
    samples: Annotated[int, typer.Option(help="run the first of DATA", min=1)] = 4,
    sites: Annotated[str, typer.Option(metavar="GLOB", help="write these sites alone")] = "*",
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = None,
    quiet: Quiet = False,
) -> None:
    """Write the codes of every site for a few samples, for firmware to test itself against."""
    program = load_program(saved)
    batches = load_data(data, preprocessing(size, mean, std, batch_size, data))
    beside = _provenance(saved)
    index = write_golden(
        program,
        batches,
        golden,
        samples=samples,
        sites=sites,
        beside=beside,
        progress=silent if quiet else on_terminal,
    )
    if not beside:
        print_line(f"without lock.json: {saved} has none; quantize again to have one")
    written = f"{counted(len(index.sites), 'site')} of {counted(index.samples, 'sample')}"
    print_line(f"{written} written to {golden}")
    print_shortage("DATA", index.samples, samples)


def _provenance(saved: Path) -> dict[str, bytes]:
    """The lock and the plan of a saved result; nothing if it was saved before there were locks.

    Raises:
        DataError: the folder is not what its own lock says.
    """
    if not (saved / LOCK).exists():
        return {}
    lock = Lock.load(saved / LOCK)
    if difference := lock.first_difference(saved):
        raise DataError(f"{saved}: {difference}. Quantize again")
    return {LOCK: lock.to_bytes(), PLAN: (saved / PLAN).read_bytes()}
