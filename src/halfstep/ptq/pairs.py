"""Pairs of layers whose channels may be rescaled between them without changing the function.

Reference: Nagel et al. 2019 (arXiv 1906.04721), section 4.1: if ``f(s x) = s f(x)`` for ``s > 0``,
then ``W2 f(W1 x + b1) = (W2 S) f((W1 x + b1) / S)`` for a positive diagonal ``S``.

A pair is a layer, another layer, and between them only operations that commute with ``S``: ReLU and
its relatives without a bound, pooling, padding with zeros, resizing, moves of axes, products with
constants. A bound at ``h`` commutes if it becomes ``h / S``. Nothing else may read the values on
the way. A depthwise convolution between two others is the second of one pair and the first of the
next; groups and transposed convolutions are no obstacle; a flatten in front of a linear layer gives
each channel as many neighbours as it had positions. What is no pair is listed with the reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from halfstep.graph.capture import Graph
from halfstep.graph.edit import is_shared, layer_names, weighted_nodes
from halfstep.graph.ops import IDENTITIES, describe, is_computation
from halfstep.graph.placement import WEIGHTED
from halfstep.graph.readers import OpInfo, shape_of

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Step:
    """One operation between the two layers of a pair.

    Attributes:
        node: its node; its first input is the value on the way.
        kind: its name in the op table.
        axis: the axis of its output that holds the channels.
        repeat: how many neighbours on that axis belong to one channel.
    """

    node: fx.Node
    kind: str
    axis: int
    repeat: int


@dataclass(frozen=True, eq=False)
class Pair:
    """Two layers: output channel ``i`` of the first is input channel ``i`` of the second.

    Attributes:
        first: the name of the layer in front.
        second: the name of the layer behind.
        head: the node of the first.
        tail: the node of the second.
        steps: what lies between them, in order.
    """

    first: str
    second: str
    head: fx.Node
    tail: fx.Node
    steps: tuple[Step, ...]

    @property
    def repeat(self) -> int:
        """How many input channels of the second belong to one output channel of the first."""
        return self.steps[-1].repeat if self.steps else 1

    @property
    def bounds(self) -> tuple[Step, ...]:
        """The steps with an upper bound, which has to be rescaled as well."""
        return tuple(step for step in self.steps if step.kind in ("clamp", "minimum"))

    def __str__(self) -> str:
        return f"{self.first} -> {self.second}"


@dataclass(frozen=True)
class Refusal:
    """A layer, or a pair, that stays as it is, and why."""

    site: str
    reason: str

    def __str__(self) -> str:
        return f"{self.site}: {self.reason}"


def find_pairs(graph: Graph) -> tuple[tuple[Pair, ...], tuple[Refusal, ...]]:
    """Every pair of ``graph`` in order of execution, and the layers that are not first of one."""
    names = layer_names(graph)
    pairs: list[Pair] = []
    refusals: list[Refusal] = []
    for node in weighted_nodes(graph):
        found = _pair(node, names)
        if isinstance(found, Pair):
            pairs.append(found)
        else:
            refusals.append(Refusal(names[node], found))
    return tuple(pairs), tuple(refusals)


def _pair(head: fx.Node, names: Mapping[fx.Node, str]) -> Pair | str:
    """The pair that begins at ``head``, or the reason why there is none."""
    info = describe(head)
    if is_shared(info.weight) or is_shared(info.bias):
        return "its weight or its bias is shared with another layer"
    axis = len(shape_of(head)) - 1 if info.kind == "linear" else 1
    at = Step(head, info.kind, axis, 1)
    steps: list[Step] = []
    while True:
        user = _only_reader(at.node, names)
        if isinstance(user, str):
            return user
        after = describe(user)
        if after.kind in WEIGHTED and after.weight is not None and after.inputs[0] is at.node:
            reason = _refuses_second(after, at)
            if reason:
                return f"{names[user]} {reason}"
            return Pair(names[head], names[user], head, user, tuple(steps))
        moved = at if user.target in IDENTITIES else _pass(after, user, at)
        if isinstance(moved, str):
            return f"{names.get(user, user.name)} ({after.kind}) reads it: {moved}"
        at = replace(moved, node=user)
        if user.target not in IDENTITIES:
            steps.append(replace(at, kind=after.kind))


def _only_reader(node: fx.Node, names: Mapping[fx.Node, str]) -> fx.Node | str:
    readers = [user for user in node.users if user.target != aten.sym_size.int]
    if any(user.op == "output" for user in readers):
        return "it is an output of the model"
    if len(readers) != 1:
        listed = ", ".join(names.get(user, user.name) for user in readers)
        return f"it is read {len(readers)} times, by {listed}"
    return readers[0] if is_computation(readers[0]) else "what reads it is no tensor operation"


def _refuses_second(info: OpInfo, at: Step) -> str:
    """Why a layer that reads the values cannot take the scales; "" if it can."""
    assert info.weight is not None
    if info.weight.op != "get_attr":
        return "reads it, whose weight is computed"
    if is_shared(info.weight):
        return "reads it, whose weight is shared with another layer"
    axis = len(shape_of(at.node)) - 1 if info.kind == "linear" else 1
    return "" if axis == at.axis else f"reads axis {axis} as channels, and they are on {at.axis}"


def _pass(info: OpInfo, node: fx.Node, at: Step) -> Step | str:
    """Where the channels are behind an operation; the reason if it does not let scales through."""
    if info.kind in _REFUSED:
        return _REFUSED[info.kind]
    if info.kind not in _PASSES:
        return "it does not commute with a scale for each channel"
    return _PASSES[info.kind](info, node, at)


def _elementwise(info: OpInfo, node: fx.Node, at: Step) -> Step | str:
    """ReLU without a bound: ``f(s x) = s f(x)``. Slopes of a PReLU stay what they are."""
    del info, node
    return at


def _clamp(info: OpInfo, node: fx.Node, at: Step) -> Step | str:
    del node
    fits = info.attrs["low"] == 0 and (info.attrs["high"] or 0) > 0
    return at if fits else "only a bound at 0 from below keeps its place"


def _with_constant(info: OpInfo, node: fx.Node, at: Step) -> Step | str:
    """A product or quotient with a constant, or the smaller of the value and a constant."""
    constant = next((value for value in info.inputs if value.op == "get_attr"), None)
    if constant is None or (info.kind == "div" and constant is info.inputs[0]):
        return "it does not compute with a constant"
    if info.kind == "minimum" and is_shared(constant):
        return "its bound is read elsewhere"
    return at if shape_of(node) == shape_of(at.node) else "it repeats its operand"


def _spatial(info: OpInfo, node: fx.Node, at: Step) -> Step | str:
    """Pooling and resizing: sums and maxima over positions of one channel."""
    del info, node
    return at if at.axis == 1 and at.repeat == 1 else "the channels are not on its axis 1"


def _pad(info: OpInfo, node: fx.Node, at: Step) -> Step | str:
    del node
    if info.attrs["mode"] == "constant" and info.attrs["value"] != 0:
        return "it pads with another value than 0"
    inside = info.attrs["padding"][at.axis] == (0, 0)
    return at if inside else "it adds channels"


def _slice(info: OpInfo, node: fx.Node, at: Step) -> Step | str:
    del node
    return at if info.attrs["axis"] != at.axis else "it takes some of the channels"


def _reduction(info: OpInfo, node: fx.Node, at: Step) -> Step | str:
    del node
    if at.axis in info.attrs["axes"]:
        return "it sums over the channels"
    gone = 0 if info.attrs["keepdim"] else sum(axis < at.axis for axis in info.attrs["axes"])
    return replace(at, axis=at.axis - gone)


def _transpose(info: OpInfo, node: fx.Node, at: Step) -> Step | str:
    del node
    return replace(at, axis=info.attrs["perm"].index(at.axis))


def _reshape(info: OpInfo, node: fx.Node, at: Step) -> Step | str:
    """Channels on the last axis stay there; on axis 1 they may take the axes behind along."""
    del info
    before, after = shape_of(at.node), shape_of(node)
    if at.axis == len(before) - 1 and after[-1] == before[-1]:
        return replace(at, axis=len(after) - 1)
    channels = before[1] // at.repeat
    grows = len(after) > 1 and after[0] == before[0] and 0 == after[1] % channels < after[1]
    if at.axis == 1 and grows:
        return replace(at, repeat=after[1] // channels)
    return "it mixes the channels with another axis"


_ADDED = "both operands of a sum would need the same scales"
_REFUSED: Mapping[str, str] = {
    "add": _ADDED,
    "sub": _ADDED,
    "concat": "its other parts go where this one goes",
    "matmul": "the other operand is computed, and has no weight to scale",
}
_PASSES: Mapping[str, Callable[[OpInfo, fx.Node, Step], Step | str]] = {
    **dict.fromkeys(("relu", "leaky_relu", "prelu"), _elementwise),
    "clamp": _clamp,
    **dict.fromkeys(("minimum", "mul", "div"), _with_constant),
    **dict.fromkeys(
        ("max_pool", "avg_pool", "global_avg_pool", "adaptive_avg_pool"),
        _spatial,
    ),
    **dict.fromkeys(("upsample_nearest", "upsample_linear", "resize"), _spatial),
    "pad": _pad,
    "slice": _slice,
    **dict.fromkeys(("mean", "sum"), _reduction),
    "transpose": _transpose,
    "reshape": _reshape,
}
