"""Masks of attention that a model writes out by itself are found, and stay in float."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.graph.match import MASK_REASON
from tests.models import normal, seeded

TOKENS, WIDTH = 5, 8
LOWEST = torch.finfo(torch.float32).min
Hide = Callable[[Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """One head whose scores ``hide(scores, kept)`` changes, ``kept`` being (N, 1, TOKENS) int64."""

    def __init__(self, hide: Hide) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.hide = hide

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / WIDTH**0.5
        return torch.softmax(self.hide(scores, kept[:, None]), -1) @ self.value(x)


def inputs() -> tuple[Tensor, Tensor]:
    kept = torch.ones(16, TOKENS, dtype=torch.int64)
    kept[::2, 3:] = 0
    return 2 * normal(16, TOKENS, WIDTH), kept


def later() -> Tensor:
    return torch.ones(TOKENS, TOKENS).triu(1)


HIDING: dict[str, Hide] = {
    "added": lambda s, kept: s + (1.0 - kept.float()) * -10000.0,
    "added, the lowest": lambda s, kept: s + (1.0 - kept.float()) * LOWEST,
    "subtracted": lambda s, kept: s - (1 - kept).float() * 1e4,
    "in front of a factor": lambda s, kept: (s + (kept.float() - 1) * 1e4) * 0.5,
    "filled": lambda s, kept: s.masked_fill(kept == 0, -1e9),
    "filled, infinite": lambda s, kept: s.masked_fill(kept == 0, float("-inf")),
    "where": lambda s, kept: torch.where(kept.bool(), s, torch.tensor(-1e9)),
    "reshaped": lambda s, kept: s.masked_fill(kept == 0, -1e4).reshape(-1, 1, 5, 5).squeeze(1),
    "later tokens": lambda s, kept: s.masked_fill(later() == 1, float("-inf")),
    "later tokens, added": lambda s, kept: s + later() * -1e9,
    "of shifted windows": lambda s, kept: s + later() * -100.0,
}


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
def test_scores_are_not_lost_beside_hidden_ones(hide: Hide) -> None:
    """On one grid with -10000 all scores are one code, and the output is off by all of it."""
    model, data = seeded(Attention(hide)), inputs()
    result = hs.quantize(model, [data], calibrator="minmax")
    assert result.verdict is not None and result.verdict.status is hs.Status.EXACT
    wanted = model(*data).detach().numpy()
    (found,) = hs.Engine(result.program).run([value.numpy() for value in data]).outputs
    assert abs(found - wanted).max() < 0.06 * abs(wanted).max()
    assert result.model.plan.floats["softmax"] == MASK_REASON


def float_mask(s: Tensor, kept: Tensor) -> Tensor:
    return s + kept


def test_a_real_input_that_is_added_to_scores_is_a_mask() -> None:
    x, kept = inputs()
    graph = hs.capture(seeded(Attention(float_mask)), (x, (kept - 1) * 1e4))
    plan = hs.make_plan(graph)
    assert plan.floats["softmax"] == plan.floats["add"] == MASK_REASON
    assert "kept:in" not in plan.specs


class Biased(nn.Module):
    """Scores with a trained bias a position, and an input that is only multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(100 * normal(TOKENS, TOKENS))
        self.linear = nn.Linear(TOKENS, TOKENS)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = torch.softmax(self.linear(x) + self.bias, -1)
        return scores + torch.softmax(self.linear(y) + y.relu() + 3.0, -1)


def test_what_is_no_mask_stays_on_codes() -> None:
    graph = hs.capture(seeded(Biased()), (normal(2, TOKENS, TOKENS), normal(2, TOKENS, TOKENS)))
    assert not any(reason == MASK_REASON for reason in hs.make_plan(graph).floats.values())
