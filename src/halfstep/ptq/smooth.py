"""Activation equalization: large channels of what a linear layer reads move into its weight.

Reference: Xiao et al. 2022, "SmoothQuant: accurate and efficient post-training quantization for
large language models", arXiv 2211.10438.

Equations, with ``X`` the input of a layer and ``W`` its weight, input channel ``j``:

    (3)  Y = (X diag(s)^-1) (diag(s) W)
    (4)  s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

``max|X_j|`` is over the data, ``max|W_j|`` over the rows of all layers that read ``X``. With
``alpha = 1/2`` both end with the same range, ``sqrt(max|X_j| max|W_j|)``: that is cross-layer
equalization (Nagel et al. 2019, arXiv 1906.04721, equation 11) with activations in the place of the
first layer's weights. With ``alpha = 1`` all channels of ``X`` end with the same range.

The division disappears into whatever makes ``X`` (``ptq.channel_factors``): a layer norm, a scale,
a linear layer, also behind attention. Where it cannot, because somebody else reads ``X`` as well (a
residual addition, in encoders that normalize last) or because of a function such as GELU, the
group is refused with the reason; or, if asked, a multiplication by ``1 / s`` is put in front of
the layers, which is a float operation the size of ``X``.

Deviations: ``alpha`` can be searched for each group: the value with the smallest squared error of
the layers' outputs on sampled rows, both sides quantized, 1 for all channels among the candidates.
Channels that are always zero keep the factor 1. Values that do not influence the output (padding
behind a mask) are not counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from halfstep.core.qtype import INT8_NARROW, UINT8, QType
from halfstep.errors import CalibrationError
from halfstep.graph.batchnorm import new_parameter, value_of
from halfstep.graph.capture import Graph
from halfstep.graph.edit import copied, is_shared, set_value, weighted_nodes
from halfstep.graph.match import readers_of, see_through
from halfstep.graph.ops import describe
from halfstep.graph.rewriting import insert_call
from halfstep.progress import Progress, silent
from halfstep.ptq.channel_factors import (
    Division,
    Refusal,
    divide,
    divisions,
    name_of,
)
from halfstep.ptq.influence import influences
from halfstep.ptq.smoothing_factors import Inputs, Search, factors

aten = torch.ops.aten
SMOOTHING = "smoothing"
"""The last part of the name of a multiplication that was inserted."""


@dataclass(frozen=True)
class SmoothedGroup:
    """One value that was equalized, and the layers that read it.

    Attributes:
        source: what makes the value.
        layers: the linear layers.
        alpha: of equation 4; ``None`` where the search found no change to be best.
        inserted: the division is a multiplication in front of the layers.
        spread: largest over median ``max|X_j|`` of the channels, before and after.
        error: squared error of the layers' outputs as a share of their power, before and after;
            ``None`` where nothing was searched.
    """

    source: str
    layers: tuple[str, ...]
    alpha: float | None
    inserted: bool
    spread: tuple[float, float]
    error: tuple[float, float] | None = None

    def __str__(self) -> str:
        how = "unchanged" if self.alpha is None else f"alpha {self.alpha:.2f}"
        text = f"{self.source} -> {', '.join(self.layers)}: {how}"
        text += ", a multiplication inserted" if self.inserted else ""
        text += f", spread {self.spread[0]:.3g} -> {self.spread[1]:.3g}"
        if self.error is not None:
            text += f", error {self.error[0]:.3g} -> {self.error[1]:.3g}"
        return text


@dataclass(frozen=True)
class SmoothReport:
    """All groups in order, and those that were refused, with the reason."""

    groups: tuple[SmoothedGroup, ...]
    refused: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{len(self.groups)} groups equalized, {len(self.refused)} refused"]
        lines += [f"  {group}" for group in self.groups]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.refused])


def smooth(
    graph: Graph,
    data: Iterable[Any],
    *,
    alpha: float | None = 0.5,
    insert: bool = False,
    activation: QType = UINT8,
    weight: QType = INT8_NARROW,
    progress: Progress = silent,
) -> tuple[Graph, SmoothReport]:
    """The same function with inputs of linear layers whose channels are closer in range.

    Args:
        graph: from ``capture``; it is not changed.
        data: batches, read once; a few hundred samples.
        alpha: of equation 4, 0 to 1; ``None`` searches it for each group.
        insert: where a division cannot disappear, multiply in front of the layers.
        activation: the type that the search quantizes inputs to.
        weight: the type that the search quantizes weights to, with a scale a row.
        progress: wraps the batches.

    Raises:
        CalibrationError: ``alpha`` is not from 0 to 1.
        DataError: an empty loader, or a batch that does not fit.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise CalibrationError(f"smooth: alpha={alpha}: give a number from 0 to 1, or None")
    new = copied(graph)
    groups, refused = _groups(new, insert)
    seen = {group: Inputs() for group in groups}
    watched = {group.watched for group in groups}
    for _, found in influences(new.module, new, watched, data, progress=progress):
        for group, inputs in seen.items():
            if group.watched in found:
                inputs.add(found[group.watched], group.columns)
    reports = []
    for group, inputs in seen.items():
        if not inputs.rows:
            refused.append((group.name, "the output does not depend on it"))
            continue
        reports.append(_smooth(new, group, inputs, alpha, (activation, weight)))
    new.module.graph.lint()
    new.module.recompile()
    return new, SmoothReport(tuple(reports), tuple(refused))


