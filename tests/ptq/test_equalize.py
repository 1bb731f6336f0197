"""Equalization keeps the function, makes the ranges of both sides equal, and settles."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import halfstep as hs
from halfstep.core.grid import Affine
from halfstep.core.qtype import INT8_NARROW
from halfstep.errors import PlanError
from halfstep.graph.batchnorm import value_of
from halfstep.graph.edit import weighted_nodes
from halfstep.graph.ops import describe
from halfstep.graph.slices import sliced
from halfstep.ptq.blocks import blocks
from halfstep.ptq.channel_statistics import channel_statistics
from halfstep.ptq.equalize import equalize
from halfstep.ptq.pairs import find_pairs
from tests.broken import ptq as broken
from tests.models import Call, normal, seeded
from tests.pipeline import lowered, normal_inputs
from tests.ptq.networks import input_ranges, output_ranges

IMAGE = (4, 8, 8)


def captured(module: nn.Module, shape=IMAGE) -> hs.Graph:
    return hs.capture(module, normal(2, *shape))


def spread_out(module: nn.Module, orders: float = 2.0, seed: int = 0) -> nn.Module:
    """``module`` with the ranges of its output channels spread over so many powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
                factors = 10 ** (orders * torch.rand(layer.weight.shape[axis], generator=generator))
                shape = [-1 if i == axis else 1 for i in range(layer.weight.ndim)]
                layer.weight.mul_(factors.reshape(shape))
    return module


def weights_of(graph: hs.Graph) -> dict[str, Tensor]:
    """(groups, outputs, inputs, taps...) of each layer, by the name of its node, in order."""
    found = {}
    for node in weighted_nodes(graph):
        info = describe(node)
        weight = value_of(graph.module, info.weight).detach().double()
        found[node.name] = blocks(info.kind, info.attrs, weight)
    return found


def assert_same_function(
    before: hs.Graph, after: hs.Graph, shape=IMAGE, tolerance: float = 1e-5, double: bool = False
) -> None:
    """Law: the same outputs on random inputs, relative to the largest."""
    x = 3 * normal(16, *shape, seed=7)
    modules = [before.module, after.module]
    if double:
        modules, x = [copy.deepcopy(module).double() for module in modules], x.double()
    with torch.no_grad():
        wanted, found = (module(x)[0] for module in modules)
    distance = float((wanted - found).abs().max() / wanted.abs().max())
    assert distance <= tolerance, f"the outputs differ by {distance:.2g}"


def activation(name: str, channels: int) -> nn.Module:
    return {
        "none": nn.Identity(),
        "relu": nn.ReLU(),
        "prelu": nn.PReLU(channels),
        "leaky relu": nn.LeakyReLU(0.2),
        "relu6": nn.ReLU6(),
    }[name]


LAYERS = {
    "plain": (nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)),
    "grouped": (nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 6, 3, groups=2)),
    "grouped unevenly": (nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 6, 1, groups=2)),
    "into depthwise": (nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)),
    "out of depthwise": (nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 6, 1)),
    "transposed": (nn.ConvTranspose2d(4, 8, 3, 2), nn.Conv2d(8, 6, 3)),
    "into transposed": (nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 6, 3, 2)),
    "transposed in groups": (
        nn.ConvTranspose2d(4, 8, 3, groups=2),
        nn.ConvTranspose2d(8, 6, 3, groups=2),
    ),
}


@pytest.mark.parametrize("between", ["none", "relu", "prelu", "leaky relu", "relu6"])
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_the_function_stays_and_the_ranges_are_equal(layers, between: str):
    module = seeded(nn.Sequential(layers[0], activation(between, 8), layers[1]))
    before = captured(spread_out(module))
    after, report = equalize(before)
    assert_same_function(before, after)
    first, second = weights_of(after).values()
    torch.testing.assert_close(output_ranges(first), input_ranges(second), rtol=1e-6, atol=0)
    assert len(report.pairs) == 1
    assert report.converged


