"""Health of ranges: the statistics by definition, and each problem made on purpose."""

import numpy as np
import pytest
import torch
from torch import nn

import halfstep as hs
from halfstep.core.grid import Affine
from halfstep.core.qtype import INT8_NARROW, UINT8
from halfstep.search import range_health
from halfstep.search.ranges import RangeHealth, RangeStatistics, clipped
from tests.models import normal
from tests.search.specimens import assert_unchanged, batches, calibrated, snapshot


def by_site(rows: tuple[RangeHealth, ...]) -> dict[str, RangeHealth]:
    return {row.site: row for row in rows}


def grid_over(low: float, high: float) -> Affine:
    return Affine.from_range(np.asarray(low), np.asarray(high), UINT8)


def statistics(*values: torch.Tensor, grid: Affine, axis: int = 1) -> RangeHealth:
    found = RangeStatistics()
    for value in values:
        found.add(value, grid, axis)
    return found.health("a:out", grid)


def test_statistics_are_those_of_all_batches_together():
    values = normal(8, 3, 5, 5) * torch.tensor([1.0, 4.0, 2.0])[:, None, None]
    grid = grid_over(-6, 6)
    whole = statistics(values, grid=grid)
    parts = statistics(values[:1], values[1:], grid=grid)
    for name in ("low", "high", "spread", "crest", "clipped", "used"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name)), name
    largest = values.abs().amax((0, 2, 3))
    beyond = (values > grid.high + grid.scale / 2) | (values < grid.low - grid.scale / 2)
    assert whole.low == values.min()
    assert whole.high == values.max()
    assert whole.spread == pytest.approx(float(largest.max() / largest.median()))
    assert whole.crest == pytest.approx(float(values.abs().max() / values.square().mean().sqrt()))
    assert whole.clipped == pytest.approx(float(beyond.double().mean()))
    assert 0 < whole.clipped < 0.1


def test_a_value_is_clipped_beyond_half_a_step():
    grid = Affine(UINT8, np.asarray(0.5), np.asarray(10))
    ends = torch.tensor([grid.low - 0.25, grid.low - 0.26, grid.high + 0.25, grid.high + 0.26, 0.0])
    assert clipped(ends, grid) == 2
    scales = Affine(INT8_NARROW, np.asarray([1.0, 2.0]), np.zeros(2, int), axis=0)
    weight = torch.tensor([[127.4, -128.0], [-254.0, 256.0]])
    assert clipped(weight, scales) == 2


def test_dead_channels_and_constants_are_no_spread():
    grid = grid_over(0, 1)
    values = normal(4, 3, 2, 2).abs()
    values[:, 1] = 0
    assert statistics(values, grid=grid).spread < 3
    zeros = statistics(torch.zeros(4, 3), grid=grid)
    assert (zeros.spread, zeros.crest, zeros.used) == (1, 1, 0)


def test_a_healthy_range_has_no_problem():
    values = normal(100, 8)
    grid = grid_over(values.min().item(), values.max().item())
    assert statistics(values, grid=grid).problems == ()


def test_each_problem_is_named():
    values = normal(4000, 8)
    spread = values * torch.tensor([40.0, *[1.0] * 7])
    far = values.clone()
    far[0, :] = 90.0
    cases = {
        "channels differ": (spread, grid_over(-170, 170)),
        "outliers: the largest value is": (far, grid_over(-5, 90)),
        "of the values are clipped": (values, grid_over(-1, 1)),
        "of the grid": (values, grid_over(-20, 20)),
    }
    for text, (specimen, grid) in cases.items():
        problems = statistics(specimen, grid=grid).problems
        assert len(problems) == 1, (text, problems)
        assert text in problems[0]


def test_a_scale_a_channel_heals_spread():
    weight = normal(8, 20) * torch.tensor([40.0, *[1.0] * 7])[:, None]
    low, high = weight.amin(1).numpy(), weight.amax(1).numpy()
    grid = Affine.from_range(low, high, INT8_NARROW, axis=0, symmetric=True)
    found = statistics(weight, grid=grid, axis=0)
    assert found.spread > 16
    assert found.per_channel
    assert found.problems == ()


@pytest.mark.parametrize("network", ["residual", "branching"])
def test_every_site_of_a_model_has_a_row(network):
    model = calibrated(network)
    before = snapshot(model)
    rows = by_site(range_health(model, batches()))
    assert_unchanged(model, before)
    assert {model.quantizer(site).site for site in rows} == {q.site for q in model.quantizers()}
    x = torch.cat([x for x, _ in batches()])
    assert (rows["x:in"].low, rows["x:in"].high) == (x.min(), x.max())


def test_channels_are_on_axis_one_of_images_and_on_the_last_of_features():
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * torch.tensor([64.0, 1.0, 1.0])[:, None, None]).mean((2, 3)) + 0.5

    graph = hs.capture(Scaled(), normal(2, 3, 6, 6))
    model = hs.prepare(graph, hs.make_plan(graph))
    hs.calibrate(model, batches())
    rows = by_site(range_health(model, batches()))
    assert rows["mul:out"].spread > 16
    assert rows["add:out"].spread > 4
    assert rows["x:in"].spread < 2
