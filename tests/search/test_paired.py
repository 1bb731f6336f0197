import math

import numpy as np
import pytest
import torch

from halfstep.errors import DataError
from halfstep.search.paired import PairedDrop, paired_drop


def test_the_drop_is_that_of_the_two_accuracies() -> None:
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    real = torch.tensor([0, 1, 2, 3, 0, 0])
    found = torch.tensor([0, 1, 0, 0, 4, 0])
    drop = paired_drop(real, found, labels)
    assert (drop.lost, drop.won) == (2, 1)
    assert drop.drop == pytest.approx(4 / 6 - 3 / 6)


def test_without_labels_the_float_model_is_right() -> None:
    drop = paired_drop(torch.tensor([1, 2, 3]), torch.tensor([1, 0, 3]), None)
    assert (drop.lost, drop.won) == (1, 0)


def test_no_discordant_pair_leaves_a_doubt_that_shrinks_with_the_samples() -> None:
    bounds = [PairedDrop(n, 0, 0).upper for n in (10, 100, 1000)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 0.002 < bounds[0]


def test_the_bound_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    lost, won, n = 0.04, 0.02, 400
    cells = rng.multinomial(n, [lost, won, 1 - lost - won], size=4000)
    held = [PairedDrop(n, int(b), int(c)).upper >= lost - won for b, c, _ in cells]
    assert np.mean(held) == pytest.approx(0.95, abs=0.01)


def test_a_drop_is_shown_open_or_missed() -> None:
    assert PairedDrop(10_000, 20, 10).judge(0.01) == "shown"
    assert PairedDrop(100, 1, 0).judge(0.01) == "open"
    assert PairedDrop(100, 3, 0).judge(0.01) == "missed"
    assert PairedDrop(100, 0, 3).drop == -0.03
    assert math.isclose(PairedDrop(2, 1, 0, 0.5).upper, 0.25)


@pytest.mark.parametrize("values", [(0, 0, 0), (3, 2, 2), (3, -1, 0)])
def test_an_impossible_comparison_is_refused(values: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match="no such comparison"):
        PairedDrop(*values)


def test_a_confidence_is_a_share() -> None:
    with pytest.raises(DataError, match=r"confidence: asked for 95, it lies in \[0.5, 1\)"):
        PairedDrop(10, 1, 1, 95)