def test_float64_rounds_the_rescaling_alone():
    """Weights are rounded to float32 once, whatever the number of sweeps."""
    module = seeded(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3)))
    before = captured(spread_out(module))
    after, _ = equalize(before)
    wide = copy.deepcopy(after.module).double()
    (pair,) = find_pairs(after)[0]
    (report,) = equalize(before)[1].pairs
    with torch.no_grad():
        for node, factor in ((pair.head, 1 / report.scales), (pair.tail, report.scales)):
            info = describe(node)
            exact = value_of(before.module, info.weight).double()
            parts = blocks(info.kind, info.attrs, exact)
            parts.mul_(
                factor.reshape(1, -1, 1, 1, 1)
                if node is pair.head
                else factor.reshape(1, 1, -1, 1, 1)
            )
            value_of(wide, info.weight).copy_(exact)
        bias = describe(pair.head).bias
        value_of(wide, bias).copy_(value_of(before.module, bias).double() / report.scales)
        x = normal(4, *IMAGE, seed=3).double()
        wanted = copy.deepcopy(before.module).double()(x)[0]
        distance = (wide(x)[0] - wanted).abs().max() / wanted.abs().max()
    assert distance < 1e-12


@pytest.mark.parametrize("flat", [36, 9, 1])
def test_a_linear_layer_behind_a_flatten(flat: int):
    side = math.isqrt(flat)
    parts = nn.Conv2d(4, 5, 3), nn.Linear(5 * flat, 3)
    module = Call(lambda a, b, x: b(F.adaptive_avg_pool2d(a(x).relu(), side).flatten(1)), *parts)
    before = captured(spread_out(seeded(module)), (4, 8, 8))
    after, _ = equalize(before)
    assert_same_function(before, after)
    first, second = weights_of(after).values()
    wide = input_ranges(second).reshape(5, flat).amax(1)
    torch.testing.assert_close(output_ranges(first), wide, rtol=1e-6, atol=0)


def triple() -> nn.Module:
    parts = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 5, 1)
    layers = [parts[0], nn.ReLU(), parts[1], nn.ReLU(), parts[2]]
    return spread_out(seeded(nn.Sequential(*layers)))


def test_a_depthwise_triple_ends_at_the_geometric_mean():
    """The closed form: ``m = (r0 r1 r2)^(1/3)`` for all three ranges of a channel."""
    before = captured(triple())
    after, report = equalize(before, tolerance=1e-9)
    zero, one, two = weights_of(before).values()
    mean = (output_ranges(zero) * output_ranges(one) * input_ranges(two)) ** (1 / 3)
    zero, one, two = weights_of(after).values()
    for ranges in (output_ranges(zero), output_ranges(one), input_ranges(two)):
        torch.testing.assert_close(ranges, mean, rtol=1e-6, atol=0)
    assert report.converged
    assert_same_function(before, after)


def test_sweeps_converge_and_a_second_call_changes_nothing():
    layers = [part for _ in range(4) for part in (nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())]
    before = captured(spread_out(seeded(nn.Sequential(*layers))), (6, 8, 8))
    after, report = equalize(before, max_sweeps=200)
    assert report.converged
    assert report.sweeps > 1
    assert len(report.pairs) == 3
    again, second = equalize(after)
    assert second.sweeps == 1
    assert max(float(pair.scales.log().abs().max()) for pair in second.pairs) < 1e-4
    for mine, other in zip(weights_of(after).values(), weights_of(again).values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=0)


def test_too_few_sweeps_are_reported():
    _, report = equalize(captured(triple()), max_sweeps=1)
    assert not report.converged
    assert report.sweeps == 1
    assert report.largest > 1e-4
    assert "not converged" in str(report)


def test_the_original_graph_is_left_alone():
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))
    before = captured(spread_out(seeded(module)))
    state = {name: value.clone() for name, value in before.module.state_dict().items()}
    statistics = [n.meta["batchnorm"] for n in before.module.graph.nodes if "batchnorm" in n.meta]
    kept = [tuple(value.clone() for value in pair) for pair in statistics]
    equalize(before)
    for name, value in before.module.state_dict().items():
        assert torch.equal(value, state[name]), name
    for pair, old in zip(statistics, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(pair, old, strict=True))


def test_statistics_of_batch_norms_follow():
    norm = nn.BatchNorm2d(8)
    module = nn.Sequential(nn.Conv2d(4, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 6, 3))
    after, report = equalize(captured(spread_out(seeded(module))))
    (node,) = [n for n in after.module.graph.nodes if "batchnorm" in n.meta]
    scales = report.pairs[0].scales.float()
    for found, original in zip(node.meta["batchnorm"], (norm.weight, norm.bias), strict=True):
        torch.testing.assert_close(found, original.detach() / scales)


def test_statistics_without_parameters_follow():
    norm = nn.BatchNorm2d(8, affine=False)
    module = nn.Sequential(nn.Conv2d(4, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 6, 3))
    after, report = equalize(captured(seeded(module)))
    (node,) = [n for n in after.module.graph.nodes if "batchnorm" in n.meta]
    gamma, beta = node.meta["batchnorm"]
    torch.testing.assert_close(gamma, (1 / report.pairs[0].scales).float())
    assert not beta.any()


