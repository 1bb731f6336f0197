"""Small rewrites that leave the planner with one form of everything.

In-place operations become functional; operations that do nothing disappear; chunk, split, unbind
and select become slices; scalars in additions and multiplications become constants; attention
becomes matrix products and a softmax, SiLU a product with a sigmoid, a group norm a layer norm;
values are moved by reshapes, permutations, slices and joins alone; the bias of a layer norm without
a weight is an addition; a mean over space keeps its axes.
"""

import operator
from typing import Any

import torch
from torch import fx

from halfstep.errors import CaptureError
from halfstep.graph.arithmetic import arithmetic
from halfstep.graph.choices import choices
from halfstep.graph.composites import products, special_pools, split_attention
from halfstep.graph.eager import written_at
from halfstep.graph.group_norms import group_norms
from halfstep.graph.readers import LARGEST_INDEX, arguments, shape_of
from halfstep.graph.rearrangements import rearrangements
from halfstep.graph.rewriting import constant, insert_call, replace

aten = torch.ops.aten
_SPLITS = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)
_NOTHING = (
    aten.contiguous.default,
    aten.clone.default,
    aten.detach.default,
    aten.detach_.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
)
# What shares the memory of its first argument.
_VIEWS = frozenset(
    {
        *(aten.slice.Tensor, aten.select.int, aten.view.default, aten.reshape.default),
        *(
            aten.flatten.using_ints,
            aten.unflatten.int,
            aten.unsqueeze.default,
            aten.squeeze.default,
        ),
        *(aten.squeeze.dim, aten.squeeze.dims, aten.permute.default, aten.transpose.int),
        *(aten.t.default, aten.expand.default, aten.expand_as.default, aten.chunk.default),
        *(aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.alias.default),
        *(aten.detach.default, aten.view_as.default, aten.narrow.default, operator.getitem),
    }
)
_NOTHING_AT_THE_SAME_SHAPE = (
    aten.expand.default,
    aten.reshape.default,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
)
_DIVISIONS = (aten.div.Tensor, aten.div.Scalar)
_WITH_SCALAR = {
    aten.add.Tensor: aten.add.Tensor,
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Tensor: aten.sub.Tensor,
    aten.mul.Tensor: aten.mul.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Tensor: aten.div.Tensor,
    aten.div.Scalar: aten.div.Tensor,
    aten.eq.Scalar: aten.eq.Tensor,
    aten.ne.Scalar: aten.ne.Tensor,
}


def canonicalize(module: fx.GraphModule) -> None:
    """Rewrite ``module`` in place; its outputs change by float32 rounding at most."""
    for rewrite in (
        _functional,
        _drop_nothing,
        split_attention,
        _slices,
        special_pools,
        products,
        rearrangements,
        arithmetic,
        group_norms,
        choices,
        _scalars,
        _norms,
        _means,
    ):
        for node in list(module.graph.nodes):
            if node.op == "call_function":
                rewrite(node)
        module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _functional(node: fx.Node) -> None:
    """``add_(x, y)``: later readers of ``x`` read the result instead."""
    name = getattr(node.target, "_opname", "")
    if not name.endswith("_") or name.startswith("_") or name.endswith("__"):
        return
    packet = getattr(aten, name[:-1], None)
    if packet is None:
        raise CaptureError(f"{node.name}: no functional form of {node.target} is known")
    target = node.args[0]
    node.target = getattr(packet, node.target._overloadname)  # type: ignore[union-attr]
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    assert isinstance(target, fx.Node)
    _refuse_shared(node, target, order)
    target.replace_all_uses_with(node, delete_user_cb=lambda user: order[user] > order[node])


def _refuse_shared(node: fx.Node, target: fx.Node, order: dict[fx.Node, int]) -> None:
    """Whoever reads the value that ``target`` is a part or a view of would read the old numbers."""
    chain = [target]
    while chain[-1].target in _VIEWS and isinstance(chain[-1].args[0], fx.Node):
        chain.append(chain[-1].args[0])
    base = chain[-1]
    # Other parts of the split that the target is a part of share nothing with it.
    splits = {part.args[0] for part in chain if part.target == operator.getitem}
    views = [base]
    for view in views:
        views += [
            user
            for user in view.users
            if user.target in _VIEWS and (view not in splits or user in chain)
        ]
    read = {user for view in views if view is not target for user in view.users}
    later = [user for user in read if order[user] > order[node] and user not in views]
    if base is not target and later:
        raise CaptureError(
            f"{node.name}{written_at(node)}: it writes into a part or a view of {base.name}, which "
            f"{later[0].name} reads behind it. Write it without changing values in place: join the "
            "parts with torch.cat, or choose with torch.where"
        )


def _drop_nothing(node: fx.Node) -> None:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or "val" not in source.meta:
        return
    if node.target == aten.view.default:
        # A view needs the order in memory that a dropped copy may have made.
        node.target = aten.reshape.default
    if node.target in _NOTHING or _keeps_everything(node, source):
        replace(node, source)


