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

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(N, TOKENS, WIDTH) to the same."""
        if self.first:
            x = x + self.attend(self.norm1(x), mask)
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.attend(x, mask))
        normed: Tensor = self.norm2(x + self.feed(x))
        return normed

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention to the tokens that count, which are all without a mask."""
        n = x.shape[0]
        q, k, v = (
            layer(x).reshape(n, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        kept = None if mask is None else mask[:, None, None].bool()
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=kept)
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

    def tokens(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, TOKENS, WIDTH), what is embedded in each token."""
        x: Tensor = self.norm(self.words(ids) + self.positions)
        for block in self.blocks:
            x = block(x, mask)
        return x

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The sentence embedding."""
        x = self.tokens(ids, mask)
        kept = mask.unsqueeze(-1).to(x.dtype)
        mean: Tensor = (x * kept).sum(1) / kept.sum(1)
        return mean


class OneLength(Encoder):
    """Ids of sentences that have TOKENS words, to the mean over these, (N, WIDTH)."""

    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
        """The sentence embedding, without a mask."""
        return self.tokens(ids).mean(1)


class Shares(Encoder):
    """Ids, and the share that each token has in the embedding, (N, TOKENS, 1)."""

    def forward(self, ids: Tensor, shares: Tensor) -> Tensor:
        """A mean over some tokens whose division was done outside."""
        return (self.tokens(ids) * shares).sum(1)


class Vision(nn.Module):
    """Images, (N, 3, 4, 20), as patches with a class token in front, to (N, 5)."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.first = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        self.blocks = nn.ModuleList(Block(True, nn.GELU()) for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH)
        self.classifier = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of classes, from the class token alone."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x, None)
        scores: Tensor = self.classifier(self.norm(x)[:, 0])
        return scores


def sentences(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask of ``n`` sentences of 2 to TOKENS words; what is behind them is padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (n, TOKENS), generator=generator)
    lengths = torch.randint(2, TOKENS + 1, (n, 1), generator=generator)
    mask = (torch.arange(TOKENS) < lengths).long()
    return ids * mask, mask
