"""Group and instance norms as layer norms over reshaped values, with a factor a channel behind.

A layer norm is what targets have kernels for, or are known to compute in float32. Statistics that
an instance norm keeps from training make it a batch norm, which is not rewritten here.
"""

import torch
from torch import Tensor, fx

from halfstep.graph.batchnorm import new_parameter, value_of
from halfstep.graph.readers import arguments, shape_of
from halfstep.graph.rewriting import insert_call, replace

aten = torch.ops.aten


def group_norms(node: fx.Node) -> None:
    """Rewrite ``node`` if it is such a norm."""
    if node.target == aten.group_norm.default:
        replace(node, _normalized(node, arguments(node)["num_groups"]))
    elif node.target == aten.instance_norm.default and arguments(node)["use_input_stats"]:
        replace(node, _normalized(node, shape_of(node)[1]))


def _normalized(node: fx.Node, groups: int) -> fx.Node:
    a, (_, channels, *space) = arguments(node), shape_of(node)
    size = channels // groups * torch.Size(space).numel()
    flat = insert_call(node, aten.reshape.default, (a["input"], [-1, groups, size]))
    normed = insert_call(node, aten.layer_norm.default, (flat, [size], None, None, a["eps"]))
    found = insert_call(node, aten.reshape.default, (normed, [-1, channels, *space]))
    for name, target in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
        if a[name] is not None:
            each = _for_each_channel(node, a[name], name, len(space))
            found = insert_call(node, target, (found, each))
    return found


def _for_each_channel(node: fx.Node, source: fx.Node, name: str, axes: int) -> fx.Node:
    """The parameter as a constant of the shape that a product with images takes."""
    if source.op != "get_attr":
        return insert_call(node, aten.reshape.default, (source, [-1, *[1] * axes]))
    module = node.graph.owning_module
    assert module is not None, "a node of a GraphModule"
    value: Tensor = value_of(module, source).detach()
    return new_parameter(module, f"group_norm_{name}", value.reshape(-1, *[1] * axes), node)