def test_dead_channels_keep_their_scale():
    module = seeded(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3)))
    with torch.no_grad():
        module[0].weight[2] = 0
        module[2].weight[:, 5] = 0
    before = captured(spread_out(module))
    after, report = equalize(before)
    (pair,) = report.pairs
    assert pair.dead == 2
    assert pair.scales[[2, 5]].tolist() == [1, 1]
    assert torch.isfinite(pair.scales).all()
    assert "2 dead" in str(pair)
    assert_same_function(before, after)


# ReLU6


def six() -> nn.Module:
    parts = nn.Conv2d(4, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6()
    return spread_out(seeded(nn.Sequential(*parts, nn.Conv2d(8, 5, 1))), orders=1.5)


def test_caps_keep_relu6_exactly():
    before = captured(six())
    after, report = equalize(before)
    assert_same_function(before, after)
    caps = [n for n in after.module.graph.nodes if n.target == torch.ops.aten.minimum.default]
    assert len(caps) == 2
    value = value_of(after.module, caps[0].args[1])
    assert value.shape == (8, 1, 1)
    torch.testing.assert_close(value.flatten(), 6 / report.pairs[0].scales.float())
    again, _ = equalize(after)
    assert_same_function(before, again)


def test_caps_run_on_codes_and_verify(tmp_path):
    graph, _ = equalize(captured(six()))
    made = lowered(six(), normal_inputs(IMAGE), graph=graph, weights="int7_narrow")
    assert made.plan.floats == {}
    assert all(op.execution == "copy" for op in made.program.ops if op.kind == "minimum")
    verdict = made.prove(tmp_path)
    assert verdict.status is hs.Status.EXACT, str(verdict)
    assert verdict.integer_in_runtime == 1


def test_the_range_behind_caps_is_that_of_what_is_left():
    """A quantizer sees the values behind the caps, not those that the caps cut."""
    graph, _ = equalize(captured(six()))
    made = lowered(six(), normal_inputs(IMAGE), graph=graph, calibrator="minmax")
    x = torch.cat([made.inputs(8, seed)[0] for seed in (1, 2, 3)])
    caps = [n for n in graph.module.graph.nodes if n.target == torch.ops.aten.minimum.default]
    inputs = [n for n in graph.module.graph.nodes if n.op == "placeholder"]
    with torch.no_grad():
        largest = sliced(graph.module, inputs, caps[:1])(x)[0].max()
    site = made.quantized.units.sites[caps[0]]
    grid = made.quantized.quantizer(site).grid()
    assert float(grid.high) == pytest.approx(float(largest), rel=1e-5)


def test_relu6_may_be_replaced():
    before = captured(six())
    after, report = equalize(before, relu6="replace")
    plain = nn.Sequential(*(nn.ReLU() if isinstance(m, nn.ReLU6) else m for m in six()))
    assert_same_function(captured(plain), after)
    assert len(report.pairs) == 2
    with pytest.raises(AssertionError, match="differ"):
        assert_same_function(before, after)


def test_relu6_may_be_refused():
    before = captured(six())
    after, report = equalize(before, relu6="refuse")
    assert report.pairs == ()
    reasons = [r.reason for r in report.refused if "->" in r.site]
    assert reasons == [
        f"{n} has an upper bound, and relu6 is 'refuse'" for n in ("hardtanh", "hardtanh_1")
    ]
    assert_same_function(before, after, tolerance=0)


def test_another_way_with_relu6_is_an_error():
    with pytest.raises(PlanError, match=r"^relu6: asked for one of caps, replace, refuse, found"):
        equalize(captured(six()), relu6="clip")


# Headroom


def faint() -> nn.Module:
    """A channel with hardly any weights, and a bias: its activation is a constant."""
    conv, norm = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)
    module = seeded(nn.Sequential(conv, norm, nn.ReLU(), nn.Conv2d(8, 5, 1)))
    with torch.no_grad():
        norm.weight.fill_(1.0)
        norm.bias.fill_(0.5)
        norm.weight[3] = 1e-7
    return module


def activation_ranges(graph: hs.Graph) -> Tensor:
    node = next(n for n in graph.module.graph.nodes if n.target == torch.ops.aten.relu.default)
    return channel_statistics(graph)[node].high


