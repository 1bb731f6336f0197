"""Which layers may be rescaled against each other, and why the others may not."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import halfstep as hs
from halfstep.ptq.pairs import Pair, Refusal, find_pairs
from tests.models import Call, normal, seeded

IMAGE = (4, 6, 6)


def found_in(function, *parts: nn.Module, shape=IMAGE) -> tuple[list[Pair], dict[str, str]]:
    graph = hs.capture(seeded(Call(function, *parts)), normal(2, *shape))
    pairs, refused = find_pairs(graph)
    return list(pairs), {refusal.site: refusal.reason for refusal in refused}


def convs(*channels: int, kernel: int = 3, **options) -> tuple[nn.Module, ...]:
    sizes = itertools.pairwise(channels)
    return tuple(nn.Conv2d(i, o, kernel, padding=kernel // 2, **options) for i, o in sizes)


BETWEEN = {
    "nothing": lambda x: x,
    "relu": torch.relu,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(0, 3),
    "leaky relu": F.leaky_relu,
    "dropout": lambda x: F.dropout(x.relu(), 0.5, training=False),
    "max pool": lambda x: F.max_pool2d(x.relu(), 2),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, 3),
    "global pool": lambda x: x.mean((2, 3), keepdim=True),
    "zero padding": lambda x: F.pad(x, (1, 0, 2, 1)),
    "reflected padding": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "a slice of space": lambda x: x[:, :, 1:4],
    "a product with a constant": lambda x: -2.5 * x,
    "a product with channels": lambda x: x * torch.arange(1.0, 6.0)[:, None, None],
    "a quotient": lambda x: x / 3,
    "caps": lambda x: torch.minimum(x.relu(), torch.arange(1.0, 6.0)[:, None, None]),
    "axes that move and come back": lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_what_a_scale_passes_through(between):
    pairs, refused = found_in(lambda a, b, x: b(between(a(x))), *convs(4, 5, 3))
    assert [(pair.first, pair.second) for pair in pairs] == [("part.0", "part.1")]
    assert refused == {"part.1": "it is an output of the model"}
    assert pairs[0].repeat == 1


AFTER = {
    "an addition": (lambda x: x.relu() + 1, r"add.* \(add\) reads it: both operands of a sum"),
    "a difference": (lambda x: 1 - x, r"\(sub\) reads it: both operands of a sum"),
    "a concatenation": (lambda x: torch.cat([x, x], 1), "its other parts go where this one goes"),
    "a bound below": (lambda x: x.clamp(-1, 1), r"\(clamp\) reads it: only a bound at 0"),
    "no bound above zero": (lambda x: x.clamp(0, 0), r"only a bound at 0"),
    "a sigmoid": (torch.sigmoid, r"\(sigmoid\) reads it: it does not commute"),
    "a gelu": (F.gelu, r"\(gelu\) reads it: it does not commute"),
    "a softmax": (lambda x: x.softmax(1), "it does not commute"),
    "a square": (lambda x: x * x, r"\(mul\) reads it: it does not compute with a constant"),
    "a reciprocal": (lambda x: torch.ones(1) / x, r"\(div\) reads it: it does not compute with"),
    "padding with ones": (lambda x: F.pad(x, (1, 1), value=1.0), "pads with another value than 0"),
    "some channels": (lambda x: x[:, :3], "takes some of the channels"),
    "more channels": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 1)), "it adds channels"),
    "a mean over channels": (lambda x: x.mean((1, 2)), "sums over the channels"),
    "channels in groups": (lambda x: x.reshape(-1, 2, 3 * 36), "mixes the channels"),
    "a product of itself": (lambda x: x.flatten(2) @ torch.ones(36, 2), "the other operand"),
}


@pytest.mark.parametrize("case", AFTER.values(), ids=AFTER)
def test_what_stops_a_scale(case):
    after, reason = case
    pairs, refused = found_in(lambda a, x: after(a(x)), *convs(4, 6))
    assert not pairs
    assert re.search(reason, refused["part.0"]), refused


def test_a_value_that_is_read_twice_is_refused_with_its_readers():
    def branches(a: nn.Module, b: nn.Module, c: nn.Module, x: Tensor) -> Tensor:
        y = a(x).relu()
        return b(y) + c(y)

    pairs, refused = found_in(branches, *convs(4, 4, 4, 4))
    assert not pairs
    assert refused["part.0"] == "it is read 2 times, by part.1, part.2"


def test_a_residual_block_keeps_its_ends():
    def block(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
        return (x + b(a(x).relu())).relu()

    pairs, refused = found_in(block, *convs(4, 8, 4))
    assert [str(pair) for pair in pairs] == ["part.0 -> part.1"]
    assert list(refused) == ["part.1"]


def test_a_value_that_is_an_output_as_well_is_refused():
    def both(a: nn.Module, b: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        x = a(x)
        return x, b(x)

    _, refused = found_in(both, *convs(4, 4, 4))
    assert refused["part.0"] == "it is an output of the model"


def test_shared_weights_are_refused_on_both_sides():
    pairs, refused = found_in(lambda a, b, x: b(b(a(x).relu()).relu()), *convs(4, 4, 4))
    assert not pairs
    assert refused["part.0"] == "part.1 reads it, whose weight is shared with another layer"
    assert refused["part.1"] == refused["part.1_1"]
    assert refused["part.1"] == "its weight or its bias is shared with another layer"


def test_a_depthwise_triple_is_two_pairs():
    parts = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 5, 1)
    pairs, _ = found_in(lambda a, b, c, x: c(F.relu6(b(F.relu6(a(x))))), *parts)
    assert [str(pair) for pair in pairs] == ["part.0 -> part.1", "part.1 -> part.2"]
    assert all([step.kind for step in pair.bounds] == ["clamp"] for pair in pairs)


FLAT = {
    "flatten": (lambda x: x.flatten(1), 36),
    "a view by the size of the batch": (lambda x: x.view(x.size(0), -1), 36),
    "pooled": (lambda x: F.max_pool2d(x, 2).flatten(1), 9),
    "a mean": (lambda x: x.mean((2, 3)), 1),
    "squeezed": (lambda x: x.mean((2, 3), True).squeeze(-1).squeeze(-1), 1),
}


@pytest.mark.parametrize("case", FLAT.values(), ids=FLAT)
def test_a_linear_layer_behind_a_flatten_reads_each_channel_many_times(case):
    flat, repeat = case
    pairs, _ = found_in(
        lambda a, b, x: b(flat(a(x).relu())), *convs(4, 5), nn.Linear(5 * repeat, 3)
    )
    assert [pair.repeat for pair in pairs] == [repeat]


def test_channels_on_the_last_axis():
    def blocks(a: nn.Module, b: nn.Module, c: nn.Module, x: Tensor) -> Tensor:
        x = a(x).permute(0, 2, 3, 1)
        return c(b(x).relu().reshape(-1, 36, 8))

    pairs, _ = found_in(blocks, *convs(4, 5), nn.Linear(5, 8), nn.Linear(8, 3))
    assert [str(pair) for pair in pairs] == ["part.0 -> part.1", "part.1 -> part.2"]


def test_a_layer_that_reads_another_axis_is_refused():
    pairs, refused = found_in(
        lambda a, b, x: b(a(x)), nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 6)
    )
    assert not pairs
    assert refused["part.0"] == "part.1 reads axis 3 as channels, and they are on 1"


def test_a_refusal_reads_as_a_line():
    assert str(Refusal("a", "b")) == "a: b"
