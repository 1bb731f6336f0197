"""The captured graph as units: one computation each, with what is fused into it.

A unit is what a target runs as one operation: a convolution with the ReLU behind it, an addition,
a reshape. Its name is that of the module it comes from, and its sites hang on that name:
``layer1.0.conv1:weight``, ``layer1.0.conv1:bias``, ``layer1.0.conv1:out``.
"""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from halfstep.core.target import OpFacts
from halfstep.graph.ops import IDENTITIES, describe, is_computation, macs
from halfstep.graph.readers import OpInfo, shape_of

# Operations behind which an activation function costs nothing: it narrows the output codes.
FUSING = (
    "conv",
    "conv_transpose",
    "linear",
    "matmul",
    "add",
    "sub",
    "mul",
    "avg_pool",
    "global_avg_pool",
)
MASK_REASON = "an attention mask is among its values, which no grid of few codes can hold"


@dataclass(frozen=True, eq=False)
class Unit:
    """One operation of a target.

    Attributes:
        name: the module that it comes from, made unique.
        kind: its name in the op table.
        head: the node that computes it.
        tail: the node whose value is its output: the fused activation, or ``head``.
        inputs: the values that it computes on, seen through padding and dropout.
        attrs: attributes, absorbed padding and scale included.
        weight: the node of its weight, if it has one.
        bias: the node of its bias, if it has one.
        limits: the real bounds of a fused activation, ``None`` where open.
        macs: multiply-accumulates a sample.
    """

    name: str
    kind: str
    head: fx.Node
    tail: fx.Node
    inputs: tuple[fx.Node, ...]
    attrs: Mapping[str, Any]
    weight: fx.Node | None
    bias: fx.Node | None
    limits: tuple[float | None, float | None] = (None, None)
    macs: int = 0

    @property
    def out(self) -> str:
        """The site of its output."""
        return f"{self.name}:out"

    @property
    def facts(self) -> OpFacts:
        """What a target's rule may look at."""
        shapes = tuple(shape_of(node) for node in self.inputs)
        constants = tuple(n.op == "get_attr" for n in self.inputs)
        return OpFacts(self.kind, self.attrs, shapes, constants, self._terms())

    def _terms(self) -> int:
        if self.kind == "matmul":
            return shape_of(self.inputs[0])[-1]
        if self.weight is None:
            return 0
        first, second, *kernel = (*shape_of(self.weight), 1)
        inputs = first // self.attrs["groups"] if self.kind == "conv_transpose" else second
        return inputs * math.prod(kernel)


@dataclass(frozen=True, eq=False)
class Units:
    """All units of a graph, in order, and the names of all values.

    Attributes:
        units: in order of execution.
        sites: for every value that a unit reads or makes, its site, in order of execution.
    """

    units: tuple[Unit, ...]
    sites: Mapping[fx.Node, str] = field(default_factory=dict)


def find_units(module: fx.GraphModule, fused_activations: frozenset[str]) -> Units:
    """The units of a canonical graph, for a target that fuses ``fused_activations``."""
    absorbed: set[fx.Node] = set()
    found: list[Unit] = []
    for node in module.graph.nodes:
        if node in absorbed or node.target in IDENTITIES or not is_computation(node):
            continue
        unit = _unit(node, fused_activations)
        absorbed |= set(_chain(unit.head, unit.tail))
        found.append(unit)
    used = _used(module, found)
    named = _named([unit for unit in found if unit.tail in used])
    outputs = {unit.tail: unit.out for unit in named}
    sites: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            sites[node] = f"{node.name}:in"
        elif node.op == "get_attr":
            sites[node] = _constant_site(node, named)
        elif node in outputs:
            sites[node] = outputs[node]
    return Units(tuple(named), sites)


def see_through(node: fx.Node) -> fx.Node:
    """The value behind dropout, which is nothing in a program."""
    while node.target in IDENTITIES:
        assert isinstance(node.args[0], fx.Node)
        node = node.args[0]
    return node


def readers_of(node: fx.Node) -> list[fx.Node]:
    """All readers of a value, seen through dropout."""
    found = []
    for user in node.users:
        found += readers_of(user) if user.target in IDENTITIES else [user]
    return found


