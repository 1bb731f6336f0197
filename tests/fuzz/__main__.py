"""``python -m tests.fuzz``: random networks through every target, until so many were drawn.

Each part of the networks runs in a process of its own, one after the other, because a runtime may
end the process that it runs in: that is a finding like any other, and the hunt goes on. Every
disagreement is written to a file of its own; the exit code is 1 if there is any.
"""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from halfstep.catalog import find
from tests.fuzz.hunt import hunt
from tests.fuzz.networks import Network
from tests.fuzz.tally import Disagreement, Fault, Tally
from tests.fuzz.trial import Outcome, targets

PART = 200
STATUSES = ("exact", "bounded", "floats", "refused", "disagrees")


def main(
    networks: Annotated[int, typer.Option(help="How many networks.", min=1)] = 10_000,
    target: Annotated[list[str] | None, typer.Option(help="Only these targets.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="Where disagreements are written.")] = Path("fuzz"),
) -> None:
    """Try random networks on every target that runs here, and write each disagreement."""
    asked = target or targets()
    for name in asked:
        find("target", name)
    total = Tally()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("networks", total=networks)
        while total.drawn < networks:
            n = min(PART, networks - total.drawn)
            # Far apart, since a hunt takes one more seed for each fault that it finds.
            part = _in_a_process(n, asked, 1000 * (seed + total.drawn), total.found, progress, task)
            for fault, disagreement in part.found.items():
                _write(disagreement, out, len(total.found))
                total.found.setdefault(fault, disagreement)
            total.merge(part)
            progress.update(task, completed=total.drawn)
    _show(total, asked)
    raise typer.Exit(int(bool(total.found)))


def _in_a_process(
    n: int,
    asked: Sequence[str],
    seed: int,
    known: dict[Fault, Disagreement],
    progress: Progress,
    task: TaskID,
) -> Tally:
    """A hunt in a process of its own; if that ends early, the network that it died of."""
    here, there = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_hunt, args=(there, n, asked, seed, tuple(known)))
    process.start()
    there.close()
    last: tuple[Network, str] | None = None
    try:
        while True:
            message = here.recv()
            if isinstance(message, Tally):
                return message
            last = message
            if last[1] == asked[0]:
                progress.advance(task)
    except EOFError:
        process.join()
        return _ended(last, process.exitcode, n)
    finally:
        process.join()


def _hunt(
    pipe: Connection, n: int, asked: Sequence[str], seed: int, known: Sequence[Fault]
) -> None:
    pipe.send(hunt(n, asked, seed, known=known, watch=lambda *trial: pipe.send(trial)))


def _ended(last: tuple[Network, str] | None, exit_code: int | None, n: int) -> Tally:
    """The tally of a hunt whose process ended: nothing but what it died of."""
    if last is None:
        raise RuntimeError(f"the hunt ended with {exit_code} before its first network")
    network, target = last
    outcome = Outcome("disagrees", "run", f"the process ended with {exit_code}")
    died = Disagreement(target, network, outcome)
    tally = Tally(networks=n)
    tally.add(target, outcome)
    tally.found[died.fault] = died
    return tally


def _write(disagreement: Disagreement, out: Path, number: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{disagreement.target}-{number:03}.txt"
    file.write_text(f"{disagreement}\n", encoding="utf-8")


def _show(total: Tally, asked: Sequence[str]) -> None:
    console = Console()
    table = Table("target", *STATUSES, "rules not reached")
    for name in asked:
        counts = [str(total.runs[name, status]) for status in STATUSES]
        missing = ", ".join(sorted(total.missing(find("target", name))))
        table.add_row(name, *counts, missing or "none")
    console.print(f"{total.networks} networks captured, {total.uncaptured} refused by capture")
    console.print(table)
    for title, counts in (("refused", total.refusals), ("disagree", total.faults)):
        for (name, signature), n in counts.most_common():
            console.print(f"{title}: {n} on {name}: {signature}", markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
