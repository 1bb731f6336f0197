"""Where a value of the graph can be divided by a factor for each channel, at no cost.

A linear layer in front of the value takes the division into its weight and bias, a layer norm into
its own, a multiplication by a constant into the constant. Between them and the value may stand
what a positive factor passes through: operations that move values, ReLU and leaky ReLU, and
attention, whose product with the values mixes tokens but never channels.

A factor is a tensor with as many axes as the value that it divides, and size 1 along those where
it is the same, the batch among them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from halfstep.graph.batchnorm import value_of
from halfstep.graph.capture import Graph
from halfstep.graph.edit import is_shared, set_value
from halfstep.graph.match import owner, readers_of, see_through
from halfstep.graph.ops import describe, is_computation
from halfstep.graph.placement import WEIGHTED
from halfstep.graph.readers import OpInfo, shape_of


class Refusal(Exception):
    """The reason why a value cannot be divided by a factor for each channel."""


@dataclass(frozen=True, eq=False)
class Division:
    """What a division does to one parameter.

    Attributes:
        parameter: the node that reads it.
        divisor: broadcasts over it.
        layer: the convolution or linear layer whose output is divided, if it is one.
        mixed: a product mixes that output's rows before they become the value.
    """

    parameter: fx.Node
    divisor: Tensor
    layer: fx.Node | None = None
    mixed: bool = False


def divisions(value: fx.Node, factor: Tensor) -> list[Division]:
    """What has to be divided so that ``value`` comes out divided by ``factor``.

    Who reads ``value`` is the caller's concern; nothing in front of it may have other readers.

    Raises:
        Refusal: with the reason.
    """
    node = see_through(value)
    if not is_computation(node):
        raise Refusal(f"{node.name} is an input or a constant")
    info = describe(node)
    if info.kind not in _RULES:
        raise Refusal(f"{name_of(node)} ({info.kind}) does not let a factor through")
    return _RULES[info.kind](node, info, factor)


def divide(graph: Graph, parts: list[Division]) -> None:
    """Divide parameters of ``graph``, which has to be a copy of the caller's own."""
    for part in parts:
        value = value_of(graph.module, part.parameter)
        divisor = part.divisor.to(value)
        set_value(graph.module, part.parameter, value / divisor)
        statistics = None if part.layer is None else part.layer.meta.get("batchnorm")
        if statistics is not None and part.layer is not None:
            channels = divisor.reshape(-1)
            part.layer.meta["batchnorm"] = tuple(
                None if given is None else given / channels for given in statistics
            )


def name_of(node: fx.Node) -> str:
    """The module that a node comes from, for messages."""
    return owner(node) or node.name


def _above(node: fx.Node, source: fx.Node, factor: Tensor) -> list[Division]:
    """The divisions in front of ``node``, which has to be the only reader of ``source``."""
    source = see_through(source)
    others = [reader for reader in readers_of(source) if reader is not node]
    if others:
        raise Refusal(f"{name_of(others[0])} ({describe(others[0]).kind}) reads it as well")
    return divisions(source, factor)


def _parameter(
    node: fx.Node, parameter: fx.Node, divisor: Tensor, layer: fx.Node | None = None
) -> Division:
    if parameter.op != "get_attr":
        raise Refusal(f"a parameter of {name_of(node)} is computed")
    if is_shared(parameter):
        raise Refusal(f"a parameter of {name_of(node)} is shared")
    return Division(parameter, divisor, layer)


def _layer(node: fx.Node, info: OpInfo, factor: Tensor) -> list[Division]:
    """A convolution or a linear layer: its weight along the output channels, and its bias."""
    axis = factor.ndim - 1 if info.kind == "linear" else 1
    channels = _only_along(node, factor, axis)
    assert info.weight is not None
    shape = [1] * len(shape_of(info.weight))
    shape[WEIGHTED[info.kind]] = -1
    if info.kind == "conv_transpose" and info.attrs["groups"] > 1:
        raise Refusal(f"the groups of {name_of(node)} share their output channels' axis")
    parts = [_parameter(node, info.weight, channels.reshape(shape), node)]
    if info.bias is not None:
        parts.append(_parameter(node, info.bias, channels))
    return parts


def _layer_norm(node: fx.Node, info: OpInfo, factor: Tensor) -> list[Division]:
    if len(info.inputs) == 1:
        raise Refusal(f"{name_of(node)} has no weight")
    _trailing(node, factor, info.attrs["n_axes"])
    shape = factor.shape[factor.ndim - info.attrs["n_axes"] :]
    return [_parameter(node, given, factor.reshape(shape)) for given in info.inputs[1:]]


def _mul(node: fx.Node, info: OpInfo, factor: Tensor) -> list[Division]:
    """One operand is divided: a constant with these channels, or else what is computed."""
    refusals = []
    for operand in sorted(info.inputs, key=lambda source: source.op != "get_attr"):
        try:
            return _operand(node, operand, factor)
        except Refusal as refusal:
            refusals.append(str(refusal))
    raise Refusal("; ".join(refusals))


def _add(node: fx.Node, info: OpInfo, factor: Tensor) -> list[Division]:
    """Every operand is divided."""
    if len(set(info.inputs)) < len(info.inputs):
        raise Refusal(f"{name_of(node)} adds a value to itself")
    return [part for operand in info.inputs for part in _operand(node, operand, factor)]


