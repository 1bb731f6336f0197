"""Means and variances of a normally distributed value behind an activation function.

Source: Nagel et al. 2019 (arXiv 1906.04721), section 4.2.1 and appendix C, for ReLU and for a clip
from below and above. With the mean ``m``, the standard deviation ``d``, the normal density ``p``
and its integral ``P``, a clip to ``[l, h]`` with ``a = (l - m) / d`` and ``b = (h - m) / d`` has

    E y   = l P(a) + m (P(b) - P(a)) + d (p(a) - p(b)) + h (1 - P(b))
    E y^2 = l^2 P(a) + (m^2 + d^2) (P(b) - P(a)) + 2 m d (p(a) - p(b))
            + d^2 (a p(a) - b p(b)) + h^2 (1 - P(b))

ReLU is the clip to ``[0, inf)``: ``E y = d p(m / d) + m P(m / d)``. Any other function is
integrated by Gauss-Hermite quadrature. All in float64; ``d`` may be 0.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# Nodes of the quadrature: exact for polynomials up to degree 127.
_NODES = 64
_SQRT_TWO_PI = math.sqrt(2 * math.pi)


def clipped(
    mean: Tensor,
    deviation: Tensor,
    low: Tensor | float | None = 0.0,
    high: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``clip(x, low, high)``, shape of ``mean``; the default is ReLU.

    Args:
        mean: of x, any shape, float64.
        deviation: standard deviation of x, the same shape, not negative.
        low: the lower bound, perhaps one for each value; ``None`` where it is open.
        high: the upper bound, the same.
    """
    # A deviation of 0 is taken for one that no double can tell from it.
    deviation = deviation.clamp(min=1e-150)
    below, slope_a, density_a, share_a = _tail(mean, deviation, low, -1)
    above, slope_b, density_b, share_b = _tail(mean, deviation, high, 1)
    inside = 1 - share_a - share_b
    moved = deviation * (density_a - density_b)
    first = below * share_a + mean * inside + moved + above * share_b
    second = below**2 * share_a + (mean**2 + deviation**2) * inside + above**2 * share_b
    second = second + 2 * mean * moved + deviation**2 * (slope_a - slope_b)
    return first, (second - first**2).clamp(min=0)


def _tail(
    mean: Tensor, deviation: Tensor, bound: Tensor | float | None, side: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A bound, ``z p(z)`` and ``p(z)`` there in deviations, and the share of values beyond it."""
    if bound is None:
        zero = torch.zeros_like(mean)
        return zero, zero, zero, zero
    value = torch.as_tensor(bound, dtype=mean.dtype).expand_as(mean)
    z = (value - mean) / deviation
    density = torch.exp(-z.square() / 2) / _SQRT_TWO_PI
    # Far away the density is 0, and its product with an infinite z as well.
    slope = torch.where(density > 0, z * density, 0.0)
    return value, slope, density, torch.special.ndtr(-side * z)


def leaky(mean: Tensor, deviation: Tensor, slope: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``max(x, 0) + slope min(x, 0)``."""
    positive, variance = clipped(mean, deviation)
    mirrored, mirrored_variance = clipped(-mean, deviation)
    first = positive - slope * mirrored
    # One of the two parts is always 0, so their product is as well.
    second = variance + positive**2 + slope**2 * (mirrored_variance + mirrored**2)
    return first, (second - first**2).clamp(min=0)


def through(
    function: Callable[[Tensor], Tensor], mean: Tensor, deviation: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``function(x)`` by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    where = mean[..., None] + deviation[..., None] * torch.from_numpy(nodes)
    values = function(where)
    share = torch.from_numpy(weights / _SQRT_TWO_PI)
    first = (values * share).sum(-1)
    return first, ((values - first[..., None]).square() * share).sum(-1)