def test_headroom_holds_an_activation_that_would_stick_out():
    before = captured(faint())
    paper, _ = equalize(before)
    held, report = equalize(before, headroom=4)
    wide, narrow = activation_ranges(paper), activation_ranges(held)
    assert wide.max() > 100 * wide.median()
    assert narrow.max() <= 4 * narrow.median() * (1 + 1e-6)
    assert report.pairs[0].held == 1
    assert ", 1 held," in str(report.pairs[0])
    assert_same_function(before, held)
    others = torch.arange(8) != 3
    mine, theirs = (equalize(before, headroom=h)[1].pairs[0].scales for h in (4, None))
    torch.testing.assert_close(mine[others], theirs[others])


def test_headroom_changes_nothing_where_there_is_enough():
    before = captured(six())
    one, two = (equalize(before, headroom=h)[1].pairs for h in (1e6, None))
    for mine, other in zip(one, two, strict=True):
        torch.testing.assert_close(mine.scales, other.scales)
        assert mine.held == 0


def test_headroom_is_at_least_the_median():
    with pytest.raises(PlanError, match=r"^headroom: asked for 1 or more, found 0\.5"):
        equalize(captured(faint()), headroom=0.5)


# The law rejects what is nearly right


@pytest.mark.parametrize("name", broken.EQUALIZATIONS)
def test_an_update_that_is_nearly_right_is_rejected(name: str, monkeypatch):
    monkeypatch.setattr("halfstep.ptq.sweeps.Sweeper.update", broken.EQUALIZATIONS[name])
    before = captured(triple())
    after, _ = equalize(before, max_sweeps=1)
    with pytest.raises(AssertionError):
        assert_same_function(before, after)
        _, one, two = weights_of(after).values()
        torch.testing.assert_close(output_ranges(one), input_ranges(two), rtol=1e-6, atol=0)


# What it is for


def rounding_error(graph: hs.Graph, per_channel: bool) -> float:
    """The squared error of the output with int8 weights, relative to its variance."""
    rounded = copy.deepcopy(graph.module)
    x = normal(16, *IMAGE, seed=5)
    for node in weighted_nodes(graph):
        weight = value_of(rounded, describe(node).weight)
        low, high = weight.detach().amin(), weight.detach().amax()
        if per_channel:
            low, high = (f(weight.detach(), (1, 2, 3)) for f in (torch.amin, torch.amax))
        axis = 0 if per_channel else None
        grid = Affine.from_range(low.numpy(), high.numpy(), INT8_NARROW, axis=axis, symmetric=True)
        with torch.no_grad():
            codes = grid.quantize(weight.detach().numpy())
            weight.copy_(torch.from_numpy(grid.dequantize(codes)))
    with torch.no_grad():
        wanted, found = graph.module(x)[0], rounded(x)[0]
    return float((wanted - found).square().mean() / wanted.var())


def test_one_scale_for_a_weight_is_as_good_as_many_after_equalization():
    """A MobileNet-like block whose channels were moved against each other by up to 100 times."""
    parts = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 5, 1)
    layers = [parts[0], nn.ReLU(), parts[1], nn.ReLU(), parts[2]]
    module = seeded(nn.Sequential(*layers))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for first, second in itertools.pairwise(parts):
            factors = 10 ** (2 * torch.rand(8, generator=generator))
            first.weight.mul_(factors[:, None, None, None])
            first.bias.mul_(factors)
            along = factors[:, None, None, None] if second.groups > 1 else factors[:, None, None]
            second.weight.div_(along)
    before = captured(module)
    after, report = equalize(before)
    assert report.pairs[0].spread[0] > 3 * report.pairs[0].spread[1]
    plain, equalized = (rounding_error(graph, per_channel=False) for graph in (before, after))
    assert plain > 10 * equalized
    assert equalized < 4 * rounding_error(before, per_channel=True)


@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    multiplier=st.integers(1, 3),
    transposed=st.booleans(),
    orders=st.floats(0, 3),
    seed=st.integers(0, 100),
)
def test_any_grouping_keeps_the_function(
    groups: int, multiplier: int, transposed: bool, orders: float, seed: int
):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    middle = 4 * multiplier
    first = kind(4, middle, 2, groups=groups)
    second = kind(middle, 8, 2, groups=groups)
    module = spread_out(seeded(nn.Sequential(first, nn.ReLU(), second), seed), orders, seed)
    before = captured(module)
    after, report = equalize(before)
    assert len(report.pairs) == 1
    assert_same_function(before, after)