def only_user(node: fx.Node) -> fx.Node | None:
    """The one reader of a value, seen through dropout; ``None`` if there are more."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    return only_user(user) if user.target in IDENTITIES else user


def _unit(head: fx.Node, fused_activations: frozenset[str]) -> Unit:
    info = describe(head)
    attrs, tail = dict(info.attrs), head
    if info.kind == "matmul":
        tail, attrs["alpha"] = _absorb_scale(head)
    limits: tuple[float | None, float | None] = (None, None)
    user = only_user(tail)
    if info.kind in FUSING and user is not None and is_computation(user):
        activation = describe(user)
        if activation.kind in fused_activations:
            tail, limits = user, _limits(activation)
    inputs = tuple(see_through(node) for node in info.inputs)
    if info.kind == "conv":
        inputs, attrs["padding"] = _absorb_padding(inputs, attrs["padding"])
    return Unit(
        "", info.kind, head, tail, inputs, attrs, info.weight, info.bias, limits, macs(info, head)
    )


def _limits(info: OpInfo) -> tuple[float | None, float | None]:
    return (0.0, None) if info.kind == "relu" else (info.attrs["low"], info.attrs["high"])


def _absorb_scale(product: fx.Node) -> tuple[fx.Node, float]:
    """A multiplication by a positive scalar behind a matmul is part of its requantization."""
    user = only_user(product)
    if user is None or not is_computation(user) or describe(user).kind != "mul":
        return product, 1.0
    others = [node for node in describe(user).inputs if node is not product]
    scalar = others[0].meta.get("scalar", 0.0) if len(others) == 1 else 0.0
    return (user, float(scalar)) if scalar > 0 and math.isfinite(scalar) else (product, 1.0)


def _absorb_padding(
    inputs: tuple[fx.Node, ...], padding: tuple[tuple[int, int], ...]
) -> tuple[tuple[fx.Node, ...], tuple[tuple[int, int], ...]]:
    """Zeros padded in front of a convolution are part of its own padding."""
    node = inputs[0]
    if not is_computation(node) or describe(node).kind != "pad":
        return inputs, padding
    info = describe(node)
    margins = info.attrs["padding"]
    zeros = info.attrs["mode"] == "constant" and info.attrs["value"] == 0
    if not zeros or any(margins[:2][i] != (0, 0) for i in range(2)):
        return inputs, padding
    total = tuple(
        (own[0] + more[0], own[1] + more[1]) for own, more in zip(padding, margins[2:], strict=True)
    )
    if any(size < 0 for pair in margins for size in pair):
        return inputs, padding
    return (see_through(info.inputs[0]),), total


def _chain(head: fx.Node, tail: fx.Node) -> list[fx.Node]:
    """The nodes from ``head`` to ``tail``, both included."""
    nodes = [head]
    while nodes[-1] is not tail:
        nodes.append(next(iter(nodes[-1].users)))
    return nodes


def _used(module: fx.GraphModule, units: list[Unit]) -> set[fx.Node]:
    """Values that a unit or the output reads; absorbed padding is not among them."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    used = {see_through(node) for node in output.all_input_nodes}
    for unit in reversed(units):
        if unit.tail in used:
            used |= {*unit.inputs, *(n for n in (unit.weight, unit.bias) if n is not None)}
            used |= {node for node in (unit.weight, unit.bias) if node is not None}
    return used


def owner(node: fx.Node) -> str:
    """The path of the module that a node was called in; "" for the root."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return re.sub(r"@\d+", "", stack[-1][0]) if stack else ""


def _named(units: list[Unit]) -> list[Unit]:
    """Name units by their module; by module and kind where a module does several things."""
    kinds: dict[str, set[str]] = {}
    leaves: dict[str, bool] = {}
    for unit in units:
        stack = list(unit.head.meta.get("nn_module_stack", {}).values())
        path = owner(unit.head)
        kinds.setdefault(path, set()).add(unit.kind)
        leaves[path] = bool(stack) and str(stack[-1][1]).startswith("torch.nn.modules.")
    names: dict[str, Unit] = {}
    for unit in units:
        path = owner(unit.head)
        alone = leaves[path] and len(kinds[path]) == 1 and path
        name = path if alone else ".".join(part for part in (path, unit.kind) if part)
        unique = name
        for count in itertools.count(1):
            if unique not in names:
                break
            unique = f"{name}_{count}"
        names[unique] = _renamed(unit, unique)
    return list(names.values())


def _renamed(unit: Unit, name: str) -> Unit:
    return Unit(**{**vars(unit), "name": name})


def _constant_site(node: fx.Node, units: list[Unit]) -> str:
    """A weight's site is its first unit's; any other constant's is its own name."""
    for unit in units:
        if node is unit.weight:
            return f"{unit.name}:weight"
    return f"{node.target}:constant"
