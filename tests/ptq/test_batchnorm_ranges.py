"""Every quantizer gets a grid without data, and the ranges are the published ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import halfstep as hs
from halfstep.errors import CalibrationError, DataError
from halfstep.ptq.batchnorm_ranges import set_batchnorm_ranges
from halfstep.ptq.equalize import equalize
from tests.models import Call, normal, seeded
from tests.ptq.networks import Mobile, block, settled

IMAGE = (3, 8, 8)


def prepared(graph: hs.Graph) -> hs.QuantizedModel:
    return hs.prepare(graph, hs.make_plan(graph))


@pytest.fixture(scope="module")
def mobile() -> hs.Graph:
    return hs.capture(settled(Mobile(), IMAGE), normal(2, *IMAGE))


def test_every_site_has_a_grid_and_the_program_runs(mobile: hs.Graph):
    model = prepared(mobile)
    report = set_batchnorm_ranges(model, input_range=(-4, 4))
    program = hs.lower(model)
    x = normal(16, *IMAGE, seed=9)
    exact = mobile.module(x)[0]
    found = torch.from_numpy(hs.Engine(program).run([x.numpy()]).outputs[0])
    assert (found - exact).square().mean() < 0.01 * exact.var()
    assert set(report.known) | set(report.estimated) == {
        q.site for q in model.quantizers() if not q.site.endswith(":weight")
    }
    assert "fc:out" in report.estimated
    assert "add:out" in report.estimated
    assert "project.0:out" in report.known


def test_the_range_of_a_site_is_the_published_one(mobile: hs.Graph):
    model = prepared(mobile)
    report = set_batchnorm_ranges(model, deviations=5.0)
    for unit in model.units.units:
        if "batchnorm" not in unit.head.meta:
            continue
        gamma, beta = (value.detach() for value in unit.head.meta["batchnorm"])
        low = float((beta - 5 * gamma.abs()).min())
        high = float((beta + 5 * gamma.abs()).max())
        if unit.limits[0] is not None:
            low, high = max(low, 0.0), min(high, 6.0)
        assert report.known[unit.out] == pytest.approx((low, high), rel=1e-6)
        grid = model.quantizer(unit.out).grid()
        step = float(grid.scale)
        assert float(grid.low) == pytest.approx(min(low, 0), abs=step / 2 + 1e-6)
        assert float(grid.high) == pytest.approx(high, abs=step / 2 + 1e-6)


def test_the_input_has_the_given_range(mobile: hs.Graph):
    model = prepared(mobile)
    assert set_batchnorm_ranges(model, input_range=(-4, 5)).known["x:in"] == (-4, 5)
    assert set_batchnorm_ranges(model).known["x:in"] == (-6, 6)


def test_an_input_that_was_not_normalized_is_refused(mobile: hs.Graph):
    with pytest.raises(DataError) as error:
        set_batchnorm_ranges(prepared(mobile), input_range=(-0.5, 0.5))
    assert str(error.value).startswith("x:in: asked for the range (-0.5, 0.5), found values from -")
    assert str(error.value).endswith("normalize the inputs as in training, or give input_range")


def test_behind_caps_the_range_is_that_of_the_caps(mobile: hs.Graph):
    graph, _ = equalize(mobile)
    model = prepared(graph)
    report = set_batchnorm_ranges(model)
    caps = [n for n in graph.module.graph.nodes if n.target == torch.ops.aten.minimum.default]
    for node in caps:
        _, high = report.known[model.quantizer(model.units.sites[node]).site]
        assert high <= float(model.parameter_of(node.args[1]).max()) + 1e-6


def test_copies_of_codes_share_the_range():
    def joined(a: nn.Module, b: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.max_pool2d(a(x).relu(), 2), F.max_pool2d(b(x), 2)], 1)

    parts = block(3, 4), block(3, 4)
    graph = hs.capture(seeded(Call(joined, *parts)), normal(2, *IMAGE))
    model = prepared(graph)
    report = set_batchnorm_ranges(model)
    site = model.quantizer(model.units.units[-1].out).site
    low, high = report.known[site]
    betas, gammas = ([getattr(p[1], n).detach() for p in parts] for n in ("bias", "weight"))
    highs = [float((b + 6 * g.abs()).max()) for b, g in zip(betas, gammas, strict=True)]
    assert high == pytest.approx(max(highs), rel=1e-6)
    assert low == pytest.approx(float((betas[1] - 6 * gammas[1].abs()).min()), rel=1e-6)


def test_a_constant_has_its_own_range():
    constant = torch.linspace(-3, 5, 4)[:, None, None]
    module = Call(lambda a, x: a(x) + constant, block(3, 4))
    graph = hs.capture(seeded(module), normal(2, *IMAGE))
    report = set_batchnorm_ranges(prepared(graph))
    (site,) = [site for site in report.known if site.endswith(":constant")]
    assert report.known[site] == (-3, 5)


def test_a_softmax_keeps_the_grid_of_its_kernel():
    module = Call(lambda a, x: a(x).mean((2, 3)).softmax(1), block(3, 4))
    model = prepared(hs.capture(seeded(module), normal(2, *IMAGE)))
    set_batchnorm_ranges(model)
    grid = model.quantizer("softmax:out").grid()
    assert float(grid.scale) == 2.0**-8


def test_what_nothing_is_known_of_is_named():
    module = Call(lambda a, x: F.layer_norm(a(x), (8, 8)) * 2 + 1, block(3, 4))
    model = prepared(hs.capture(seeded(module), normal(2, *IMAGE)))
    with pytest.raises(CalibrationError) as error:
        set_batchnorm_ranges(model)
    assert str(error.value).startswith("layer_norm:out: no batch norm says what its range is")
    assert "nor those of mul:out, add:out" in str(error.value)
    assert "halfstep.ptq.distill_data" in str(error.value)


def test_the_report_lists_every_range(mobile: hs.Graph):
    text = str(set_batchnorm_ranges(prepared(mobile)))
    assert text.splitlines()[0] == "7 ranges from batch norms, 2 estimated"
    assert "  x:in: [-6, 6]" in text
