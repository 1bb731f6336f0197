"""What batch norms know about every value of a graph: mean, deviation and range of each channel.

References: Nagel et al. 2019 (arXiv 1906.04721), sections 4.2 and 5 and appendix C: the output of
a batch norm has mean ``beta`` and standard deviation ``|gamma|`` (``gamma`` may be negative), and
an activation range of ``beta +- 6 |gamma|``, with the lower end 0 behind ReLU.

From there the statistics are carried on:

| operation                    | mean, deviation                     | range                       |
|------------------------------|-------------------------------------|-----------------------------|
| layer with a batch norm      | beta, abs(gamma)                    | mean +- n deviations        |
| ReLU, clip, leaky ReLU       | of a normal value, closed form      | the function of both ends   |
| other functions of one value | the same, by quadrature             | smallest and largest value  |
| addition, subtraction        | means and variances add             | mean +- n deviations within |
|                              |                                     | the sum of both ranges      |
| product                      | of independent values               | products of the ends        |
| concatenation, slice         | the channels' own                   | the same                    |
| pooling, mean, resize, pad   | those of the input                  | the same, with 0 if padded  |
| layer without a batch norm   | exact mean; independent inputs      | mean +- n deviations        |

Deviations: the paper says what follows a batch norm, a ReLU, an addition and a concatenation. An
average varies less, and a maximum is larger, than the statistics here say; values that meet in a
sum, a product or a layer without batch norm may depend on each other. What rests on such
independence is marked ``estimated``. Behind anything else (other normalizations, attention,
reshapes that mix channels) nothing is known.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from halfstep.graph.batchnorm import value_of
from halfstep.graph.capture import Graph
from halfstep.graph.ops import IDENTITIES, describe, is_computation
from halfstep.graph.placement import WEIGHTED
from halfstep.graph.readers import OpInfo, shape_of
from halfstep.ptq.blocks import blocks, of_constant
from halfstep.ptq.channels import Channels, joined


def channel_statistics(
    graph: Graph,
    *,
    deviations: float = 6.0,
    input_range: tuple[float, float] = (-6.0, 6.0),
) -> dict[fx.Node, Channels]:
    """The statistics of every value of ``graph`` that has channels on axis 1 and is known.

    Args:
        graph: captured; batch norms are folded, and their statistics lie with the layers.
        deviations: half of the width of a range.
        input_range: what real-valued inputs keep to; their mean is 0 and their deviation 1.
    """
    walk = _Walk(graph, deviations, input_range)
    for node in graph.module.graph.nodes:
        found = walk.statistics(node)
        if found is not None:
            walk.known[node] = found
    return walk.known


def of_batchnorm(node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of a layer's output, (channels,) float64, if it has a batch norm."""
    if "batchnorm" not in node.meta:
        return None
    gamma, beta = node.meta["batchnorm"]
    ones = torch.ones(shape_of(node)[1], dtype=torch.float64)
    mean = 0 * ones if beta is None else beta.detach().double()
    return mean, ones if gamma is None else gamma.detach().double().abs()


