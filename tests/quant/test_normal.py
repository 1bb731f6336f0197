"""Moments of normal values behind activation functions: closed forms against random draws."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from halfstep.quant.normal import clipped, leaky, through

MEAN = torch.tensor([0.0, 0.7, -1.3, 4.0, 6.2, -2.0], dtype=torch.float64)
DEVIATION = torch.tensor([1.0, 0.5, 0.8, 1.5, 2.0, 3.0], dtype=torch.float64)
DRAWS = 500_000
Moments = tuple[Tensor, Tensor]

CLOSED: dict[str, tuple[Callable[[Tensor, Tensor], Moments], Callable[[Tensor], Tensor]]] = {
    "relu": (clipped, torch.relu),
    "relu6": (lambda m, d: clipped(m, d, 0.0, 6.0), F.relu6),
    "open below": (lambda m, d: clipped(m, d, None, 1.0), lambda x: x.clamp(max=1)),
    "hardtanh": (lambda m, d: clipped(m, d, -1.0, 1.0), F.hardtanh),
    "open on both sides": (lambda m, d: clipped(m, d, None, None), lambda x: x),
    "leaky relu": (lambda m, d: leaky(m, d, 0.2), lambda x: F.leaky_relu(x, 0.2)),
    "a mirrored slope": (lambda m, d: leaky(m, d, -0.5), lambda x: F.leaky_relu(x, -0.5)),
    "sigmoid": (lambda m, d: through(torch.sigmoid, m, d), torch.sigmoid),
    "gelu": (lambda m, d: through(F.gelu, m, d), F.gelu),
}


def assert_moments(moments: Callable[[Tensor, Tensor], Moments], function) -> None:
    """Law: mean and variance are those of random draws, to a few standard errors."""
    generator = torch.Generator().manual_seed(0)
    mean, variance = moments(MEAN, DEVIATION)
    for index, (m, d) in enumerate(zip(MEAN, DEVIATION, strict=True)):
        drawn = function(m + d * torch.randn(DRAWS, generator=generator, dtype=torch.float64))
        for found, wanted in ((mean, drawn), (variance, (drawn - drawn.mean()).square())):
            error = float(wanted.std()) / math.sqrt(DRAWS)
            expected = pytest.approx(float(wanted.mean()), abs=5 * error + 1e-12)
            assert float(found[index]) == expected


@pytest.mark.parametrize("name", CLOSED)
def test_they_are_those_of_random_draws(name: str):
    assert_moments(*CLOSED[name])


def signed_gamma(mean: Tensor, deviation: Tensor) -> Moments:
    """ReLU with a negative ``gamma`` taken for a deviation: both signs of the formula turn."""
    density = torch.exp(-((mean / deviation) ** 2) / 2) / math.sqrt(2 * math.pi)
    gamma = -deviation
    first = gamma * density + mean * torch.special.ndtr(mean / gamma)
    return first, clipped(mean, deviation)[1]


@pytest.mark.parametrize(
    "moments",
    [signed_gamma, lambda m, d: clipped(m, 1.01 * d), lambda m, d: clipped(m, d, 0.0, 6.0)],
    ids=["the sign of gamma", "another deviation", "another bound"],
)
def test_moments_that_are_nearly_right_are_rejected(moments):
    with pytest.raises(AssertionError):
        assert_moments(moments, torch.relu)


def test_the_published_form_of_relu():
    density = torch.exp(-((MEAN / DEVIATION) ** 2) / 2) / math.sqrt(2 * math.pi)
    wanted = DEVIATION * density + MEAN * torch.special.ndtr(MEAN / DEVIATION)
    torch.testing.assert_close(clipped(MEAN, DEVIATION)[0], wanted)


def test_a_clip_agrees_with_quadrature_where_both_are_exact():
    wide = torch.tensor([9.0], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    for mine, other in zip(clipped(*wide), through(torch.relu, *wide), strict=True):
        torch.testing.assert_close(mine, other)


def test_values_without_deviation():
    mean, nothing = torch.tensor([-2.0, 0.0, 3.0, 7.0]).double(), torch.zeros(4).double()
    found, variance = clipped(mean, nothing, 0.0, 6.0)
    assert found.tolist() == pytest.approx([0, 0, 3, 6], abs=1e-100)
    assert float(variance.max()) < 1e-100
    found, variance = leaky(mean, nothing, 0.5)
    assert found.tolist() == pytest.approx([-1, 0, 3, 7], abs=1e-100)
    assert float(variance.max()) < 1e-100


def test_each_channel_may_have_a_bound_of_its_own():
    bounds = torch.linspace(0.5, 8, len(MEAN), dtype=torch.float64)
    together = clipped(MEAN, DEVIATION, 0.0, bounds)
    for index, bound in enumerate(bounds):
        alone = clipped(MEAN[index : index + 1], DEVIATION[index : index + 1], 0.0, float(bound))
        for mine, other in zip(together, alone, strict=True):
            torch.testing.assert_close(mine[index : index + 1], other)


def test_far_tails_are_finite():
    mean = torch.tensor([-1e4, 1e4, -60.0, 60.0]).double()
    found, variance = clipped(mean, torch.ones(4).double())
    torch.testing.assert_close(found, mean.clamp(min=0))
    assert torch.isfinite(variance).all()
