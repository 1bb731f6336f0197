"""PyTorch's own attention, which puts the tokens in front of the batch, on every target."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.catalog import find
from tests.fuzz.trial import targets
from tests.models import normal, seeded

pytest.importorskip("ai_edge_litert")
pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
]


class Attention(nn.Module):
    """``nn.MultiheadAttention`` of 5 tokens to themselves, and a linear layer."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.attention(x, x, x, need_weights=False)[0]
        result: Tensor = self.linear(mixed)
        return result


@pytest.mark.parametrize("target", targets())
def test_attention_is_exact_for_batches_too(target: str, tmp_path: Path) -> None:
    data = [normal(4, 5, 8, seed=seed) for seed in range(3)]
    result = hs.quantize(seeded(Attention(batch_first=True)), data, target=target)
    assert result.verdict is not None and result.verdict.status in ("exact", "bounded")
    table = find("target", target)
    hs.export(result.program, tmp_path / str(table.artifact))
    verdict = hs.verify(result.program, tmp_path / str(table.artifact), [torch.cat(data)])
    assert max(site.largest for site in verdict.sites) <= table.bound
    assert verdict.samples == 12


@pytest.mark.parametrize("target", targets())
def test_heads_of_the_size_of_an_input_are_exact(target: str) -> None:
    """(N, 5, 4) and, heads beside samples, (2 * N, 5, 4): a runtime may not share their memory."""
    model = seeded(nn.Sequential(nn.Linear(4, 8), Attention(batch_first=True)))
    verdict = hs.quantize(model, [normal(4, 5, 4)], target=target).verdict
    assert verdict is not None and verdict.status in ("exact", "bounded"), str(verdict)
