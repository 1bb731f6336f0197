"""Memory that work takes; the environments of the peers, without halfstep, use it too."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

MEGABYTE = 2**20


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
