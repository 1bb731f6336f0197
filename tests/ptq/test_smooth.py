"""Activation equalization: equations 3 and 4, the same function, and who is refused."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import halfstep as hs
from halfstep.core.qtype import INT8_NARROW, UINT8
from halfstep.errors import CalibrationError, DataError
from halfstep.graph.batchnorm import value_of
from halfstep.graph.ops import describe
from halfstep.ptq.influence import Influence
from halfstep.ptq.smooth import smooth
from halfstep.ptq.smoothing_factors import SMALLEST_WEIGHT, Inputs, Search, factors
from tests.encoders import TOKENS, WIDTH, Encoder, sentences
from tests.models import Call, normal, seeded

ROW = (5, 8)


def data(*shape: int, batches: int = 3) -> list[Tensor]:
    return [normal(6, *shape, seed=seed) for seed in range(1, batches + 1)]


def assert_same_function(module: nn.Module, graph: hs.Graph, *inputs: Tensor) -> None:
    with torch.no_grad():
        wanted, found = module(*inputs), graph.module(*inputs)[0]
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def weight_of(graph: hs.Graph, name: str) -> Tensor:
    return graph.module.get_parameter(name).detach()


# Equation 4


def test_equation_4() -> None:
    largest, weight = torch.tensor([8.0, 2.0, 0.5]), torch.tensor([2.0, 0.5, 0.5])
    for alpha in (0.0, 0.25, 0.5, 1.0):
        wanted = largest**alpha / weight ** (1 - alpha)
        torch.testing.assert_close(factors(largest, weight, alpha), wanted)


def test_alpha_one_half_gives_activations_and_weights_one_range() -> None:
    """The white papers' equalization, with activations for the first layer's weights."""
    largest, weight = normal(16).abs() + 0.1, normal(16, seed=1).abs() + 0.1
    s = factors(largest, weight, 0.5)
    torch.testing.assert_close(largest / s, weight * s)
    torch.testing.assert_close(largest / s, (largest * weight).sqrt())


def test_alpha_one_gives_all_activations_one_range_and_alpha_zero_all_weights() -> None:
    largest, weight = normal(16).abs() + 0.1, normal(16, seed=1).abs() + 0.1
    torch.testing.assert_close(largest / factors(largest, weight, 1.0), torch.ones(16))
    torch.testing.assert_close(weight * factors(largest, weight, 0.0), torch.ones(16))


def test_dead_channels() -> None:
    s = factors(torch.tensor([0.0, 4.0]), torch.tensor([3.0, 0.0]), 0.5)
    assert s[0] == 1
    assert s[1] == pytest.approx((4 / SMALLEST_WEIGHT) ** 0.5)


# The same function


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, None])
@pytest.mark.parametrize("insert", [True, False], ids=["insert", "absorb"])
def test_an_encoder_stays_what_it_was(first: bool, alpha: float | None, insert: bool) -> None:
    module = Encoder(first)
    graph = hs.capture(module, sentences(2))
    before = {name: value.clone() for name, value in graph.module.state_dict().items()}
    new, report = smooth(graph, [sentences(8, 1), sentences(5, 2)], alpha=alpha, insert=insert)
    assert report.groups
    assert_same_function(module, new, *sentences(16, 9))
    for name, value in graph.module.state_dict().items():
        assert torch.equal(value, before[name]), "the argument was changed"


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_inputs_and_weights_end_with_the_ranges_of_equation_4(alpha: float) -> None:
    module = seeded(Call(lambda norm, linear, x: linear(norm(x)), nn.LayerNorm(8), nn.Linear(8, 4)))
    batches = data(*ROW)
    graph = hs.capture(module, batches[0])
    new, _ = smooth(graph, batches, alpha=alpha)
    with torch.no_grad():
        x = torch.cat([module.part[0](batch) for batch in batches]).reshape(-1, 8)
    s = factors(x.abs().amax(0), module.part[1].weight.detach().abs().amax(0), alpha)
    torch.testing.assert_close(weight_of(new, "part.0.weight"), module.part[0].weight.detach() / s)
    torch.testing.assert_close(weight_of(new, "part.0.bias"), module.part[0].bias.detach() / s)
    torch.testing.assert_close(weight_of(new, "part.1.weight"), module.part[1].weight.detach() * s)
    torch.testing.assert_close(weight_of(new, "part.1.bias"), module.part[1].bias.detach())


Make = Callable[[], nn.Module]
ABSORBED: dict[str, tuple[Make, tuple[int, ...]]] = {
    "relu": (lambda: Call(lambda a, b, x: b(a(x).relu()), nn.Linear(8, 6), nn.Linear(6, 4)), ROW),
    "leaky relu": (
        lambda: Call(lambda a, b, x: b(F.leaky_relu(a(x))), nn.Linear(8, 6), nn.Linear(6, 4)), ROW,
    ),
    "a scale": (
        lambda: Call(lambda s, b, x: b(F.gelu(x) * s.weight), nn.LayerNorm(8), nn.Linear(8, 4)),
        ROW,
    ),
    "a scale for all channels": (
        lambda: Call(lambda a, b, x: b(a(x) * 0.3), nn.Linear(8, 6), nn.Linear(6, 4)), ROW,
    ),
    "an offset": (
        lambda: Call(lambda a, s, b, x: b(a(x) + s.weight), nn.Linear(8, 6), nn.LayerNorm(6),
                     nn.Linear(6, 4)), ROW,
    ),
    "a sum": (
        lambda: Call(lambda a, b, c, x: c(a(x) + b(x)), nn.Linear(8, 6), nn.Linear(8, 6),
                     nn.Linear(6, 4)), ROW,
    ),
    "a gate": (
        lambda: Call(lambda a, b, c, x: c(F.gelu(a(x)) * b(x)), nn.Linear(8, 6), nn.Linear(8, 6),
                     nn.Linear(6, 4)), ROW,
    ),
    "flattened channels": (
        lambda: Call(lambda a, b, x: b(a(x).relu().flatten(1)), nn.Conv2d(3, 2, 3),
                     nn.Linear(18, 4)), (3, 5, 5),
    ),
    "a transpose": (
        lambda: Call(lambda a, b, x: b(a(x).flatten(2).transpose(1, 2)), nn.Conv2d(3, 6, 2, 2),
                     nn.Linear(6, 4)), (3, 4, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ABSORBED)
def test_what_takes_the_factors(name: str) -> None:
    make, shape = ABSORBED[name]
    module = seeded(make())
    graph = hs.capture(module, normal(2, *shape))
    new, report = smooth(graph, data(*shape))
    if name == "flattened channels":  # one factor for a channel cannot be one for each place
        assert not any(group.layers == ("part.1",) for group in report.groups)
        return
    last = f"part.{len(module.part) - 1}"
    assert [group.layers for group in report.groups][-1] == (last,)
    assert not any(group.inserted for group in report.groups)
    assert_same_function(module, new, normal(7, *shape, seed=50))
    old, changed = (weight_of(g, f"part.{len(module.part) - 1}.weight") for g in (graph, new))
    assert not torch.allclose(old, changed)


def test_values_through_attention() -> None:
    graph = hs.capture(Encoder(), sentences(2))
    new, report = smooth(graph, [sentences(8, 1)])
    assert [group.layers for group in report.groups] == [("blocks.0.out",), ("blocks.1.out",)]
    ratio = weight_of(graph, "blocks.0.value.weight") / weight_of(new, "blocks.0.value.weight")
    s = ratio[:, :1]
    torch.testing.assert_close(ratio, s.expand(WIDTH, WIDTH))
    torch.testing.assert_close(
        weight_of(new, "blocks.0.out.weight"), weight_of(graph, "blocks.0.out.weight") * s[:, 0]
    )


def test_the_factors_of_attention_are_those_of_the_layer_of_values() -> None:
    """It is quantized itself, and attention only averages its rows."""
    module = Encoder()
    graph = hs.capture(module, sentences(2))
    ids, mask = sentences(8, 1)
    new, _ = smooth(graph, [(ids, mask)])
    with torch.no_grad():
        x = module.norm(module.words(ids) + module.positions)
        largest = module.blocks[0].value(x)[mask > 0].abs().amax(0)
    s = factors(largest, module.blocks[0].out.weight.detach().abs().amax(0), 0.5)
    ratio = weight_of(graph, "blocks.0.value.weight") / weight_of(new, "blocks.0.value.weight")
    torch.testing.assert_close(ratio[:, 0], s)


class Fused(nn.Module):
    """Queries, keys and values from one layer, as vision transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape[0], 5, 8))
        return result


