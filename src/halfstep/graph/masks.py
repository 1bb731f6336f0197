"""Find what hides scores from a softmax: attention masks that a model writes out by itself.

A hidden score is a number far below all others: an added -10000, a filled-in -inf. No grid of few
codes holds it and the scores beside it, so everything from there to the softmax, that included,
is marked, and stays in float. ``scaled_dot_product_attention`` says where its mask is
(``composites``); here the masks of ``scores + (1 - kept) * -10000``, of ``masked_fill`` and of
``where`` are found, by what they are made of.
"""

import torch
from torch import Tensor, fx, nn

from halfstep.graph.batchnorm import value_of
from halfstep.graph.match import readers_of, see_through

aten = torch.ops.aten
# A score this far below another one has e^-50 of its share: nothing.
_FAR = 50.0
_HIDING = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.where.self})
# Through these, hidden scores stay among the values.
_FOLLOWED = _HIDING | {
    *(aten.mul.Tensor, aten.div.Tensor, aten.neg.default, aten.clamp.default, aten.pad.default),
    *(aten.constant_pad_nd.default, aten.cat.default, aten.slice.Tensor, aten.expand.default),
    *(aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.unflatten.int),
    *(aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims),
    *(aten.permute.default, aten.transpose.int, aten.to.dtype, aten._to_copy.default),
}


def mark_masks(module: fx.GraphModule) -> None:
    """Set ``meta["mask"]`` of every node that has hidden scores among its values, or reads them."""
    search = _Search(module)
    for node in module.graph.nodes:
        if node.target == aten.softmax.int and search.is_masked(node.args[0]):
            node.meta["mask"] = True


class _Search:
    """What is known of the nodes of one graph."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.known: dict[fx.Node, bool] = {}

    def is_masked(self, node: fx.Node) -> bool:
        """Whether hidden scores are among a node's values; then all that made it so is marked."""
        node = see_through(node)
        if node not in self.known:
            self.known[node] = bool(node.meta.get("mask")) or self._finds(node)
        return self.known[node]

    def _finds(self, node: fx.Node) -> bool:
        if node.target not in _FOLLOWED:
            return False
        parts = [see_through(part) for part in node.all_input_nodes if _is_real(part)]
        hiding = [part for part in parts if node.target in _HIDING and self._hides(part)]
        masked = [part for part in parts if self.is_masked(part)]
        if not hiding and not masked:
            return False
        for part in hiding:
            _mark(part)
        for reader in (node, *readers_of(node)):
            reader.meta["mask"] = True
        return True

    def _hides(self, node: fx.Node) -> bool:
        """Whether ``node`` is far from 0 somewhere, and no score: of no activation or weight."""
        made = _all_behind(node)
        constants = [value_of(self.module, part) for part in made if part.op == "get_attr"]
        inputs = [part for part in made if part.op == "placeholder"]
        weights = [value for value in constants if isinstance(value, nn.Parameter)]
        computed = [part for part in made if part.op == "call_function"]
        # A constant may be a parameter that is not trained, as it is or moved.
        trained = any(value.requires_grad for value in weights)
        if weights and (inputs or trained or any(n.target not in _FOLLOWED for n in computed)):
            return False
        real = [part for part in inputs if _is_real(part)]
        if real:
            # An input that is added to scores, and read by nothing else, is nothing but a mask.
            return all(_is_mask_alone(part) for part in real)
        return any(_is_far(value) for value in constants)


def _all_behind(node: fx.Node) -> list[fx.Node]:
    """The node and everything that it is computed from."""
    found = [node]
    seen = {node}
    for part in found:
        new = [source for source in part.all_input_nodes if source not in seen]
        found += new
        seen |= set(new)
    return found


def _is_mask_alone(node: fx.Node) -> bool:
    """Whether an input reaches nothing but sums, through moves and factors."""
    followed = {node: None}
    waiting = [node]
    while waiting:
        readers = [reader for reader in readers_of(waiting.pop()) if reader.target not in _HIDING]
        if any(reader.target not in _FOLLOWED for reader in readers):
            return False
        waiting += [reader for reader in readers if reader not in followed]
        followed |= dict.fromkeys(readers)
    return True


def _is_far(value: Tensor) -> bool:
    return value.dtype != torch.bool and bool((value.abs() >= _FAR).any())


def _mark(node: fx.Node) -> None:
    """The real values that a mask is computed from."""
    for part in _all_behind(node):
        if part.op == "call_function" and _is_real(part):
            part.meta["mask"] = True


def _is_real(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
