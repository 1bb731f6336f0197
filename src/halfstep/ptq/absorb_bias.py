"""Absorption of high biases: move what is always there behind the activation function.

Reference: Nagel et al. 2019 (arXiv 1906.04721), section 4.1.3, equations 12 to 15. Where the
pre-activations of a channel practically never fall below ``c >= 0``, a ReLU passes ``c`` on:
``f(W1 x + b1) = f(W1 x + b1 - c) + c``, and the next layer can add ``W2 c`` itself:

    c = max(0, beta - 3 |gamma|),   b1 -= c,   b2 += (sum over the taps of W2) c

so that the values between the layers need a smaller range. With data, ``c = max(0, min (W1 x +
b1))``. With no activation function in between, all of ``beta`` is absorbed.

Deviations: the paper takes the sum over all taps, which is wrong where taps lie on padding (the
padded zeros were never lowered by ``c``), as between the 1x1 and the 3x3 depthwise convolution of
MobileNet blocks. Here the constant ``c`` is run through the graph between the two layers, the
second included: whatever it makes there other than ``(sum of W2) c`` is the error, at every
position, of absorbing this pair. Pairs with an error are refused unless they are accepted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from halfstep.data import batches
from halfstep.errors import PlanError
from halfstep.graph.batchnorm import value_of
from halfstep.graph.capture import Graph
from halfstep.graph.edit import set_value, with_biases
from halfstep.graph.insert import check_batch
from halfstep.graph.ops import describe
from halfstep.graph.readers import shape_of
from halfstep.graph.slices import sliced
from halfstep.progress import Progress, silent
from halfstep.ptq.blocks import blocks, of_constant
from halfstep.ptq.channel_statistics import of_batchnorm
from halfstep.ptq.pairs import Pair, Refusal, Step, find_pairs

Borders = Literal["refuse", "accept"]
# Errors below this share of the layer's own constant are float32 rounding.
_EXACT = 1e-5


@dataclass(frozen=True, eq=False)
class Absorption:
    """What happened to one pair.

    Attributes:
        pair: the names of its layers.
        absorbed: ``c``, (channels,), float64.
        error: the largest difference that it makes at a border, in units of the second layer's
            output; 0 where there is none.
        deviations: the same in standard deviations of its channel; ``None`` without batch norm.
    """

    pair: str
    absorbed: Tensor
    error: float = 0.0
    deviations: float | None = None

    def __str__(self) -> str:
        count, largest = int((self.absorbed != 0).sum()), float(self.absorbed.abs().max())
        text = f"{self.pair}: {count} of {len(self.absorbed)} channels, at most {largest:.3g}"
        return f"{text}, {_error(self)}" if self.error else text


@dataclass(frozen=True, eq=False)
class AbsorptionReport:
    """What bias absorption did.

    Attributes:
        pairs: what was absorbed, in order of execution.
        refused: pairs with something to absorb that were left alone, with the reason.
    """

    pairs: tuple[Absorption, ...]
    refused: tuple[Refusal, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.pairs)} pairs", *(f"  {pair}" for pair in self.pairs)]
        return "\n".join([*lines, *(f"  not absorbed: {refusal}" for refusal in self.refused)])


def absorb_bias(
    graph: Graph,
    data: Iterable[Any] | None = None,
    *,
    deviations: float = 3.0,
    borders: Borders = "refuse",
    progress: Progress = silent,
) -> tuple[Graph, AbsorptionReport]:
    """Lower the values between layers by what the next layer can add.

    Args:
        graph: from ``capture``, equalized or not; left as it is.
        data: batches to find the smallest pre-activations on, read once; without them the
            statistics of the batch norms serve.
        deviations: how far below its mean a pre-activation still counts, without data.
        borders: what becomes of pairs where padding makes absorption inexact.
        progress: wraps the batches.

    Raises:
        PlanError: ``borders`` is neither of the two.
        DataError: a batch of a wrong shape, dtype or value.
    """
    if borders not in ("refuse", "accept"):
        raise PlanError(f"borders: asked for refuse or accept, found {borders!r}")
    new = with_biases(graph)
    pairs, _ = find_pairs(new)
    least = None if data is None else _smallest(new, pairs, data, progress)
    done: list[Absorption] = []
    refused: list[Refusal] = []
    for pair in pairs:
        constant, reason = _constant(new, pair, least, deviations)
        if constant is None or not constant.any():
            refused += [Refusal(str(pair), reason)] if reason else []
            continue
        found = _measured(new, pair, constant)
        if found.error and borders == "refuse":
            count = int((constant != 0).sum())
            reason = f"{count} channels with a high bias, and padding makes {_error(found)}"
            refused.append(Refusal(str(pair), reason))
            continue
        _apply(new, pair, constant)
        done.append(found)
    return new, AbsorptionReport(tuple(done), tuple(refused))


def _constant(
    graph: Graph, pair: Pair, least: Mapping[fx.Node, Tensor] | None, deviations: float
) -> tuple[Tensor | None, str]:
    """``c`` of each channel; or ``None``, with a reason if there is something to say."""
    for step in pair.bounds:
        if step.kind == "clamp" or _bounds(graph, step).numel() == 1:
            return None, f"the bound of {step.node.name} would have to move: run equalize first"
    found = of_batchnorm(pair.head)
    if found is not None and not pair.bounds and not _has_activation(pair):
        return found[0], ""
    if least is not None:
        constant = least[pair.head].clamp(min=0)
    elif found is not None:
        constant = (found[0] - deviations * found[1]).clamp(min=0)
    else:
        return None, f"{pair.first} has no batch norm; give data"
    for step in pair.bounds:
        room = _bounds(graph, step) - _along(torch.zeros_like(constant), step)
        while room.ndim > len(shape_of(step.node)) - step.axis:
            room = room.amin(0)
        room = room.reshape(len(constant), -1).amin(1)
        constant = torch.minimum(constant, room.clamp(min=0))
    return constant, ""


def _has_activation(pair: Pair) -> bool:
    return any(step.kind in ("relu", "leaky_relu", "prelu") for step in pair.steps)


def _along(constant: Tensor, step: Step) -> Tensor:
    """Values of channels, (channels,), so that they broadcast over the output of ``step``."""
    shape = [-1, *[1] * (len(shape_of(step.node)) - 1 - step.axis)]
    return constant.repeat_interleave(step.repeat).reshape(shape)


def _bounds(graph: Graph, step: Step) -> Tensor:
    """The upper bounds of a minimum, float64."""
    constant = next(value for value in describe(step.node).inputs if value.op == "get_attr")
    return value_of(graph.module, constant).detach().double()


def _measured(graph: Graph, pair: Pair, constant: Tensor) -> Absorption:
    """The pair with what absorption changes at borders: the constant is run through the graph."""
    sizes = [1, *shape_of(pair.head)[1:]]
    axis = len(sizes) - 1 if describe(pair.head).kind == "linear" else 1
    sent = _on_axis(constant, axis, len(sizes)).float().expand(sizes)
    info = describe(pair.tail)
    assert info.bias is not None, "with_biases gave it one"
    bias = value_of(graph.module, info.bias).detach().double()
    with torch.no_grad():
        arrived = sliced(graph.module, (pair.head,), (pair.tail,))(sent)[0].double()
    axis = arrived.ndim - 1 if info.kind == "linear" else 1
    wanted = _added(graph, pair, constant)
    missing = (arrived - _on_axis(wanted + bias, axis, arrived.ndim)).abs()
    missing = missing.movedim(axis, 0).flatten(1).amax(1)
    if missing.max() <= _EXACT * (wanted.abs() + bias.abs()).max():
        return Absorption(str(pair), constant)
    found = of_batchnorm(pair.tail)
    share = None if found is None else float((missing / found[1].clamp(min=1e-12)).max())
    return Absorption(str(pair), constant, float(missing.max()), share)


def _on_axis(values: Tensor, axis: int, ndim: int) -> Tensor:
    return values.reshape([-1 if index == axis else 1 for index in range(ndim)])


def _added(graph: Graph, pair: Pair, constant: Tensor) -> Tensor:
    """``(sum over the taps of W2) c``, (outputs of the second layer,)."""
    info = describe(pair.tail)
    assert info.weight is not None
    weight = value_of(graph.module, info.weight).detach().double()
    return of_constant(
        blocks(info.kind, info.attrs, weight), constant.repeat_interleave(pair.repeat)
    )


def _apply(graph: Graph, pair: Pair, constant: Tensor) -> None:
    for node, change in ((pair.head, -constant), (pair.tail, _added(graph, pair, constant))):
        bias = describe(node).bias
        assert bias is not None, "with_biases gave it one"
        set_value(graph.module, bias, value_of(graph.module, bias).detach().double() + change)
    for step in pair.bounds:
        node = next(value for value in describe(step.node).inputs if value.op == "get_attr")
        room = _bounds(graph, step) - _along(constant, step)
        set_value(graph.module, node, room)
    if "batchnorm" in pair.head.meta:
        gamma, beta = pair.head.meta["batchnorm"]
        lowered = (0 if beta is None else beta.detach()) - constant.float()
        pair.head.meta["batchnorm"] = (gamma, lowered)


def _smallest(
    graph: Graph, pairs: Sequence[Pair], data: Iterable[Any], progress: Progress
) -> dict[fx.Node, Tensor]:
    """For the first layer of every pair, the smallest output of each channel, float64."""
    watched = _Smallest(graph, frozenset(pair.head for pair in pairs))
    prepared = batches(data, graph.inputs, torch.as_tensor)
    with torch.inference_mode():
        for index, (inputs, _) in enumerate(progress(prepared, "absorb")):
            check_batch(graph, inputs, index)
            watched.run(*inputs)
    return watched.least


class _Smallest(fx.Interpreter):
    """Runs a graph and keeps the smallest values of some nodes; every other value is dropped."""

    def __init__(self, graph: Graph, nodes: frozenset[fx.Node]) -> None:
        super().__init__(graph.module)
        self.nodes = nodes
        self.least: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As any interpreter, with a look at the value."""
        value = super().run_node(n)
        if n in self.nodes:
            axis = value.ndim - 1 if describe(n).kind == "linear" else 1
            low = value.movedim(axis, 0).flatten(1).amin(1).double()
            self.least[n] = torch.minimum(self.least[n], low) if n in self.least else low
        return value


def _error(found: Absorption) -> str:
    share = "" if found.deviations is None else f" ({found.deviations:.3g} deviations)"
    return f"an error of up to {found.error:.3g}{share} where taps lie on padding"
