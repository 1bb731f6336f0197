"""How long work shows that it goes on: a bar on a terminal, nothing elsewhere."""

from collections.abc import Iterable, Iterator
from operator import length_hint
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Passes items through and shows how far it is."""

    def __call__(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items``; ``total`` is their number, if it is known."""
        ...


def silent(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Show nothing."""
    del what, total
    return iter(items)


def on_terminal(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """A bar with the time that is left, on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    known = total if total is not None else length_hint(items) or None
    yield from track(items, what, total=known, console=console, transient=True)