@dataclass(frozen=True, eq=False)
class _Group:
    """A value, and the linear layers that read it: all of its readers, unless it is inserted.

    Its channels are the ``columns`` of the rows of ``watched``: of the value itself, or, behind
    attention, of the layer in front of it. That one is quantized too, and ends with the same
    factors; what attention makes of its rows are averages of them.
    """

    value: fx.Node
    layers: tuple[fx.Node, ...]
    inserted: bool
    watched: fx.Node
    columns: Tensor | None = None

    @property
    def name(self) -> str:
        return name_of(self.value)


def _groups(graph: Graph, insert: bool) -> tuple[list[_Group], list[tuple[str, str]]]:
    values: dict[fx.Node, list[fx.Node]] = {}
    for node in weighted_nodes(graph):
        if describe(node).kind == "linear":
            values.setdefault(see_through(describe(node).inputs[0]), []).append(node)
    groups, refused = [], []
    for value, layers in values.items():
        try:
            _check_layers(layers)
            try:
                _check_readers(value, layers)
                found = divisions(value, _probe(value, layers))
                groups.append(_Group(value, tuple(layers), False, *_rows(value, found)))
            except Refusal:
                if not insert:
                    raise
                groups.append(_Group(value, tuple(layers), True, value))
        except Refusal as refusal:
            refused.append((name_of(value), str(refusal)))
    return groups, refused


def _rows(value: fx.Node, found: list[Division]) -> tuple[fx.Node, Tensor | None]:
    """The node to watch, and which of its columns are the channels of ``value``."""
    (part, *_) = found
    if not part.mixed or part.layer is None:
        return value, None
    return part.layer, part.divisor.reshape(-1).argsort()[-value.meta["val"].shape[-1] :]


def _check_layers(layers: list[fx.Node]) -> None:
    for layer in layers:
        weight = describe(layer).weight
        assert weight is not None
        if is_shared(weight):
            raise Refusal(f"the weight of {name_of(layer)} is shared")


def _check_readers(value: fx.Node, layers: list[fx.Node]) -> None:
    others = [reader for reader in readers_of(value) if reader not in layers]
    if others:
        raise Refusal(f"{name_of(others[0])} ({describe(others[0]).kind}) reads it as well")


def _probe(value: fx.Node, layers: list[fx.Node]) -> Tensor:
    """A factor that differs in every channel, to find out who takes it."""
    weight = describe(layers[0]).weight
    assert weight is not None
    channels = weight.meta["val"].shape[1]
    return _along_channels(value, torch.arange(2.0, channels + 2))


def _along_channels(value: fx.Node, channels: Tensor) -> Tensor:
    return channels.reshape([1] * (value.meta["val"].ndim - 1) + [-1])


def _smooth(
    graph: Graph, group: _Group, inputs: Inputs, alpha: float | None, qtypes: tuple[QType, QType]
) -> SmoothedGroup:
    weights = []
    for layer in group.layers:
        node = describe(layer).weight
        assert node is not None
        weights.append((node, value_of(graph.module, node).detach()))
    stacked = torch.cat([weight for _, weight in weights])
    error = None
    if alpha is None:
        before, best = Search(inputs, stacked, *qtypes).best()
        alpha, s, error = best.alpha, best.factors, (before.error, best.error)
    else:
        s = factors(inputs.largest, stacked.abs().amax(0), alpha)
    spread = _spread(inputs.largest), _spread(inputs.largest / s)
    names = tuple(name_of(layer) for layer in group.layers)
    report = SmoothedGroup(group.name, names, alpha, group.inserted, spread, error)
    if alpha is None:
        return report
    for node, weight in weights:
        set_value(graph.module, node, weight * s)
    if group.inserted:
        _insert(graph, group, s)
    else:
        divide(graph, divisions(group.value, _along_channels(group.value, s)))
    return report


def _spread(largest: Tensor) -> float:
    return float(largest.max() / largest.median().clamp(min=torch.finfo(largest.dtype).tiny))


def _insert(graph: Graph, group: _Group, s: Tensor) -> None:
    """Multiply by ``1 / s`` between the value and the layers alone."""
    first = group.layers[0]
    constant = new_parameter(graph.module, f"{group.value.name}_smoothing", 1 / s, first)
    product = insert_call(first, aten.mul.Tensor, (group.value, constant))
    # A module of its own, so that the names of the layers and of the value stay what they were.
    own = {"smoothing": (f"{group.name}.{SMOOTHING}", "torch.nn.modules.Module")}
    product.meta["nn_module_stack"] = group.value.meta.get("nn_module_stack", {}) | own
    for layer in group.layers:
        assert isinstance(layer.args[0], fx.Node)
        layer.replace_input_with(layer.args[0], product)
