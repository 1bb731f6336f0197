"""Where buffers lie: never two in one place at a time, and no more room than is needed."""

import numpy as np
import pytest

from halfstep.export.c99.arena import Placement, Use, place


def contents(uses: list[Use], placed: Placement, kept: tuple[str, ...] = ()) -> None:
    """Law: run on bytes, every read finds what was written."""
    memory = np.zeros(placed.size, np.int64)
    sizes: dict[str, int] = {}
    for index, use in enumerate(uses):
        for name in use.reads:
            if name in sizes:
                assert_holds(memory, placed, name, sizes[name])
        sizes[use.writes] = use.size
        at = placed.offsets[use.writes]
        memory[at : at + use.size] = number_of(use.writes)
        assert index >= 0
    for name in kept:
        assert_holds(memory, placed, name, sizes[name])


def number_of(name: str) -> int:
    return sum(ord(letter) * 131**i for i, letter in enumerate(name))


def assert_holds(memory: np.ndarray, placed: Placement, name: str, size: int) -> None:
    at = placed.offsets[name]
    assert (memory[at : at + size] == number_of(name)).all(), f"{name} was written over"


def chain(seed: int, n: int) -> list[Use]:
    rng = np.random.default_rng(seed)
    uses = [Use(("x",), "t0", int(rng.integers(1, 100)))]
    for i in range(1, n):
        reads = tuple({f"t{int(rng.integers(max(0, i - 5), i))}" for _ in range(2)} | {f"t{i - 1}"})
        size = uses[-1].size if rng.random() < 0.5 else int(rng.integers(1, 100))
        uses.append(Use(reads, f"t{i}", size, reads if rng.random() < 0.5 else ()))
    return uses


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_written_over_while_it_is_needed(seed: int) -> None:
    uses = chain(seed, 40)
    placed = place(uses, ("t39", "t20"))
    contents(uses, placed, ("t39", "t20"))
    assert placed.live <= placed.size <= 1.6 * placed.live


def test_a_placement_that_overlaps_is_found() -> None:
    uses = chain(3, 40)
    placed = place(uses)
    crowded = Placement({name: at // 2 for name, at in placed.offsets.items()}, placed.size, 0)
    with pytest.raises(AssertionError, match="was written over"):
        contents(uses, crowded)


def test_an_operation_in_place_takes_no_room() -> None:
    uses = [Use(("x",), "a", 8), Use(("a",), "b", 8, ("a",)), Use(("b",), "c", 8, ("b",))]
    placed = place(uses, ("c",))
    assert (placed.size, placed.offsets) == (8, {"a": 0, "b": 0, "c": 0})


def test_an_input_that_is_read_later_is_not_written_over() -> None:
    uses = [Use(("x",), "a", 8), Use(("a",), "b", 8, ("a",)), Use(("a", "b"), "c", 8, ("a", "b"))]
    placed = place(uses, ("c",))
    assert placed.size == 16
    contents(uses, placed, ("c",))


def test_nothing_needs_no_room() -> None:
    assert place([]) == Placement({}, 0, 0)
