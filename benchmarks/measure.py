"""Time and memory, measured so that a busy machine disturbs both sides of a comparison alike."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

MEGABYTE = 2**20


def interleaved_minimum(
    functions: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, float]:
    """Seconds of the fastest of ``rounds`` calls of each function, after one call unmeasured.

    The functions take turns, and every other round in reverse order, so that a slow minute or a
    warm cache favours none; the minimum is what the code costs when nothing else interferes.
    """
    for function in functions.values():
        function()
    fastest = dict.fromkeys(functions, float("inf"))
    for turn in range(rounds):
        for name in list(functions)[:: -1 if turn % 2 else 1]:
            begin = time.perf_counter()
            functions[name]()
            fastest[name] = min(fastest[name], time.perf_counter() - begin)
    return fastest


@dataclass
class Resident:
    """Resident memory in bytes: before, and the largest seen since."""

    before: int
    largest: int

    @property
    def growth(self) -> float:
        """The largest growth, in MB of 2**20 bytes."""
        return (self.largest - self.before) / MEGABYTE


@contextmanager
def resident_growth(interval: float = 0.005) -> Iterator[Resident]:
    """Watch this process's resident memory while the body runs; read ``growth`` afterwards."""
    process = psutil.Process()
    now = process.memory_info().rss
    resident = Resident(now, now)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            resident.largest = max(resident.largest, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield resident
    finally:
        done.set()
        watcher.join()
        resident.largest = max(resident.largest, process.memory_info().rss)