def test_only_the_values_of_a_fused_layer_are_divided() -> None:
    module = seeded(Fused())
    graph = hs.capture(module, normal(2, *ROW))
    new, report = smooth(graph, data(*ROW))
    assert [group.layers for group in report.groups] == [("out",)]
    assert_same_function(module, new, normal(6, *ROW, seed=50))
    ratio = weight_of(graph, "qkv.weight") / weight_of(new, "qkv.weight")
    torch.testing.assert_close(ratio[:16], torch.ones(16, 8))
    assert (ratio[16:, 0] - 1).abs().min() > 1e-3


def test_statistics_of_a_batch_norm_follow() -> None:
    module = seeded(
        Call(lambda a, n, b, x: b(n(a(x)).relu()), nn.Linear(8, 6), nn.BatchNorm1d(6),
             nn.Linear(6, 4))
    )  # fmt: skip
    graph = hs.capture(module, normal(2, 8))
    new, _ = smooth(graph, data(8))
    (before,), (after,) = (
        [n.meta["batchnorm"] for n in g.module.graph.nodes if "batchnorm" in n.meta]
        for g in (graph, new)
    )
    (node,) = [n for n in new.module.graph.nodes if "batchnorm" in n.meta]
    (old,) = [n for n in graph.module.graph.nodes if "batchnorm" in n.meta]
    s = value_of(graph.module, describe(old).bias) / value_of(new.module, describe(node).bias)
    for mine, other in zip(before, after, strict=True):
        torch.testing.assert_close(mine, other * s.detach(), check_dtype=False)


