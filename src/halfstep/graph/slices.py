"""Parts of a graph that run on their own: from values that are at hand to values that are wanted.

A *cut* is a place between two units where the graph can be stopped: what is live there, and small
enough to be kept, is all that the rest needs. Methods that fix one layer after the other keep the
live values of one cut and compute only what lies between it and the layer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from halfstep.graph.match import Units, see_through
from halfstep.graph.ops import is_computation
from halfstep.graph.readers import shape_of

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive units, and the values that they get from what is in front of them.

    Attributes:
        live: the nodes whose values the segment reads, in order.
        first: index of its first unit.
        stop: index behind its last unit.
    """

    live: tuple[fx.Node, ...]
    first: int
    stop: int


def sliced(
    module: nn.Module, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> fx.GraphModule:
    """A module from the values of ``inputs`` to a tuple of those of ``outputs``.

    Parameters and submodules are those of ``module``, not copies. The batch size, where an
    operation needs it, is that of the first input.
    """
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        made[node] = graph.placeholder(node.name)
        # A dropout is nothing: who asks for the value in front of it has it.
        made.setdefault(see_through(node), made[node])
    wanted = _between(set(made), outputs)
    batch: fx.Node | None = None
    for node in outputs[0].graph.nodes:
        if node not in wanted or node in made:
            continue
        if node.target == aten.sym_size.int:
            batch = batch or graph.call_function(aten.sym_size.int, (made[inputs[0]], 0))
            made[node] = batch
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(tuple(made[node] for node in outputs))
    return fx.GraphModule(module, graph)


def _between(inputs: set[fx.Node], outputs: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that ``outputs`` depend on, up to ``inputs``; sizes depend on nothing."""
    found: set[fx.Node] = set()
    waiting = [node for node in outputs if node not in inputs]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        if node.target != aten.sym_size.int:
            waiting += [source for source in node.all_input_nodes if source not in inputs]
    return found


def segments(units: Units, graph: fx.Graph, largest: float) -> list[Segment]:
    """The units in segments, cut wherever at most ``largest`` values a sample are live."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    found, first = [], 0
    live = tuple(node for node in graph.nodes if node.op == "placeholder")
    for index, unit in enumerate(units.units[:-1], start=1):
        alive = _alive(order, order[unit.tail])
        batched = all(shape_of(node)[:1] == (-1,) for node in alive)
        if batched and sum(map(_values, alive)) <= largest:
            found.append(Segment(live, first, index))
            live, first = alive, index
    found.append(Segment(live, first, len(units.units)))
    return found


def _alive(order: dict[fx.Node, int], position: int) -> tuple[fx.Node, ...]:
    """Values made up to ``position`` that something behind it reads."""
    return tuple(
        node
        for node, index in order.items()
        if index <= position
        and (node.op == "placeholder" or is_computation(node))
        and any(order[user] > position and not _is_size(user) for user in node.users)
    )


def _is_size(node: fx.Node) -> bool:
    target: Any = node.target
    return bool(target == aten.sym_size.int)


def _values(node: fx.Node) -> int:
    return math.prod(abs(size) for size in shape_of(node))
