"""Find what hides scores from a softmax: attention masks that a model writes out by itself.

A hidden score is a number far below all others: an added -10000, a filled-in -inf. No grid of few
codes holds it and the scores beside it, so everything from there to the softmax, that included,
is marked, and stays in float. ``scaled_dot_product_attention`` says where its mask is
(``composites``); here the masks of ``scores + (1 - kept) * -10000``, of ``masked_fill`` and of
``where`` are found, by what they are made of.
"""

import torch
from torch import Tensor, fx

from halfstep.graph.batchnorm import value_of
from halfstep.graph.match import readers_of

aten = torch.ops.aten
# A score this far below another one has e^-50 of its share: nothing.
_FAR = 50.0
_MOVES = frozenset(
    {
        *(aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.expand.default),
        *(aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims),
        *(aten.permute.default, aten.transpose.int, aten.slice.Tensor, aten.to.dtype),
        *(aten._to_copy.default, aten.unflatten.int, aten.cat.default),
    }
)
_ARITHMETIC = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor})
_HIDING = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.where.self})


def mark_masks(module: fx.GraphModule) -> None:
    """Set ``meta["mask"]`` of every node that has hidden scores among its values, or reads them."""
    for node in module.graph.nodes:
        if node.target == aten.softmax.int and _is_masked(module, node.args[0]):
            node.meta["mask"] = True


def _is_masked(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether hidden scores are among a node's values; then all that made it so is marked."""
    if node.meta.get("mask"):
        return True
    parts = _real_inputs(node)
    hiding = [part for part in parts if node.target in _HIDING and _hides(module, part)]
    followed = parts if node.target in _MOVES | _ARITHMETIC | _HIDING else []
    masked = [part for part in followed if _is_masked(module, part)]
    if not hiding and not masked:
        return False
    for part in hiding:
        _mark(part)
    for reader in (node, *readers_of(node)):
        reader.meta["mask"] = True
    return True


def _hides(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` is far from 0 somewhere, and no score: made of no activation or weight."""
    leaves, waiting = [], [node]
    while waiting:
        part = waiting.pop()
        made = part.op == "call_function" and part.target in _MOVES | _ARITHMETIC | _HIDING
        if made and part.meta["val"].is_floating_point():
            waiting += part.all_input_nodes
        else:
            leaves.append(part)
    constants = [leaf for leaf in leaves if leaf.op == "get_attr"]
    others = [leaf for leaf in leaves if leaf.op != "get_attr"]
    # An input that is added to scores as it comes is nothing but a mask.
    inputs = any(leaf.op == "placeholder" and _is_real(leaf) for leaf in others)
    if any(leaf.op != "placeholder" and _is_real(leaf) for leaf in others):
        return False
    return inputs or any(_is_far(value_of(module, leaf)) for leaf in constants)


def _is_far(value: Tensor) -> bool:
    trained = isinstance(value, torch.nn.Parameter)
    return not trained and value.is_floating_point() and bool((value.abs() >= _FAR).any())


def _mark(node: fx.Node) -> None:
    """The real values that a mask is computed from."""
    if node.op == "call_function" and _is_real(node):
        node.meta["mask"] = True
        for part in _real_inputs(node):
            _mark(part)


def _real_inputs(node: fx.Node) -> list[fx.Node]:
    return [part for part in node.all_input_nodes if _is_real(part)]


def _is_real(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