@settings(max_examples=20, deadline=None)
@given(heads=st.sampled_from([1, 2, 4]), tokens=st.integers(1, 5), seed=st.integers(0, 99))
def test_heads_of_any_number(heads: int, tokens: int, seed: int) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                layer(x).reshape(x.shape[0], tokens, heads, 8 // heads).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
            mixed = (q @ k.transpose(2, 3)).softmax(-1) @ v
            result: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape[0], tokens, 8))
            return result

    module = seeded(Attention(), seed)
    graph = hs.capture(module, normal(2, tokens, 8))
    new, report = smooth(graph, data(tokens, 8))
    assert [group.layers for group in report.groups] == [("out",)]
    assert_same_function(module, new, normal(4, tokens, 8, seed=seed))


# Who is refused, and who is inserted


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(F.gelu(self.linear(self.norm(x))))
        return result


REFUSED: dict[str, tuple[Make, str, str]] = {
    "gelu": (
        lambda: Call(lambda a, b, x: b(F.gelu(a(x))), nn.Linear(8, 6), nn.Linear(6, 4)),
        "<lambda>|",
        r"\(gelu\) does not let a factor through",
    ),
    "relu6": (
        lambda: Call(lambda a, b, x: b(F.relu6(a(x))), nn.Linear(8, 6), nn.Linear(6, 4)),
        "",
        "the bound of .* would have to differ between channels",
    ),
    "a residual": (
        lambda: Call(lambda n, a, x: n(x) + a(n(x)), nn.LayerNorm(8), nn.Linear(8, 8)),
        "",
        "has no other|reads it as well|shared",
    ),
    "an input": (lambda: Call(lambda a, x: a(x), nn.Linear(8, 8)), "x", "is an input"),
    "no weight": (
        lambda: Call(lambda a, x: a(F.layer_norm(x, (8,))), nn.Linear(8, 8)), "", "has no weight",
    ),
    "a shared weight": (Shared, "norm", "the weight of linear is shared"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_who_is_refused_and_why(name: str) -> None:
    import re

    make, _, reason = REFUSED[name]
    module = seeded(make())
    graph = hs.capture(module, normal(2, *ROW))
    new, report = smooth(graph, data(*ROW))
    assert any(re.search(reason, found) for _, found in report.refused), str(report)
    assert_same_function(module, new, normal(6, *ROW, seed=50))


def test_a_residual_gets_a_multiplication_if_asked() -> None:
    def residual(norm: nn.Module, linear: nn.Module, x: Tensor) -> Tensor:
        y = norm(x)
        return y + linear(y)

    module = seeded(Call(residual, nn.LayerNorm(8), nn.Linear(8, 8)))
    graph = hs.capture(module, normal(2, *ROW))
    _, report = smooth(graph, data(*ROW))
    assert [reason for _, reason in report.refused] == ["part (add) reads it as well"] or [
        reason for _, reason in report.refused
    ] == ["add (add) reads it as well"]
    new, report = smooth(graph, data(*ROW), insert=True)
    assert [group.inserted for group in report.groups] == [True]
    assert_same_function(module, new, normal(6, *ROW, seed=50))
    plan = hs.make_plan(new)
    assert {"part.0", "part.1", "part.0.smoothing"} <= plan.executions.keys()


def test_padding_does_not_count() -> None:
    module = Encoder()
    graph = hs.capture(module, sentences(2))
    ids, mask = sentences(8, 1)
    other = ids.clone()
    other[mask == 0] = 7  # other words, behind the mask
    first, second = (smooth(graph, [(value, mask)])[0] for value in (ids, other))
    for name, value in first.module.state_dict().items():
        torch.testing.assert_close(value, second.module.state_dict()[name], rtol=1e-6, atol=0)


def test_what_the_output_does_not_depend_on_is_left_out() -> None:
    module = seeded(Call(lambda n, a, x: x + 0 * a(n(x)), nn.LayerNorm(8), nn.Linear(8, 8)))
    graph = hs.capture(module, normal(2, *ROW))
    _, report = smooth(graph, data(*ROW))
    assert report.refused == (("part.0", "the output does not depend on it"),)


# The search


def test_the_search_is_never_worse_than_no_change() -> None:
    graph = hs.capture(Encoder(True), sentences(2))
    _, report = smooth(graph, [sentences(16, 1)], alpha=None)
    for group in report.groups:
        assert group.error is not None
        assert group.error[1] <= group.error[0]
    # A few channels of the norms are 20 times the others.
    norms = [group for group in report.groups if "norm" in group.source]
    assert norms and all(g.error[1] < g.error[0] / 2 for g in norms if g.error)
    assert all(group.spread[1] < group.spread[0] for group in norms)


def test_the_error_of_a_trial_is_that_of_quantized_inputs_and_weights() -> None:
    x, weight = normal(64, 8) * torch.linspace(1, 30, 8), normal(5, 8, seed=1)
    inputs = Inputs()
    inputs.add(Influence(x, torch.ones_like(x)))
    search = Search(inputs, weight, UINT8, INT8_NARROW)
    trial = search.trial(0.5)
    divided, multiplied = search.rows / trial.factors, weight * trial.factors
    step = float((divided.amax().clamp(min=0) - divided.amin().clamp(max=0)) / 255)
    zero = round(-float(divided.amin().clamp(max=0)) / step)
    on_grid = ((divided / step).round() + zero).clamp(0, 255).sub(zero) * step
    row = multiplied.abs().amax(1, keepdim=True) / 127
    rounded = (multiplied / row).round() * row
    error = (on_grid @ rounded.T - search.rows @ weight.T).square().sum()
    wanted = float(error / (search.rows @ weight.T).square().sum())
    # The range is that of all inputs, of which the rows are a part.
    assert trial.error == pytest.approx(wanted, rel=0.2)


def test_even_channels_stay_as_they_are() -> None:
    x = torch.sign(normal(64, 8))
    inputs = Inputs()
    inputs.add(Influence(x, torch.ones_like(x)))
    before, best = Search(inputs, torch.sign(normal(5, 8, seed=1)), UINT8, INT8_NARROW).best()
    assert best.alpha is None and best.error == before.error


# Reports and errors


def test_the_report_is_readable() -> None:
    graph = hs.capture(Encoder(), sentences(2))
    _, report = smooth(graph, [sentences(8, 1)], alpha=None)
    text = str(report)
    assert text.startswith("2 groups equalized, 6 refused\n")
    assert "blocks.0 -> blocks.0.out: alpha " in text
    assert "blocks.0.function: blocks.0.function (gelu) does not let a factor through" in text


def test_alpha_is_from_0_to_1() -> None:
    graph = hs.capture(Encoder(), sentences(2))
    with pytest.raises(CalibrationError, match=r"smooth: alpha=1\.5: give a number from 0 to 1"):
        smooth(graph, [sentences(8, 1)], alpha=1.5)


def test_no_data_is_an_error() -> None:
    graph = hs.capture(Encoder(), sentences(2))
    with pytest.raises(DataError, match="the data has no batch"):
        smooth(graph, [])


def test_it_is_repeatable() -> None:
    graph = hs.capture(Encoder(), sentences(2))
    (first, _), (second, _) = (
        smooth(graph, [sentences(8, 1)], alpha=None, insert=True) for _ in range(2)
    )
    for mine, other in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert TOKENS == 6
