"""Change a captured graph without touching the original: what methods on graphs are made of."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from halfstep.graph.batchnorm import new_parameter, value_of
from halfstep.graph.capture import Graph
from halfstep.graph.match import find_units
from halfstep.graph.ops import describe, is_computation
from halfstep.graph.placement import WEIGHTED


def copied(graph: Graph) -> Graph:
    """The same graph with nodes and parameters of its own."""
    nodes = fx.Graph()
    nodes.output(nodes.graph_copy(graph.module.graph, {}))
    return replace(graph, module=fx.GraphModule(copy.deepcopy(graph.module), nodes))


def weighted_nodes(graph: Graph) -> Iterator[fx.Node]:
    """Every convolution and linear layer whose weight is a parameter, in order of execution."""
    for node in graph.module.graph.nodes:
        if is_computation(node):
            info = describe(node)
            if info.kind in WEIGHTED and info.weight is not None and info.weight.op == "get_attr":
                yield node


def layer_names(graph: Graph) -> dict[fx.Node, str]:
    """The name of every operation, by its node: that of its unit, whatever the target fuses."""
    units = find_units(graph.module, frozenset({"relu", "clamp"})).units
    return {unit.head: unit.name for unit in units}


def is_shared(node: fx.Node | None) -> bool:
    """Whether a parameter has more readers than one, under one or several nodes."""
    if node is None:
        return False
    same = (n for n in node.graph.nodes if n.op == "get_attr" and n.target == node.target)
    return sum(len(n.users) for n in same) > 1


def set_value(module: nn.Module, node: fx.Node, value: Tensor) -> None:
    """Overwrite the parameter that ``node`` reads; all of its readers see the new one."""
    with torch.no_grad():
        value_of(module, node).copy_(value)


def with_biases(graph: Graph) -> Graph:
    """A copy in which every convolution and linear layer has a bias, zero where it had none.

    Methods that shift the outputs of a layer need one; on integer kernels it costs nothing.
    """
    new = copied(graph)
    for node in list(weighted_nodes(new)):
        info = describe(node)
        if info.bias is not None:
            continue
        assert info.weight is not None
        weight = value_of(new.module, info.weight)
        axis = WEIGHTED[info.kind]
        size = weight.shape[axis] * (info.attrs["groups"] if axis == 1 else 1)
        zeros = torch.zeros(size, dtype=weight.dtype, device=weight.device)
        bias = new_parameter(new.module, f"{info.weight.target}_bias", zeros, node)
        node.args = (*node.args[:2], bias, *node.args[3:])
    new.module.graph.lint()
    new.module.recompile()
    return new
