"""Whether a quantized model lost accuracy, judged sample by sample.

Two models that answer the same samples are compared on the pairs of answers, not on two rates:
most samples are answered alike and say nothing. With ``b`` samples that only the float model gets
right and ``c`` that only the quantized one does, of ``n``, the drop is ``(b - c) / n``, with the
standard error ``sqrt(b + c - (b - c)^2 / n) / n`` (McNemar 1947; Agresti, "Categorical data
analysis", section 11.1). ``upper`` is the end of the one-sided confidence interval with the
pseudo-counts of Agresti and Min 2005, half a sample added to each of the four cells, so that no
discordant pair at all does not mean no doubt at all.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from halfstep.errors import DataError


@dataclass(frozen=True)
class PairedDrop:
    """What the comparison of two models found.

    Attributes:
        samples: how many both answered.
        lost: samples that the float model alone gets right.
        won: samples that the quantized model alone gets right.
        confidence: of the one-sided bound, such as 0.95.
    """

    samples: int
    lost: int
    won: int
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.samples < 1 or min(self.lost, self.won) < 0 or self.lost + self.won > self.samples:
            raise DataError(
                f"{self.lost} samples lost and {self.won} won of {self.samples}: no such comparison"
            )
        if not 0.5 <= self.confidence < 1:
            raise DataError(f"confidence: asked for {self.confidence}, it lies in [0.5, 1)")

    @property
    def drop(self) -> float:
        """The share of the accuracy that is gone; negative if some was won."""
        return (self.lost - self.won) / self.samples

    @property
    def upper(self) -> float:
        """What the drop stays below, with the given confidence."""
        n, discordant = self.samples + 2.0, self.lost + self.won + 1.0
        drop = (self.lost - self.won) / n
        error = math.sqrt(max(discordant - (self.lost - self.won) ** 2 / n, 0.0)) / n
        return drop + NormalDist().inv_cdf(self.confidence) * error

    def judge(self, largest: float) -> str:
        """How the drop stands to the largest that is allowed.

        Returns:
            "shown": it is below, with the given confidence; "open": what was measured is below,
            and the samples are too few to be sure; "missed": what was measured is above.
        """
        if self.drop > largest:
            return "missed"
        return "shown" if self.upper <= largest else "open"

    def __str__(self) -> str:
        return (
            f"drop {100 * self.drop:.2f} points on {self.samples} samples ({self.lost} lost, "
            f"{self.won} won), below {100 * self.upper:.2f} with {self.confidence:.0%} confidence"
        )


def paired_drop(
    reference: Tensor, found: Tensor, labels: Tensor | None, confidence: float = 0.95
) -> PairedDrop:
    """Compare the decisions of a float and a quantized model.

    Args:
        reference: class indices of the float model, (samples,).
        found: class indices of the quantized model, (samples,).
        labels: the right classes; without them every decision of the float model counts as right.
        confidence: of the bound.
    """
    right = reference if labels is None else labels
    mine, theirs = reference == right, found == right
    return PairedDrop(
        len(right),
        int(torch.count_nonzero(mine & ~theirs)),
        int(torch.count_nonzero(theirs & ~mine)),
        confidence,
    )
