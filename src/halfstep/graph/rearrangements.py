"""Operations that move values, by those of the table: reshapes, permutations, slices and joins.

None computes anything, so all of them move codes on every target. What would take more than
``_MOST_PARTS`` slices, such as a flip of a long axis, is left as it is, and refused by its name.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from halfstep.core.execution import BATCH
from halfstep.graph.batchnorm import value_of
from halfstep.graph.readers import shape_of
from halfstep.graph.rewriting import Arguments, Rewrites, insert_call, rewrite_by

aten = torch.ops.aten
_MOST_PARTS = 64


def rearrangements(node: fx.Node) -> None:
    """Rewrite ``node`` if it moves values in a way of its own."""
    rewrite_by(_REWRITES, node)


def _reshaped(node: fx.Node, x: fx.Node, sizes: Sequence[int]) -> fx.Node:
    return insert_call(node, aten.reshape.default, (x, list(sizes)))


def _pixel_shuffle(node: fx.Node, a: Arguments) -> fx.Node | None:
    x, factor = a["self"], a["upscale_factor"]
    if len(shape_of(x)) != 4:
        return None
    _, channels, height, width = shape_of(node)
    parts = _reshaped(node, x, (-1, channels, factor, factor, height // factor, width // factor))
    moved = insert_call(node, aten.permute.default, (parts, [0, 1, 4, 2, 5, 3]))
    return _reshaped(node, moved, (-1, channels, height, width))


def _pixel_unshuffle(node: fx.Node, a: Arguments) -> fx.Node | None:
    x, factor = a["self"], a["downscale_factor"]
    if len(shape_of(x)) != 4:
        return None
    _, channels, height, width = shape_of(node)
    parts = _reshaped(node, x, (-1, channels // factor**2, height, factor, width, factor))
    moved = insert_call(node, aten.permute.default, (parts, [0, 1, 3, 5, 2, 4]))
    return _reshaped(node, moved, (-1, channels, height, width))


def _channel_shuffle(node: fx.Node, a: Arguments) -> fx.Node | None:
    _, channels, *space = shape_of(node)
    grouped = _reshaped(node, a["self"], (-1, a["groups"], channels // a["groups"], *space))
    moved = insert_call(node, aten.transpose.int, (grouped, 1, 2))
    return _reshaped(node, moved, (-1, channels, *space))


def _stack(node: fx.Node, a: Arguments) -> fx.Node | None:
    axis = a["dim"] % len(shape_of(node))
    wide = [insert_call(node, aten.unsqueeze.default, (part, axis)) for part in a["tensors"]]
    return insert_call(node, aten.cat.default, (wide, axis))


def _roll(node: fx.Node, a: Arguments) -> fx.Node | None:
    x: fx.Node = a["self"]
    sizes = shape_of(node)
    axes = [axis % len(sizes) for axis in a["dims"]]
    if not axes or any(sizes[axis] == BATCH for axis in axes):
        return None
    for axis, shift in zip(axes, a["shifts"], strict=True):
        start = -shift % sizes[axis]
        x = _picked(node, x, axis, [*range(start, sizes[axis]), *range(start)])
    return x


def _flip(node: fx.Node, a: Arguments) -> fx.Node | None:
    x: fx.Node = a["self"]
    sizes = shape_of(node)
    axes = [axis % len(sizes) for axis in a["dims"]]
    if any(not 0 < sizes[axis] <= _MOST_PARTS for axis in axes):
        return None
    for axis in axes:
        x = _picked(node, x, axis, range(sizes[axis] - 1, -1, -1))
    return x


def _index(node: fx.Node, a: Arguments) -> fx.Node | None:
    """By one list of constant places along one axis."""
    given = [(axis, index) for axis, index in enumerate(a["indices"]) if index is not None]
    ((axis, index), *others) = given
    if others:
        return None
    table = a["self"]
    if axis == 0 and (table.op, index.op) == ("get_attr", "get_attr") and _is_table(table, index):
        return insert_call(node, aten.embedding.default, (table, index))
    return _selected(node, table, axis, index)


def _is_table(table: fx.Node, index: fx.Node) -> bool:
    """Whether rows of weights are chosen, such as the biases of relative positions."""
    whole = not index.meta["val"].is_floating_point() and index.meta["val"].dtype != torch.bool
    return whole and len(shape_of(table)) == 2 and table.meta["val"].is_floating_point()


def _index_select(node: fx.Node, a: Arguments) -> fx.Node | None:
    return _selected(node, a["self"], a["dim"] % len(shape_of(node)), a["index"])


def _selected(node: fx.Node, x: fx.Node, axis: int, index: fx.Node) -> fx.Node | None:
    size = shape_of(x)[axis]
    if index.op != "get_attr" or size == BATCH or len(shape_of(index)) != 1:
        return None
    module = node.graph.owning_module
    assert module is not None, "a node of a GraphModule"
    chosen = value_of(module, index)
    if chosen.dtype == torch.bool:
        chosen = chosen.nonzero().flatten()
    places = [place % size for place in chosen.tolist()]
    return _picked(node, x, axis, places) if 0 < len(_runs(places)) <= _MOST_PARTS else None


def _picked(node: fx.Node, x: fx.Node, axis: int, places: Sequence[int]) -> fx.Node:
    """The values at ``places`` along an axis, by one slice for each run of neighbours."""
    parts = [
        insert_call(node, aten.slice.Tensor, (x, axis, start, end)) for start, end in _runs(places)
    ]
    return parts[0] if len(parts) == 1 else insert_call(node, aten.cat.default, (parts, axis))


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Places as ranges from a first one to before a last one."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def _repeat(node: fx.Node, a: Arguments) -> fx.Node | None:
    """Along axes of one place by an expansion, along others by joining copies."""
    x: fx.Node = a["self"]
    repeats = list(a["repeats"] if "repeats" in a else a["dims"])
    rank = max(len(repeats), len(shape_of(x)))
    repeats = [1] * (rank - len(repeats)) + repeats
    for _ in range(rank - len(shape_of(x))):
        x = insert_call(node, aten.unsqueeze.default, (x, 0))
    sizes = shape_of(x)
    wide = [
        times if size == 1 and times != 1 else -1
        for times, size in zip(repeats, sizes, strict=True)
    ]
    copies = [times if size != 1 else 1 for times, size in zip(repeats, sizes, strict=True)]
    if any(not isinstance(n, int) or n < 1 or n > _MOST_PARTS for n in copies):
        return None
    if any(n > 1 and size == BATCH for n, size in zip(copies, sizes, strict=True)):
        return None
    if any(size != -1 for size in wide):
        x = insert_call(node, aten.expand.default, (x, wide))
    for axis, times in enumerate(copies):
        if times > 1:
            x = insert_call(node, aten.cat.default, ([x] * times, axis))
    return x


def _expand_as(node: fx.Node, a: Arguments) -> fx.Node | None:
    x, like = a["self"], a["other"]
    ahead = len(shape_of(like)) - len(shape_of(x))
    sizes: list[Any] = []
    for axis, size in enumerate(shape_of(like)):
        same = axis >= ahead and shape_of(x)[axis - ahead] == size
        if size == BATCH and not same:
            sizes.append(insert_call(node, aten.sym_size.int, (like, axis)))
        else:
            sizes.append(-1 if same else size)
    return insert_call(node, aten.expand.default, (x, sizes))


_REWRITES: Rewrites = {
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
    aten.channel_shuffle.default: _channel_shuffle,
    aten.stack.default: _stack,
    aten.roll.default: _roll,
    aten.flip.default: _flip,
    aten.index.Tensor: _index,
    aten.index_select.default: _index_select,
    aten.repeat.default: _repeat,
    aten.tile.default: _repeat,
    aten.expand_as.default: _expand_as,
}
