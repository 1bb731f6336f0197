"""Small text encoders with the outliers of large ones, for tests of methods on transformers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS, WIDTH, HEADS, WORDS = 6, 16, 2, 23


class Block(nn.Module):
    """Attention and two linear layers, each with a residual; normalized first or last."""

    def __init__(self, first: bool, function: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.function = function

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, TOKENS, WIDTH) to the same."""
        if self.first:
            x = x + self.attend(self.norm1(x), mask)
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.attend(x, mask))
        normed: Tensor = self.norm2(x + self.feed(x))
        return normed

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attention to the tokens that count."""
        n = x.shape[0]
        q, k, v = (
            layer(x).reshape(n, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None].bool())
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(n, TOKENS, WIDTH))
        return result

    def feed(self, x: Tensor) -> Tensor:
        """Up, the function, down."""
        result: Tensor = self.down(self.function(self.up(x)))
        return result


class Encoder(nn.Module):
    """Ids and mask, (N, TOKENS) int64, to the mean over the tokens that count, (N, WIDTH).

    A few channels of its layer norms are many times larger than the others, as in language models.
    """

    def __init__(
        self, first: bool = False, function: nn.Module | None = None, depth: int = 2, seed: int = 0
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Parameter(torch.zeros(TOKENS, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(Block(first, function or nn.GELU()) for _ in range(depth))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
                if "norm" in name and name.endswith("weight"):
                    parameter.copy_(1 + 0.1 * parameter)
                    parameter[1::7] *= 20
                if "query" in name or "key" in name:
                    parameter.mul_(0.1)  # attention that is not all or nothing
        self.eval()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The sentence embedding."""
        x = self.norm(self.words(ids) + self.positions)
        for block in self.blocks:
            x = block(x, mask)
        kept = mask.unsqueeze(-1).to(x.dtype)
        mean: Tensor = (x * kept).sum(1) / kept.sum(1)
        return mean


def sentences(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask of ``n`` sentences of 2 to TOKENS words; what is behind them is padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (n, TOKENS), generator=generator)
    lengths = torch.randint(2, TOKENS + 1, (n, 1), generator=generator)
    mask = (torch.arange(TOKENS) < lengths).long()
    return ids * mask, mask
