"""Masks of attention that a model writes out by itself are found, and stay in float."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import halfstep as hs
from halfstep.graph.match import MASK_REASON
from tests.models import Call, normal, seeded

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
    "behind dropout": lambda s, kept: functional.dropout(
        s + (1.0 - kept.float()) * -1e4, 0.1, False
    ),
    "of integers": lambda s, kept: s + ((1 - kept) * -10000).float(),
    "of mixed types": lambda s, kept: s + (1 - kept) * -10000,
    "of truth values": lambda s, kept: s + ~kept.bool() * -1e9,
    "of pairs": lambda s, kept: s + (1 - kept.float().transpose(1, 2) @ kept.float()) * -1e4,
    "negative": lambda s, kept: s + -(1e4 * (1 - kept)),
    "bounded": lambda s, kept: torch.clamp(s + (1.0 - kept.float()) * LOWEST, min=-1e4),
    "where, a number first": lambda s, kept: torch.where(kept == 0, -1e9, s),
    "where, a number behind": lambda s, kept: torch.where(kept.bool(), s, -1e9),
    "filled from a tensor": lambda s, kept: s.masked_fill(kept == 0, torch.tensor(-1e9)),
    "where, the like": lambda s, kept: torch.where(
        (kept == 0).expand_as(s), torch.full_like(s, float("-inf")), s
    ),
    "rectified": lambda s, kept: s - functional.relu(1.0 - kept) * 1e4,
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


class Constant(nn.Module):
    """A mask that is a parameter, since it shall move with the model to its device."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(TOKENS, TOKENS)
        self.mask = nn.Parameter(torch.empty(TOKENS, TOKENS), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.linear(x) + self.mask, -1)


def test_a_parameter_that_is_not_trained_may_be_a_mask() -> None:
    model = seeded(Constant())
    model.mask.data = later() * -1e4
    graph = hs.capture(model, normal(2, TOKENS, TOKENS))
    assert hs.make_plan(graph).floats["softmax"] == MASK_REASON


class Tokens(nn.Module):
    """Frozen, with positions beyond 50: all of it is computed from integers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.linear = nn.Embedding(7, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.places = nn.Embedding(99, WIDTH)
        self.register_buffer("position", torch.arange(90, 90 + TOKENS))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(self.position)
        return torch.softmax(self.linear(x) + x, -1)


def residual(x: Tensor) -> Tensor:
    return torch.softmax(x + functional.avg_pool1d(x, 3, 1, 1), -1)


def test_scores_are_no_masks() -> None:
    ids = torch.randint(0, 7, (2, TOKENS))
    for model, example in (
        (seeded(Tokens()).requires_grad_(False), ids),
        (Call(residual), normal(2, TOKENS, TOKENS)),
    ):
        floats = hs.make_plan(hs.capture(model, example)).floats
        assert MASK_REASON not in floats.values()


def test_a_graph_is_searched_once() -> None:
    """Each roll reads what it moves twice: 2^40 ways lead from the softmax to the input."""

    def moved(x: Tensor) -> Tensor:
        for _ in range(20):
            x = x.roll((1, 1), (1, 2))
        return torch.softmax(x, -1)

    assert hs.capture(Call(moved), normal(2, TOKENS, TOKENS)).module is not None


class Biased(nn.Module):
    """Scores with a trained bias a position, and an input that is only multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(TOKENS, TOKENS))
        self.linear = nn.Linear(TOKENS, TOKENS)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = torch.softmax(self.linear(x) + self.bias, -1)
        return scores + torch.softmax(self.linear(y) + y.relu() + 3.0, -1)


def test_what_is_no_mask_stays_on_codes() -> None:
    model = seeded(Biased())
    model.bias.data = 100 * normal(TOKENS, TOKENS)
    graph = hs.capture(model, (normal(2, TOKENS, TOKENS), normal(2, TOKENS, TOKENS)))
    assert not any(reason == MASK_REASON for reason in hs.make_plan(graph).floats.values())


class Encoder(nn.Module):
    """torch's own layers, which make zeros like the mask and fill them."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        encoded: Tensor = self.layers(x, src_key_padding_mask=padding)
        return encoded


def test_padding_of_torch_s_own_encoder() -> None:
    x, kept = inputs()
    model = seeded(Encoder())
    result = hs.quantize(model, [(x, kept == 0)], calibrator="minmax")
    assert result.verdict is not None and result.verdict.status is hs.Status.EXACT
    wanted = model(x, kept == 0).detach().numpy()
    (found,) = hs.Engine(result.program).run([x.numpy(), (kept == 0).numpy()]).outputs
    assert abs(found - wanted).max() < 0.08 * abs(wanted).max()
