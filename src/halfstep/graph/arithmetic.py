"""Powers, gates, one-sided bounds, sums of products, maxima over space and inequality.

Each by plain operations.
"""

import torch
from torch import fx

from halfstep.core.execution import BATCH
from halfstep.graph.readers import shape_of
from halfstep.graph.rewriting import Arguments, Rewrites, insert_call, rewrite_by

aten = torch.ops.aten
_LARGEST_POWER = 4


def arithmetic(node: fx.Node) -> None:
    """Rewrite ``node`` if it is plain arithmetic by another name."""
    rewrite_by(_REWRITES, node)


def _square(node: fx.Node, a: Arguments) -> fx.Node | None:
    return insert_call(node, aten.mul.Tensor, (a["self"], a["self"]))


def _power(node: fx.Node, a: Arguments) -> fx.Node | None:
    x, exponent = a["self"], a["exponent"]
    if exponent == 0.5:
        return insert_call(node, aten.sqrt.default, (x,))
    if exponent not in range(2, _LARGEST_POWER + 1):
        return None
    power: fx.Node = x
    for _ in range(int(exponent) - 1):
        power = insert_call(node, aten.mul.Tensor, (power, x))
    return power


def _bounded(node: fx.Node, a: Arguments) -> fx.Node | None:
    return insert_call(node, aten.clamp.default, (a["self"], a.get("min"), a.get("max")))


def _gated(node: fx.Node, a: Arguments) -> fx.Node | None:
    """One half of the values times the sigmoid of the other."""
    x, sizes = a["self"], shape_of(a["self"])
    axis = a["dim"] % len(sizes)
    if sizes[axis] == BATCH:
        return None
    half = sizes[axis] // 2
    first, second = (
        insert_call(node, aten.slice.Tensor, (x, axis, start, start + half)) for start in (0, half)
    )
    gate = insert_call(node, aten.sigmoid.default, (second,))
    return insert_call(node, aten.mul.Tensor, (first, gate))


def _added_product(node: fx.Node, a: Arguments) -> fx.Node | None:
    if (a["alpha"], a["beta"]) != (1, 1):
        return None
    names = ("mat1", "mat2") if "mat1" in a else ("batch1", "batch2")
    left, right = (a[name] for name in names)
    product = insert_call(node, aten.matmul.default, (left, right))
    return insert_call(node, aten.add.Tensor, (product, a["self"]))


def _largest_over_space(node: fx.Node, a: Arguments) -> fx.Node | None:
    x, sizes = a["self"], shape_of(a["self"])
    rank = len(sizes)
    if rank != 4 or sorted(axis % rank for axis in a["dim"]) != [2, 3]:
        return None
    found = insert_call(node, aten.max_pool2d.default, (x, list(sizes[2:])))
    return found if a["keepdim"] else insert_call(node, aten.flatten.using_ints, (found, 1))


def _different(node: fx.Node, a: Arguments) -> fx.Node | None:
    equal = insert_call(node, aten.eq.Scalar, (a["self"], a["other"]))
    return insert_call(node, aten.logical_not.default, (equal,))


_REWRITES: Rewrites = {
    aten.ne.Scalar: _different,
    aten.square.default: _square,
    aten.pow.Tensor_Scalar: _power,
    aten.clamp_min.default: _bounded,
    aten.clamp_max.default: _bounded,
    aten.glu.default: _gated,
    aten.addmm.default: _added_product,
    aten.baddbmm.default: _added_product,
    aten.amax.default: _largest_over_space,
}
