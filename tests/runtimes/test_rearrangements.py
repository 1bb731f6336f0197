"""What only moves values moves codes on every target: exact, and nothing stays in float."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import halfstep as hs
from tests.models import normal, seeded

pytest.importorskip("ai_edge_litert")
pytestmark = pytest.mark.runtime
TARGETS = ("onnxruntime", "litert_ref", "litert_xnnpack", "openvino", "c99")
MOVES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "pixel shuffle": (lambda x: functional.pixel_shuffle(x, 2), 2),
    "pixel unshuffle": (lambda x: functional.pixel_unshuffle(x, 2), 32),
    "channel shuffle": (lambda x: functional.channel_shuffle(x, 4), 8),
    "stack": (lambda x: torch.stack([x, x.flip(1)], 2).flatten(1, 2), 16),
    "roll": (lambda x: x.roll((1, -2), (2, 3)), 8),
    "flip": (lambda x: x.flip((1, 2)), 8),
    "index": (lambda x: x[:, [2, 1, 0, 3, 4]], 5),
    "repeat": (lambda x: x.repeat(1, 2, 1, 3), 16),
    "largest over space": (lambda x: x.amax((2, 3), keepdim=True), 8),
}


class Moved(nn.Module):
    """Two convolutions with a move of their values in between."""

    def __init__(self, move: Callable[[Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(channels, 4, 1)
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = self.after(self.move(self.before(x)))
        return moved


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("move", "channels"), MOVES.values(), ids=MOVES)
def test_codes_are_moved(move: Callable[[Tensor], Tensor], channels: int, target: str) -> None:
    model = seeded(Moved(move, channels))
    result = hs.quantize(model, [normal(4, 3, 6, 4)], target=target)
    assert not result.model.plan.floats
    assert result.verdict is not None and result.verdict.status is not hs.Status.FAILED
    assert max(site.largest for site in result.verdict.sites) == 0
    assert result.verdict.integer_in_runtime == 1.0