def _operand(node: fx.Node, operand: fx.Node, factor: Tensor) -> list[Division]:
    sizes = shape_of(operand)
    aligned = (1,) * (factor.ndim - len(sizes)) + sizes
    if any(wide > 1 and own == 1 for wide, own in zip(factor.shape, aligned, strict=True)):
        raise Refusal(f"an operand of {name_of(node)} is the same for all channels")
    own = factor.reshape(factor.shape[factor.ndim - len(sizes) :])
    if operand.op == "get_attr":
        return [_parameter(node, operand, own)]
    return _above(node, operand, own)


def _matmul(node: fx.Node, info: OpInfo, factor: Tensor) -> list[Division]:
    """The right operand has the output's columns, the left one its rows."""
    left, right = info.inputs
    operand, summed = (right, -2) if factor.shape[-2] == 1 else (left, -1)
    if factor.shape[summed] != 1:
        raise Refusal(f"a factor along both axes of the product {name_of(node)}")
    return [replace(part, mixed=True) for part in _operand(node, operand, factor)]


def _same(node: fx.Node, info: OpInfo, factor: Tensor) -> list[Division]:
    return _above(node, info.inputs[0], factor)


def _clamp(node: fx.Node, info: OpInfo, factor: Tensor) -> list[Division]:
    if any(info.attrs[end] not in (None, 0.0) for end in ("low", "high")):
        raise Refusal(f"the bound of {name_of(node)} would have to differ between channels")
    return _same(node, info, factor)


def _transpose(node: fx.Node, info: OpInfo, factor: Tensor) -> list[Division]:
    back = [info.attrs["perm"].index(axis) for axis in range(factor.ndim)]
    return _above(node, info.inputs[0], factor.permute(back))


def _slice(node: fx.Node, info: OpInfo, factor: Tensor) -> list[Division]:
    """What else is cut from the same value keeps its scale; no two parts may overlap."""
    source, axis = see_through(info.inputs[0]), info.attrs["axis"]
    size = shape_of(source)[axis]
    if factor.shape[axis] == 1 and len(readers_of(source)) == 1:
        return _above(node, source, factor)
    taken = torch.zeros(max(size, 0))
    for reader in readers_of(source):
        other = describe(reader)
        if other.kind != "slice" or other.attrs["axis"] != axis or size < 0:
            raise Refusal(f"{name_of(reader)} ({other.kind}) reads it as well")
        taken[slice(other.attrs["start"], other.attrs["stop"], other.attrs["step"])] += 1
    if (taken > 1).any():
        raise Refusal(f"parts of {name_of(source)} overlap")
    wide = torch.ones([size if i == axis else n for i, n in enumerate(factor.shape)])
    part = slice(info.attrs["start"], info.attrs["stop"], info.attrs["step"])
    wide[(slice(None),) * axis + (part,)] = factor
    return divisions(source, wide)


def _reshape(node: fx.Node, info: OpInfo, factor: Tensor) -> list[Division]:
    """The axes that the factor runs along, and those that they were made of, hold no batch."""
    source = see_through(info.inputs[0])
    before, after = shape_of(source), shape_of(node)
    varying = [axis for axis, size in enumerate(factor.shape) if size > 1]
    if not varying:
        return _above(node, source, factor.reshape([1] * len(before)))
    for tail in range(len(after) - varying[0], len(after) + 1):
        wanted = after[len(after) - tail :]
        own = _tail(before, wanted)
        if own is not None:
            full = factor.reshape(factor.shape[factor.ndim - tail :]).expand(wanted).reshape(own)
            lead = [1] * (len(before) - len(own))
            return _above(node, source, _narrow(full).reshape([*lead, *_narrow(full).shape]))
    raise Refusal(f"{name_of(node)} mixes its channels with the batch")


def _tail(sizes: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...] | None:
    """The last axes of ``sizes`` that hold as many values as ``wanted``."""
    if any(size < 0 for size in wanted):
        return None
    for start in range(len(sizes), -1, -1):
        own = sizes[start:]
        if any(size < 0 for size in own):
            return None
        if math.prod(own) == math.prod(wanted):
            return own
    return None


def _narrow(full: Tensor) -> Tensor:
    """Axes along which nothing changes get the size 1."""
    for axis in range(full.ndim):
        first = full.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(full), full):
            full = first
    return full


def _only_along(node: fx.Node, factor: Tensor, axis: int) -> Tensor:
    if any(size > 1 for i, size in enumerate(factor.shape) if i != axis):
        raise Refusal(f"the factor is not one for each output channel of {name_of(node)}")
    size = shape_of(node)[axis]
    return factor.reshape(-1).expand(size)


def _trailing(node: fx.Node, factor: Tensor, n_axes: int) -> None:
    if any(size > 1 for size in factor.shape[: factor.ndim - n_axes]):
        raise Refusal(f"the factor runs along an axis that {name_of(node)} does not scale")


_RULES: dict[str, Callable[[fx.Node, OpInfo, Tensor], list[Division]]] = {
    **dict.fromkeys(("conv", "conv_transpose", "linear"), _layer),
    "layer_norm": _layer_norm,
    "mul": _mul,
    **dict.fromkeys(("add", "sub"), _add),
    "matmul": _matmul,
    **dict.fromkeys(("relu", "leaky_relu"), _same),
    "clamp": _clamp,
    "transpose": _transpose,
    "slice": _slice,
    "reshape": _reshape,
}
