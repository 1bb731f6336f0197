"""Ranges by their effect on the output: better by the prediction, and by the output itself."""

import pytest
import torch
from torch import nn

import halfstep as hs
from halfstep.errors import CalibrationError, DataError
from halfstep.graph.real_sums import keep_elementwise_float, leave_sums_real
from halfstep.ptq.guide_ranges import guide_ranges
from tests.encoders import Encoder, sentences
from tests.models import Call, normal, seeded

DATA = [sentences(32, seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def graph() -> hs.Graph:
    return hs.capture(Encoder(), sentences(2))


def calibrated(graph: hs.Graph) -> hs.QuantizedModel:
    plan = leave_sums_real(graph, keep_elementwise_float(graph, hs.make_plan(graph)))
    model = hs.prepare(graph, plan)
    hs.calibrate(model, DATA)
    return model


def plain(module: nn.Module, data: list[torch.Tensor], **how: str) -> hs.QuantizedModel:
    found = hs.capture(seeded(module), data[0])
    model = hs.prepare(found, hs.make_plan(found))
    hs.calibrate(model, data, **how)
    return model


def error(model: hs.QuantizedModel, inputs: tuple[torch.Tensor, ...]) -> float:
    """Of the activations: weights stay as they are."""
    for quantizer in model.quantizers():
        quantizer.enabled = not quantizer.site.endswith(":weight")
    with torch.no_grad():
        found, wanted = model(*inputs), model.graph.module(*inputs)[0]
    model.enable()
    share = (found - wanted).square().sum(1) / wanted.square().sum(1)
    return float(share.mean())


def test_the_prediction_is_never_worse_than_before(graph: hs.Graph) -> None:
    report = guide_ranges(calibrated(graph), DATA)
    assert report.ranges
    for found in report.ranges:
        assert found.after <= found.before
    assert report.after < report.before
    assert report.ranked()[0].after == max(found.after for found in report.ranges)


def test_the_prediction_is_about_the_error_of_the_output() -> None:
    module = Call(
        lambda a, n, b, x: b(n(a(x).tanh())), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 6)
    )
    data = [normal(256, 8, seed=seed) for seed in (1, 2)]
    model = plain(module, data, calibrator="minmax")
    report = guide_ranges(model, data)
    assert report.after == pytest.approx(error(model, (torch.cat(data),)), rel=0.5)


class Ignoring(nn.Module):
    """Two values of one layer are huge: the first is ignored, the second decides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(x))
        return result


def test_a_huge_value_is_kept_where_it_decides_and_clipped_where_it_does_not() -> None:
    data = [normal(64, 8, seed=seed) for seed in (1, 2)]
    errors, largest = {}, {}
    for name, factor in (("ignored", 1e-6), ("decides", 1.0)):
        module = seeded(Ignoring())
        with torch.no_grad():
            module.first.weight[0] *= 100
            module.second.weight[:, 0] *= factor
        found = hs.capture(module, data[0])
        model = hs.prepare(found, hs.make_plan(found))
        hs.calibrate(model, data)
        errors[name] = [error(model, (data[0],))]
        guide_ranges(model, data)
        errors[name].append(error(model, (data[0],)))
        largest[name] = float(model.quantizer("first:out").grid().high)
    assert largest["ignored"] < largest["decides"] / 10
    assert errors["ignored"][1] < errors["ignored"][0] / 10
    assert errors["decides"][1] < 2 * errors["decides"][0]


def test_the_second_round_sees_what_clipping_did() -> None:
    """A sigmoid that is sure of itself hides what its input is, until the input is gone."""
    data = [12 + normal(64, 8, seed=seed) for seed in (1, 2)]
    module = Call(lambda a, b, x: b(a(x).sigmoid()), nn.Linear(8, 8), nn.Linear(8, 4))
    ends = []
    for rounds in (1, 2):
        model = plain(module, data)
        guide_ranges(model, data, rounds=rounds)
        grid = model.quantizer("part.0:out").grid()
        ends.append(float(grid.high - grid.low))
    assert ends[0] < ends[1]


def test_padding_does_not_decide(graph: hs.Graph) -> None:
    ids, mask = DATA[0]
    other = ids.clone()
    other[mask == 0] = 7
    grids = []
    for words in (ids, other):
        model = calibrated(graph)
        guide_ranges(model, [(words, mask)])
        grids.append({q.site: q.grid() for q in model.quantizers()})
    for site, grid in grids[0].items():
        assert grid.same_as(grids[1][site]), site


def test_a_grid_that_the_kernel_dictates_stays() -> None:
    module = Call(lambda a, x: (x @ a(x).transpose(1, 2)).softmax(-1) @ x, nn.Linear(6, 6))
    data = [normal(8, 5, 6, seed=seed) for seed in (1, 2)]
    model = plain(module, data)
    guide_ranges(model, data)
    assert float(model.quantizer("softmax:out").grid().scale) == 1 / 256


def test_what_the_output_does_not_depend_on_keeps_its_grid() -> None:
    module = Call(lambda a, b, x: a(x) + 0 * b(x), nn.Linear(6, 4), nn.Linear(6, 4))
    data = [normal(8, 6, seed=seed) for seed in (1, 2)]
    model = plain(module, data)
    before = model.quantizer("part.1:out").grid()
    report = guide_ranges(model, data)
    assert ("part.1:out", "the output does not depend on it") in report.skipped
    assert model.quantizer("part.1:out").grid().same_as(before)
    assert "part.1:out: the output does not depend on it" in str(report)


def test_the_model_is_otherwise_as_it_was(graph: hs.Graph) -> None:
    model = calibrated(graph)
    model.train()
    model.quantizer("norm:out").enabled = False
    weights = {q.site: q.grid() for q in model.quantizers() if q.site.endswith(":weight")}
    guide_ranges(model, DATA)
    assert model.training
    assert [q.site for q in model.quantizers() if not q.enabled] == ["norm:out"]
    for site, grid in weights.items():
        assert model.quantizer(site).grid().same_as(grid)


def test_it_is_repeatable(graph: hs.Graph) -> None:
    mine, other = (guide_ranges(calibrated(graph), DATA) for _ in range(2))
    assert mine == other
    assert str(mine).startswith(f"{len(mine.ranges)} ranges: predicted error of the output ")


def test_a_model_without_ranges_is_refused(graph: hs.Graph) -> None:
    with pytest.raises(CalibrationError, match="it has no range yet"):
        guide_ranges(hs.prepare(graph, hs.make_plan(graph)), DATA)


def test_no_data_is_an_error(graph: hs.Graph) -> None:
    with pytest.raises(DataError, match="the data has no batch"):
        guide_ranges(calibrated(graph), [])
