"""The rounding of a weight as a number between 0 (down) and 1 (up) that can be learned.

Reference: Nagel et al. 2020 (arXiv 2004.10568): ``h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0,
1)``, the rectified sigmoid (equation 23), and the regularizer ``sum 1 - |2 h(V) - 1|^beta``
(equation 24), which pulls ``h`` to 0 and 1 the more, the smaller ``beta`` is.

Symbols: ``zeta = STRETCH_HIGH``, ``gamma = STRETCH_LOW``; ``V`` is ``logits``.
"""

import math

import torch
from torch import Tensor

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
BETA_FIRST, BETA_LAST = 20.0, 2.0
WARM_UP = 0.2
"""The share of the iterations, at their beginning, without the regularizer."""


def rectified_sigmoid(logits: Tensor) -> Tensor:
    """``h(V)``, in [0, 1]; exactly 0 or 1 for large logits, where its gradient is 0."""
    stretched = torch.sigmoid(logits) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
    return stretched.clamp(0, 1)


def logits_of(fraction: Tensor) -> Tensor:
    """The logits with ``h(V) = fraction``, for fractions in [0, 1)."""
    return -torch.log((STRETCH_HIGH - STRETCH_LOW) / (fraction - STRETCH_LOW) - 1)


def undecided(rounding: Tensor, beta: float) -> Tensor:
    """The regularizer: 0 where every ``rounding`` is 0 or 1."""
    return (1 - (2 * rounding - 1).abs().pow(beta)).sum()


def annealed_beta(progress: float) -> float:
    """``beta`` from 20 to 2 by half a cosine, behind the warm-up; infinite (no pull) before."""
    if progress < WARM_UP:
        return math.inf
    share = (progress - WARM_UP) / (1 - WARM_UP)
    return BETA_LAST + 0.5 * (BETA_FIRST - BETA_LAST) * (1 + math.cos(math.pi * share))