def _keeps_everything(node: fx.Node, source: fx.Node) -> bool:
    before, after = source.meta["val"], node.meta.get("val")
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return False
    same_shape = shape_of(node) == shape_of(source)
    if node.target in (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default):
        return before.dtype == after.dtype
    if node.target == aten.slice.Tensor:
        a = arguments(node)
        end = LARGEST_INDEX if a["end"] is None else a["end"]
        return same_shape and not a["start"] and a["step"] == 1 and end == LARGEST_INDEX
    if node.target == aten.pad.default:
        return not any(arguments(node)["pad"])
    return node.target in _NOTHING_AT_THE_SAME_SHAPE and same_shape


def _slices(node: fx.Node) -> None:
    """Parts of a split, and single indices, as slices (and a reshape where an axis goes)."""
    if node.target == aten.select.int:
        a = arguments(node)
        if not isinstance(a["index"], int):
            return
        replace(node, _pick(node, a["self"], a["dim"], a["index"]))
    elif node.target == operator.getitem and getattr(node.args[0], "target", None) in _SPLITS:
        source, index = node.args
        assert isinstance(source, fx.Node) and isinstance(index, int)
        a = arguments(source)
        if source.target == aten.unbind.int:
            replace(node, _pick(node, a["self"], a["dim"], index))
            return
        axis = a["dim"] % len(shape_of(a["self"]))
        sizes = [int(part.shape[axis]) for part in source.meta["val"]]
        start = sum(sizes[:index])
        part = (a["self"], axis, start, start + sizes[index])
        replace(node, insert_call(node, aten.slice.Tensor, part))


def _pick(node: fx.Node, x: fx.Node, dim: int, index: int) -> fx.Node:
    axis = dim % len(shape_of(x))
    start = index % shape_of(x)[axis] if index < 0 else index
    part = insert_call(node, aten.slice.Tensor, (x, axis, start, start + 1))
    return insert_call(node, aten.squeeze.dim, (part, axis))


def _scalars(node: fx.Node) -> None:
    """Scalars become constants, except a scale behind a product, which the product absorbs."""
    target: Any = _WITH_SCALAR.get(node.target)  # type: ignore[call-overload]
    if target is None or len(node.args) < 2:
        return
    left, right, *rest = node.args
    if any(isinstance(x, fx.Node) and not _is_tensor(x) for x in (left, right)):
        return
    alpha = rest[0] if rest else node.kwargs.get("alpha", 1)
    if alpha != 1:
        raise CaptureError(f"{node.name}: write the factor alpha={alpha} as a multiplication")
    if target == aten.div.Tensor and isinstance(right, int | float):
        target, right = aten.mul.Tensor, 1 / right
    if target == aten.sub.Tensor and isinstance(right, int | float):
        target, right = aten.add.Tensor, -right
    dtype = _common_type(node, left, right)
    left, right = (_of_type(node, operand, dtype) for operand in (left, right))
    if (left, right) != tuple(node.args[:2]):
        both = dtype == torch.bool and target == aten.mul.Tensor
        new = insert_call(node, aten.logical_and.default if both else target, (left, right))
        new.meta |= {k: v for k, v in node.meta.items() if k == "mask"}
        replace(node, new)


def _common_type(node: fx.Node, *operands: Any) -> torch.dtype:
    """What torch computes in: a bool times 0.5 is a float32."""
    values = [x.meta["val"] if isinstance(x, fx.Node) else x for x in operands]
    found = torch.result_type(*values)
    return torch.float32 if node.target in _DIVISIONS and not found.is_floating_point else found


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _of_type(node: fx.Node, operand: Any, dtype: torch.dtype) -> fx.Node:
    """An operand of the type; a number as a constant."""
    if isinstance(operand, int | float):
        found = constant(node, operand, dtype)
        found.meta["scalar"] = float(operand)
        return found
    assert isinstance(operand, fx.Node)
    if operand.meta["val"].dtype == dtype:
        return operand
    return insert_call(node, aten.to.dtype, (operand, dtype))


def _norms(node: fx.Node) -> None:
    """A layer norm with a bias alone, as an addition behind one without; a weight comes first."""
    if node.target != aten.layer_norm.default:
        return
    a = arguments(node)
    if a["weight"] is None and a["bias"] is not None:
        bare = (a["input"], a["normalized_shape"], None, None, a["eps"])
        norm = insert_call(node, aten.layer_norm.default, bare)
        replace(node, insert_call(node, aten.add.Tensor, (norm, a["bias"])))


def _means(node: fx.Node) -> None:
    """A mean over all of space without its axes, as one that keeps them and a reshape."""
    if node.target != aten.mean.dim:
        return
    a = arguments(node)
    rank = len(shape_of(a["self"]))
    spatial = sorted(d % rank for d in a["dim"]) == list(range(2, rank))
    if rank > 2 and spatial and not a["keepdim"]:
        kept = insert_call(node, aten.mean.dim, (a["self"], list(range(2, rank)), True))
        replace(node, insert_call(node, aten.flatten.using_ints, (kept, 1)))
