"""Choices between two values by truth values: fills, and numbers in the place of values."""

from typing import Any

import torch
from torch import fx

from halfstep.graph.readers import arguments, shape_of
from halfstep.graph.rewriting import constant, insert_call, replace

aten = torch.ops.aten
_FILLS = (aten.masked_fill.Scalar, aten.masked_fill.Tensor)
_WHERES = (
    aten.where.self,
    aten.where.ScalarSelf,
    aten.where.ScalarOther,
    aten.where.Scalar,
)
_OF_ONE_NUMBER = {aten.zeros_like.default: 0.0, aten.ones_like.default: 1.0}


def choices(node: fx.Node) -> None:
    """``masked_fill(x, m, v)`` and all forms of ``where`` as ``where(m, v, x)`` of three values."""
    if node.target in _FILLS:
        x, mask, value = node.args
        _choose(node, mask, value, x)
    elif node.target in _WHERES:
        _choose(node, *node.args)


def _choose(node: fx.Node, condition: Any, first: Any, second: Any) -> None:
    """Replace ``node``, unless it has the form of the table already."""
    dtype = node.meta["val"].dtype
    parts = [_value(node, condition, part, dtype) for part in (first, second)]
    if node.target != aten.where.self or parts != [first, second]:
        replace(node, insert_call(node, aten.where.self, (condition, *parts)))


def _value(node: fx.Node, condition: fx.Node, part: Any, dtype: torch.dtype) -> Any:
    """A number as a constant, and so what is one number everywhere, if it adds no axes."""
    if isinstance(part, int | float):
        return constant(node, part, dtype)
    number = _OF_ONE_NUMBER.get(part.target)
    if part.target == aten.full_like.default:
        number = arguments(part)["fill_value"]
    if number is not None and shape_of(part) == shape_of(condition) == shape_of(node):
        return constant(node, number, dtype)
    return part
