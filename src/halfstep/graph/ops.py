"""THE op table: what each captured operation is, in the vocabulary of the integer program.

``describe(node)`` reads one call of the captured graph: its kind, the values it computes on, its
weight and bias, and its attributes. An operation without a row here stays float and cannot be
lowered; a new one is a row and, if its arguments need work, a reader.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from halfstep.graph import activations, readers
from halfstep.graph.readers import OpInfo, shape_of

aten = torch.ops.aten

OPS: dict[Any, Callable[[Node], OpInfo]] = {
    aten.conv1d.default: readers.conv,
    aten.conv2d.default: readers.conv,
    aten.conv1d.padding: readers.conv,
    aten.conv2d.padding: readers.conv,
    aten.conv_transpose1d.default: readers.conv,
    aten.conv_transpose2d.input: readers.conv,
    aten.linear.default: readers.linear,
    aten.matmul.default: readers.matmul,
    aten.bmm.default: readers.matmul,
    aten.mm.default: readers.matmul,
    aten.add.Tensor: readers.plain("add", 2),
    aten.sub.Tensor: readers.plain("sub", 2),
    aten.mul.Tensor: readers.plain("mul", 2),
    aten.div.Tensor: readers.plain("div", 2),
    aten.eq.Tensor: readers.plain("equal", 2),
    aten.logical_and.default: readers.plain("logical_and", 2),
    aten.__and__.Tensor: readers.plain("logical_and", 2),
    aten.bitwise_and.Tensor: readers.plain("logical_and", 2),
    aten.logical_not.default: readers.plain("logical_not"),
    aten.bitwise_not.default: readers.plain("logical_not"),
    aten.where.self: readers.plain("where", 3),
    aten.to.dtype: readers.cast,
    aten.to.device: readers.cast,
    aten._to_copy.default: readers.cast,
    aten.neg.default: readers.plain("neg"),
    aten.exp.default: readers.plain("exp"),
    aten.sqrt.default: readers.plain("sqrt"),
    aten.erf.default: readers.plain("erf"),
    aten.relu.default: readers.plain("relu"),
    aten.relu6.default: readers.fixed("clamp", low=0.0, high=6.0),
    aten.hardtanh.default: readers.with_attributes("clamp", low="min_val", high="max_val"),
    aten.clamp.default: readers.with_attributes("clamp", low="min", high="max"),
    aten.leaky_relu.default: readers.with_attributes("leaky_relu", slope="negative_slope"),
    aten.prelu.default: readers.plain("prelu", 2),
    aten.minimum.default: readers.plain("minimum", 2),
    aten.sigmoid.default: readers.plain("sigmoid"),
    aten.tanh.default: readers.plain("tanh"),
    aten.abs.default: readers.plain("abs"),
    aten.elu.default: readers.with_attributes(
        "elu", alpha="alpha", scale="scale", input_scale="input_scale"
    ),
    aten.selu.default: activations.selu,
    aten.celu.default: activations.celu,
    aten.softplus.default: activations.softplus,
    aten.mish.default: readers.plain("mish"),
    aten.log_sigmoid.default: readers.plain("log_sigmoid"),
    aten.hardswish.default: readers.plain("hardswish"),
    aten.hardsigmoid.default: readers.plain("hardsigmoid"),
    aten.gelu.default: readers.with_attributes("gelu", approximate="approximate"),
    aten.softmax.int: readers.with_attributes("softmax", axis="dim"),
    aten.layer_norm.default: readers.layer_norm,
    aten.max_pool1d.default: readers.pool("max_pool"),
    aten.max_pool2d.default: readers.pool("max_pool"),
    aten.avg_pool1d.default: readers.pool("avg_pool"),
    aten.avg_pool2d.default: readers.pool("avg_pool"),
    aten.adaptive_avg_pool1d.default: readers.adaptive_pool,
    aten.adaptive_avg_pool2d.default: readers.adaptive_pool,
    aten.mean.dim: readers.reduction("mean"),
    aten.mean.default: readers.reduction("mean"),
    aten.sum.dim_IntList: readers.reduction("sum"),
    aten.cat.default: readers.concat,
    aten.slice.Tensor: readers.slice_,
    aten.reshape.default: readers.reshape,
    aten.view.default: readers.reshape,
    aten.flatten.using_ints: readers.reshape,
    aten.unflatten.int: readers.reshape,
    aten.unsqueeze.default: readers.reshape,
    aten.squeeze.default: readers.reshape,
    aten.squeeze.dim: readers.reshape,
    aten.squeeze.dims: readers.reshape,
    aten.permute.default: readers.permutation,
    aten.transpose.int: readers.permutation,
    aten.t.default: readers.permutation,
    aten.expand.default: readers.expand,
    aten.pad.default: readers.pad,
    aten.constant_pad_nd.default: readers.pad,
    aten.upsample_nearest1d.vec: readers.upsample("upsample_nearest"),
    aten.upsample_nearest2d.vec: readers.upsample("upsample_nearest"),
    aten.upsample_bilinear2d.vec: readers.upsample("upsample_linear"),
    aten.embedding.default: readers.embedding,
}

# Dropout is kept for training and is nothing in a program.
IDENTITIES = (aten.dropout.default, aten.feature_dropout.default)


def describe(node: Node) -> OpInfo:
    """What ``node`` computes; the name of the operator itself if the table has no row for it."""
    if node.target is operator.getitem:  # one of several results of an operation without a row
        assert isinstance(node.args[0], Node)
        node = node.args[0]
    reader = OPS.get(node.target)
    if reader is None or node.kwargs.keys() & {"out"}:
        name = node.target.name() if hasattr(node.target, "name") else str(node.target)
        return OpInfo(name, tuple(node.all_input_nodes))
    return reader(node)


def is_computation(node: Node) -> bool:
    """Whether ``node`` is an operation on tensors, not arithmetic on sizes."""
    if node.op != "call_function" or node.target == aten.sym_size.int:
        return False
    return isinstance(node.meta.get("val"), torch.Tensor)


def macs(info: OpInfo, node: Node) -> int:
    """Multiply-accumulates a sample; 0 for all but conv, linear and matmul."""
    per_sample = math.prod(abs(size) for size in shape_of(node))
    if info.kind == "conv" and info.weight is not None:
        return per_sample * math.prod(shape_of(info.weight)[1:])
    if info.kind == "conv_transpose" and info.weight is not None:
        inputs = math.prod(abs(size) for size in shape_of(info.inputs[0]))
        return inputs * math.prod(shape_of(info.weight)[1:])
    if info.kind == "linear" and info.weight is not None:
        return per_sample * shape_of(info.weight)[1]
    if info.kind == "matmul":
        return per_sample * abs(shape_of(info.inputs[0])[-1])
    return 0