class _Walk:
    """The state of one walk through a graph."""

    def __init__(self, graph: Graph, deviations: float, input_range: tuple[float, float]) -> None:
        self.module = graph.module
        self.deviations = deviations
        self.input_range = input_range
        self.known: dict[fx.Node, Channels] = {}

    def statistics(self, node: fx.Node) -> Channels | None:
        """Those of one node, from what is known so far."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
            return None
        if node.op == "placeholder":
            return self._input(node)
        if node.target in IDENTITIES:
            return self.known.get(node.args[0])  # type: ignore[arg-type]
        if not is_computation(node):
            return None
        info = describe(node)
        if info.kind in WEIGHTED:
            return self._layer(info, node)
        rule = _RULES.get(info.kind)
        parts = [self._operand(value, node, info) for value in info.inputs] if rule else []
        known = [part for part in parts if part is not None]
        return rule(self, info, node, known) if rule and len(known) == len(parts) else None

    def _input(self, node: fx.Node) -> Channels:
        ones = torch.ones(shape_of(node)[1], dtype=torch.float64)
        low, high = self.input_range
        return Channels(0 * ones, ones, low * ones, high * ones)

    def _layer(self, info: OpInfo, node: fx.Node) -> Channels | None:
        if info.kind == "linear" and len(shape_of(node)) > 2:
            return None
        found = of_batchnorm(node)
        if found is not None:
            return Channels.normal(*found, self.deviations)
        source = self.known.get(info.inputs[0])
        if source is None or info.weight is None or info.weight.op != "get_attr":
            return None
        weight = value_of(self.module, info.weight).detach().double()
        parts = blocks(info.kind, info.attrs, weight)
        mean = of_constant(parts, source.mean)
        variance = of_constant(parts.square(), source.deviation.square())
        if info.bias is not None:
            mean = mean + value_of(self.module, info.bias).detach().double()
        return Channels.normal(mean, variance.sqrt(), self.deviations, estimated=True)

    def _operand(self, value: fx.Node, node: fx.Node, info: OpInfo) -> Channels | None:
        """An operand as it meets ``node``; of a constant, what its channels hold."""
        if value.op != "get_attr":
            return self.known.get(value)
        sizes = shape_of(node)[1:]
        constant = value_of(self.module, value).detach().double()
        if constant.ndim > len(sizes):
            constant = constant[0]
        if info.kind == "prelu":  # its slopes run along axis 1, not along the last
            constant = constant.reshape(-1, *[1] * (len(sizes) - 1))
        rows = constant.expand(sizes).reshape(sizes[0], -1)
        return replace(Channels.constant(rows.mean(1)), low=rows.amin(1), high=rows.amax(1))


Rule = Callable[[_Walk, OpInfo, fx.Node, list[Channels]], Channels | None]


def _same(walk: _Walk, info: OpInfo, node: fx.Node, parts: list[Channels]) -> Channels | None:
    """Positions are averaged, picked or repeated within a channel."""
    del walk, node
    over_channels = set(info.attrs.get("axes", ())) & {0, 1}
    return None if over_channels else parts[0]


def _slice(walk: _Walk, info: OpInfo, node: fx.Node, parts: list[Channels]) -> Channels | None:
    del walk, node
    if info.attrs["axis"] != 1:
        return parts[0]
    return parts[0].taken(info.attrs["start"], info.attrs["stop"], info.attrs["step"])


def _pad(walk: _Walk, info: OpInfo, node: fx.Node, parts: list[Channels]) -> Channels | None:
    """Zeros around each channel, and channels of zeros; or positions that are repeated."""
    del walk, node
    _, channels, *space = info.attrs["padding"]
    if info.attrs["mode"] != "constant":
        return parts[0] if channels == (0, 0) else None
    if info.attrs["value"] != 0 or min(channels) < 0:
        return None
    inside = parts[0].including_zero() if any(map(any, space)) else parts[0]
    before, after = (Channels.constant(torch.zeros(size).double()) for size in channels)
    return joined([before, inside, after])


def _reshape(walk: _Walk, info: OpInfo, node: fx.Node, parts: list[Channels]) -> Channels | None:
    """A flatten of space into the channels, or other axes of size 1."""
    del walk
    before, after = shape_of(info.inputs[0]), shape_of(node)
    if before[0] != after[0] or after[1] < before[1] or after[1] % before[1]:
        return None
    return parts[0].repeated(after[1] // before[1])


def _clip(walk: _Walk, info: OpInfo, node: fx.Node, parts: list[Channels]) -> Channels | None:
    del walk, node
    return parts[0].clip(info.attrs.get("low", 0.0), info.attrs.get("high"))


def _minimum(walk: _Walk, info: OpInfo, node: fx.Node, parts: list[Channels]) -> Channels | None:
    """Behind a ReLU, both are one clip of a normal value."""
    del node
    values = [value for value in info.inputs if value.op != "get_attr"]
    if len(values) != 1:
        return None
    bound = parts[1 if values[0] is info.inputs[0] else 0].high
    source = describe(values[0]) if is_computation(values[0]) else None
    if source is not None and source.kind == "relu" and source.inputs[0] in walk.known:
        return walk.known[source.inputs[0]].clip(0.0, bound)
    return walk.known[values[0]].clip(None, bound)


def _leaky(walk: _Walk, info: OpInfo, node: fx.Node, parts: list[Channels]) -> Channels | None:
    del walk, node
    slope = info.attrs["slope"] if info.kind == "leaky_relu" else parts[1].mean
    return parts[0].leaky(slope)


def _function(walk: _Walk, info: OpInfo, node: fx.Node, parts: list[Channels]) -> Channels | None:
    del walk, node
    function = _FUNCTIONS[info.kind]
    return parts[0].through(lambda values: function(values, **info.attrs))


def _sum(walk: _Walk, info: OpInfo, node: fx.Node, parts: list[Channels]) -> Channels | None:
    del node
    other = parts[1].negated() if info.kind == "sub" else parts[1]
    return parts[0].plus(other, walk.deviations)


def _product(walk: _Walk, info: OpInfo, node: fx.Node, parts: list[Channels]) -> Channels | None:
    """Of two values; ``x sigmoid(x)`` is a function of one."""
    del node
    for value, gate in (info.inputs, info.inputs[::-1]):
        if is_computation(gate):
            opened = describe(gate)
            if opened.kind == "sigmoid" and opened.inputs[0] is value:
                return walk.known[value].through(F.silu)
    return parts[0].times(parts[1])


def _concat(walk: _Walk, info: OpInfo, node: fx.Node, parts: list[Channels]) -> Channels | None:
    del walk, node
    return joined(parts) if info.attrs["axis"] == 1 else None


_FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "abs": torch.abs,
    "elu": torch.ops.aten.elu,
    "softplus": F.softplus,
    "mish": F.mish,
    "log_sigmoid": F.logsigmoid,
}
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("relu", "clamp"), _clip),
    **dict.fromkeys(("leaky_relu", "prelu"), _leaky),
    **dict.fromkeys(_FUNCTIONS, _function),
    **dict.fromkeys(("max_pool", "avg_pool", "global_avg_pool", "adaptive_avg_pool"), _same),
    **dict.fromkeys(("mean", "upsample_nearest", "upsample_linear", "resize"), _same),
    **dict.fromkeys(("add", "sub"), _sum),
    "slice": _slice,
    "pad": _pad,
    "reshape": _reshape,
    "minimum": _minimum,
    "mul": _product,
    "concat": _concat,
}
