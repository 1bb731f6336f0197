"""Every rewrite keeps what the model computes, and leaves nothing of what it rewrites."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import halfstep as hs
from halfstep.errors import CaptureError
from halfstep.graph.canonical import canonicalize
from tests.models import Call, normal, seeded

aten = torch.ops.aten
IMAGE = (4, 6, 6)


def targets_of(module: fx.GraphModule) -> list[Any]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


def assert_rewritten(
    model: nn.Module, shape: tuple[int, ...], gone: tuple[Any, ...], made: tuple[Any, ...] = ()
) -> None:
    """The canonical graph computes the same, without ``gone`` and with ``made``."""
    graph = hs.capture(model, normal(2, *shape))
    x = normal(5, *shape, seed=1)
    with torch.no_grad():
        expected = model(x.clone())
        found = graph.module(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-5)
    targets = targets_of(graph.module)
    assert not set(gone) & set(targets)
    assert set(made) <= set(targets)


def in_place(x: Tensor) -> Tensor:
    x = x * 2.0
    x += 1.0
    before = x * 3.0
    x.relu_()
    x.clamp_(max=2.0)
    return x + before


class Causal(nn.Module):
    """Self-attention with a mask of a buffer."""

    def __init__(self, mask: Tensor | None, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(
            x, 2.0 * x, x + 1.0, attn_mask=self.mask, scale=self.scale
        )


IN_PLACE = (aten.add_.Tensor, aten.relu_.default, aten.clamp_.default, aten.clamp_.Tensor)
SPLITS = (
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    aten.select.int,
)
ATTENTION = (aten.scaled_dot_product_attention.default,)
PARTS = (aten.matmul.default, aten.softmax.int)
NOTHING = (
    aten.contiguous.default,
    aten.clone.default,
    aten.detach.default,
    aten.expand.default,
    aten.view.default,
    aten.reshape.default,
    aten.to.dtype,
)
MOVED = (aten.reshape.default, aten.permute.default)
SLICED = (aten.slice.Tensor, aten.cat.default)
POWER = (aten.pow.Tensor_Scalar,)
Case = tuple[Callable[[Tensor], Any], tuple[int, ...], tuple[Any, ...], tuple[Any, ...]]

CASES: dict[str, Case] = {
    "in place": (in_place, IMAGE, IN_PLACE, (aten.relu.default,)),
    "chunk": (
        lambda x: torch.cat([part * k for k, part in enumerate(x.chunk(3, 2), 1)], 2),
        IMAGE,
        SPLITS,
        (aten.slice.Tensor,),
    ),
    "uneven chunk": (lambda x: x.chunk(3, 1), (5, 2), SPLITS, (aten.slice.Tensor,)),
    "split": (lambda x: x.split(4, -1), IMAGE, SPLITS, (aten.slice.Tensor,)),
    "split with sizes": (lambda x: x.split([1, 3, 2], 2), IMAGE, SPLITS, (aten.slice.Tensor,)),
    "unbind": (lambda x: x.unbind(1), IMAGE, SPLITS, (aten.slice.Tensor, aten.squeeze.dim)),
    "select": (lambda x: x[:, 2], IMAGE, SPLITS, (aten.slice.Tensor, aten.squeeze.dim)),
    "select from the end": (lambda x: x[..., -1], IMAGE, SPLITS, (aten.slice.Tensor,)),
    "attention": (Causal(None), (2, 5, 4), ATTENTION, PARTS),
    "attention with a scale": (Causal(None, 0.3), (2, 5, 4), ATTENTION, PARTS),
    "attention, bool mask": (
        Causal(torch.ones(5, 5, dtype=torch.bool).tril()),
        (2, 5, 4),
        ATTENTION,
        (*PARTS, aten.add.Tensor),
    ),
    "attention, float mask": (
        Causal(normal(5, 5, seed=3)),
        (2, 5, 4),
        ATTENTION,
        (*PARTS, aten.add.Tensor),
    ),
    "scalar on the right": (
        lambda x: (x + 2) * 3 - 1,
        IMAGE,
        (aten.add.Scalar, aten.mul.Scalar, aten.sub.Tensor),
        (aten.add.Tensor, aten.mul.Tensor),
    ),
    "scalar on the left": (lambda x: 2 + 3 * x, IMAGE, (aten.add.Scalar, aten.mul.Scalar), ()),
    "subtracted from a scalar": (
        lambda x: 1.5 - x,
        IMAGE,
        (aten.rsub.Scalar,),
        (aten.sub.Tensor,),
    ),
    "divided by a scalar": (lambda x: x / 3, IMAGE, (aten.div.Tensor,), (aten.mul.Tensor,)),
    "masked_fill": (
        lambda x: x.masked_fill(x > 0.5, -3.0),
        IMAGE,
        (aten.masked_fill.Scalar,),
        (aten.where.self,),
    ),
    "chosen numbers": (
        lambda x: torch.where(x > 0.5, 2.0, x) + torch.where(x > 0, x, 0.5),
        IMAGE,
        (aten.where.ScalarSelf, aten.where.ScalarOther),
        (aten.where.self,),
    ),
    "mean over space": (
        lambda x: x.mean((2, 3)),
        IMAGE,
        (),
        (aten.mean.dim, aten.flatten.using_ints),
    ),
    "mean over space, from behind": (
        lambda x: x.mean((-1, -2)),
        IMAGE,
        (),
        (aten.flatten.using_ints,),
    ),
    "mean over tokens": (lambda x: x.mean(1), (5, 4), (), (aten.mean.dim,)),
    "layer norm with a bias alone": (
        Call(lambda m, x: functional.layer_norm(m(x), (4,), None, m.bias), nn.Linear(4, 4)),
        (5, 4),
        (),
        (aten.layer_norm.default, aten.add.Tensor),
    ),
    "silu": (
        functional.silu,
        IMAGE,
        (aten.silu.default,),
        (aten.sigmoid.default, aten.mul.Tensor),
    ),
    "nothing": (
        lambda x: functional.pad(
            x.contiguous().clone().detach().float().view(-1, *IMAGE)[:], (0, 0, 0, 0), "replicate"
        ).relu(),
        IMAGE,
        NOTHING,
        (aten.relu.default,),
    ),
    "adaptive max pool": (
        lambda x: functional.adaptive_max_pool2d(x, 3),
        IMAGE,
        (aten.adaptive_max_pool2d.default,),
        (aten.max_pool2d.default,),
    ),
    "average with a divisor": (
        lambda x: functional.avg_pool2d(x, 2, divisor_override=3),
        IMAGE,
        (),
        (aten.avg_pool2d.default, aten.mul.Tensor),
    ),
    "pixel shuffle": (
        lambda x: functional.pixel_shuffle(x, 2),
        IMAGE,
        (aten.pixel_shuffle.default,),
        MOVED,
    ),
    "pixel unshuffle": (
        lambda x: functional.pixel_unshuffle(x, 3),
        IMAGE,
        (aten.pixel_unshuffle.default,),
        MOVED,
    ),
    "channel shuffle": (
        lambda x: functional.channel_shuffle(x, 2),
        IMAGE,
        (aten.channel_shuffle.default,),
        (aten.transpose.int,),
    ),
    "stack": (
        lambda x: torch.stack([x, x + 1], 2),
        IMAGE,
        (aten.stack.default,),
        (aten.unsqueeze.default, aten.cat.default),
    ),
    "roll": (lambda x: x.roll((1, -2), (2, -1)), IMAGE, (aten.roll.default,), SLICED),
    "roll by nothing": (lambda x: x.roll(6, 2) + 0, IMAGE, (aten.roll.default,), ()),
    "flip": (lambda x: x.flip((1, 3)), IMAGE, (aten.flip.default,), SLICED),
    "index": (lambda x: x[:, [2, 1, 0, -1, 3]], IMAGE, (aten.index.Tensor,), SLICED),
    "index select": (
        lambda x: x.index_select(2, torch.tensor([1, 2, 3])),
        IMAGE,
        (aten.index_select.default,),
        (aten.slice.Tensor,),
    ),
    "repeat": (lambda x: x.repeat(1, 2, 1, 3), IMAGE, (aten.repeat.default,), (aten.cat.default,)),
    "repeat along an axis of one": (
        lambda x: x[:, :1].repeat(1, 5, 1, 1),
        IMAGE,
        (aten.repeat.default,),
        (aten.expand.default,),
    ),
    "tile": (lambda x: x.tile((2, 1)), IMAGE, (aten.tile.default,), (aten.cat.default,)),
    "expand as": (
        lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
        IMAGE,
        (aten.expand_as.default,),
        (aten.expand.default,),
    ),
    "square": (
        lambda x: x.square() + x**2,
        IMAGE,
        (aten.square.default, *POWER),
        (aten.mul.Tensor,),
    ),
    "powers": (
        lambda x: x**3 - x**4 + (x * x) ** 0.5,
        IMAGE,
        POWER,
        (aten.mul.Tensor, aten.sqrt.default),
    ),
    "one bound": (
        lambda x: x.clamp_min(-0.5).clamp_max(0.5),
        IMAGE,
        (aten.clamp_min.default, aten.clamp_max.default),
        (aten.clamp.default,),
    ),
    "gate": (
        lambda x: functional.glu(x, 1),
        IMAGE,
        (aten.glu.default,),
        (aten.sigmoid.default, aten.mul.Tensor),
    ),
    "added product": (
        lambda x: torch.baddbmm(x, x, x),
        (6, 6),
        (aten.baddbmm.default,),
        (aten.matmul.default, aten.add.Tensor),
    ),
    "largest over space": (
        lambda x: x.amax((2, 3)),
        IMAGE,
        (aten.amax.default,),
        (aten.max_pool2d.default, aten.flatten.using_ints),
    ),
    "largest over space, kept": (
        lambda x: x.amax((-1, -2), keepdim=True),
        IMAGE,
        (aten.amax.default,),
        (aten.max_pool2d.default,),
    ),
    "group norm": (
        seeded(nn.GroupNorm(2, 4)),
        IMAGE,
        (aten.group_norm.default,),
        (aten.layer_norm.default, aten.mul.Tensor, aten.add.Tensor),
    ),
    "group norm of sequences": (
        seeded(nn.GroupNorm(4, 4)),
        (4, 6),
        (aten.group_norm.default,),
        (aten.layer_norm.default,),
    ),
    "group norm without parameters": (
        nn.GroupNorm(2, 4, affine=False),
        IMAGE,
        (aten.group_norm.default,),
        (aten.layer_norm.default,),
    ),
    "instance norm": (
        seeded(nn.InstanceNorm2d(4, affine=True)),
        IMAGE,
        (aten.instance_norm.default,),
        (aten.layer_norm.default, aten.mul.Tensor),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rewrites(case):
    function, shape, gone, made = case
    model = function if isinstance(function, nn.Module) else Call(function)
    assert_rewritten(model.eval(), shape, gone, made)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: x.roll(1), "aten::roll"),
        (lambda x: x.flip(2), "aten::flip"),
        (lambda x: x.flip(0), "aten::flip"),
        (lambda x: x.repeat(2, 1, 1, 1), "aten::repeat"),
        (lambda x: x**5, "aten::pow"),
        (lambda x: x**-1.0, "aten::pow"),
        (lambda x: torch.baddbmm(x[:, 0], x[:, 0], x[:, 0], beta=2), "aten::baddbmm"),
        (lambda x: x.amax(1), "aten::amax"),
        (lambda x: functional.glu(x, 0), "aten::glu"),
        (lambda x: x[:, []], "aten::index"),
    ],
)
def test_what_would_be_another_thing_is_left_and_refused_by_name(function, kind):
    graph = hs.capture(Call(function), normal(2, 2, 100, 100))
    floats = hs.make_plan(graph).floats
    assert any(f"{kind}" in reason and "op table" in reason for reason in floats.values()), floats


def test_a_rewrite_that_changes_the_output_is_refused(monkeypatch):
    def broken(module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            if node.target == aten.mul.Tensor:
                node.target = aten.add.Tensor
        module.recompile()

    monkeypatch.setattr("halfstep.graph.capture.canonicalize", broken)
    with pytest.raises(CaptureError, match=r"^output 0: the captured graph differs from the model"):
        hs.capture(Call(lambda x: x * x), normal(2, 3))


def test_scalars_become_constants_of_the_graph():
    graph = hs.capture(Call(lambda x: x * 2.5 + 1), normal(2, 3))
    scalars = [n.meta["scalar"] for n in graph.module.graph.nodes if "scalar" in n.meta]
    assert scalars == [2.5, 1.0]
    for node in graph.module.graph.nodes:
        if node.op == "call_function":
            assert all(isinstance(arg, fx.Node) for arg in node.args)


def test_one_bool_mask_is_made_additive_once_for_all_layers():
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    model = nn.Sequential(Causal(mask), Causal(mask))
    model[1].mask = model[0].mask
    assert_rewritten(model, (2, 5, 4), ATTENTION, PARTS)


def test_a_mean_over_space_is_a_global_pool():
    graph = hs.capture(Call(lambda x: x.mean((2, 3))), normal(2, *IMAGE))
    assert "global_avg_pool" in hs.make_plan(graph).executions


@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_is_split(need_weights):
    def attend(attention: nn.Module, x: Tensor) -> Tensor:
        result: Tensor = attention(x, x, x, need_weights=need_weights)[0]
        return result

    model = seeded(Call(attend, nn.MultiheadAttention(8, 2, batch_first=True)))
    assert_rewritten(model, (5, 8), (*ATTENTION, aten.view.default), (aten.softmax.int,))


class Attention(nn.Module):
    """Attention of queries, keys and values as they come."""

    def __init__(self, **choices: Any) -> None:
        super().__init__()
        self.choices = choices

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, **self.choices)


@pytest.mark.parametrize("length", [3, 5, 8], ids=["fewer queries", "square", "more queries"])
def test_a_causal_mask_counts_from_the_first_key(length):
    model = Attention(is_causal=True)
    inputs = [normal(3, 2, size, 4, seed=seed) for seed, size in enumerate((length, 5, 5))]
    graph = hs.capture(model, inputs)
    torch.testing.assert_close(graph.module(*inputs)[0], model(*inputs), rtol=1e-5, atol=1e-6)
    assert not set(ATTENTION) & set(targets_of(graph.module))
    (mask,) = (value for value in graph.module.buffers() if value.ndim == 2)
    visible = [[key <= query for key in range(5)] for query in range(length)]
    assert torch.equal(mask == 0, torch.tensor(visible))


def test_layers_of_one_length_share_a_causal_mask():
    def twice(x: Tensor) -> Tensor:
        for _ in range(2):
            x = functional.scaled_dot_product_attention(x, x, 2.0 * x, is_causal=True)
        return x

    graph = hs.capture(Call(twice), normal(2, 2, 5, 4))
    assert [value.shape for value in graph.module.buffers() if value.ndim == 2] == [(5, 5)]


def test_causal_attention_over_the_batch_is_refused():
    def over_samples(x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return functional.scaled_dot_product_attention(x, x, x, is_causal=True).transpose(0, 1)

    with pytest.raises(
        CaptureError, match=r"needs sequences of a fixed length, and this one grows"
    ):
        hs.capture(Call(over_samples), normal(2, 5, 4))


@pytest.mark.parametrize(("keys", "values"), [(2, 2), (1, 1), (3, 2), (6, 1), (6, 6)])
@pytest.mark.parametrize("causal", [False, True])
def test_grouped_heads_are_repeated_as_copies(keys, values, causal):
    model = Attention(enable_gqa=True, is_causal=causal)
    inputs = [normal(3, heads, 5, 4, seed=heads) for heads in (6, keys, values)]
    graph = hs.capture(model, inputs)
    torch.testing.assert_close(graph.module(*inputs)[0], model(*inputs), rtol=1e-5, atol=1e-6)
    executions = hs.make_plan(graph).executions
    repeated = [how for name, how in executions.items() if name.startswith("expand")]
    assert repeated == ["copy"] * ((keys != 6) + (values != 6))


def test_attention_that_drops_in_eval_mode_is_refused():
    inputs = tuple(normal(2, 2, 5, 4) for _ in range(3))
    graph = torch.export.export(Attention(dropout_p=0.5), inputs).module()
    with pytest.raises(CaptureError, match=r"dropout 0.5 in eval mode is random; pass dropout_p"):
        canonicalize(graph)


def test_alpha_is_refused():
    text = r"write the factor alpha=2 as a multiplication$"
    with pytest.raises(CaptureError, match=text):
        hs.capture(Call(lambda x: torch.add(x, x, alpha=2)), normal(2, 3))


def relu_of_a_part(x: Tensor) -> Tensor:
    y = x + 1.0
    y[:, :2].relu_()
    return y


def written_through_a_view(x: Tensor) -> Tensor:
    y = x * 2.0
    y.view(-1).clamp_(max=0.5)
    return y + 1.0


def written_behind_a_view(x: Tensor) -> Tensor:
    y = x * 2.0
    part = y[:, 1:]
    y.add_(1.0)
    return part * 3.0


@pytest.mark.parametrize("function", [relu_of_a_part, written_through_a_view])
def test_writing_into_a_part_of_what_is_read_again_is_refused(function):
    """Readers of the whole saw the old numbers, where the example did not show it."""
    with pytest.raises(CaptureError, match=r"it writes into a part or a view of .*in place: join"):
        hs.capture(Call(function), normal(2, 4))


def one_of_two_parts(x: Tensor) -> Tensor:
    first, second = (x + 1.0).chunk(2, 1)
    first.relu_()
    return torch.cat([second * 2.0, first], 1)


def test_one_of_two_parts_may_be_written_into():
    assert_rewritten(Call(one_of_two_parts), (4,), (aten.relu_.default, *SPLITS))


def test_a_part_that_nobody_else_reads_may_be_written_into():
    assert_rewritten(Call(lambda x: (x + 1.0)[:, :2].relu_()), (4,), (aten.relu_.default,))


MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "integers times a fraction": lambda m: 1 - (1 - m) * 0.5,
    "integers by a number": lambda m: m / 2,
    "integers by integers": lambda m: m / (m + 1),
    "subtracted from a fraction": lambda m: 1.5 - m,
    "a fraction added": lambda m: m + 0.5,
    "truth values times a fraction": lambda m: ~(m == 1) * -1e9,
    "truth values times truth values": lambda m: ((m == 1) * (m == 1)).float(),
    "compared with a fraction": lambda m: (m == 0.5).float(),
    "subtracted truth values": lambda m: 2.0 - (m == 0) * 1e4,
}


@pytest.mark.parametrize("function", MIXED.values(), ids=MIXED)
def test_types_are_promoted_as_in_torch(function):
    """Numbers took the type of the value beside them, which cut off their fractions."""
    ones, mixed = torch.ones(2, 5, dtype=torch.int64), torch.arange(10).view(2, 5) % 3
    graph = hs.capture(Call(function), ones)
    assert torch.equal(graph.module(mixed)[0], function(mixed))
    program = hs.lower(hs.prepare(graph, hs.make_plan(graph).keep_float("*")))
    (found,) = hs.Engine(program).run([mixed.numpy()]).outputs
    assert (found == function(mixed).numpy()).all()


class Table(nn.Module):
    """Scores with a bias for each relative position, looked up in a trained table (Swin)."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(normal(49, 1))
        index = torch.arange(256) * 7 % 49
        self.register_buffer("index", index if flat else index.view(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[self.index].view(16, 16)


@pytest.mark.parametrize("flat", [True, False])
def test_rows_of_a_trained_table_are_an_embedding(flat):
    assert_rewritten(Table(flat), (16, 16), (aten.index.Tensor,), (aten.embedding.default,))


def test_a_group_norm_may_have_a_computed_weight():
    assert_rewritten(
        Call(lambda m, x: functional.group_norm(x, 2, m.weight + 1, m.bias), nn.GroupNorm(2, 4)),
        IMAGE,
        (aten.group_norm.default,),
    )
