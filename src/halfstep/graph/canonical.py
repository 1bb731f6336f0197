"""Small rewrites that leave the planner with one form of everything.

In-place operations become functional; operations that do nothing disappear; chunk, split, unbind
and select become slices; scalars in additions and multiplications become constants; attention
becomes matrix products and a softmax, SiLU a product with a sigmoid; a mean over space keeps its
axes.
"""

import math
import operator
from typing import Any

import torch
from torch import fx

from halfstep.errors import CaptureError
from halfstep.graph.readers import LARGEST_INDEX, arguments, pairs, shape_of

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
_NOTHING_AT_THE_SAME_SHAPE = (
    aten.expand.default,
    aten.view.default,
    aten.reshape.default,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
)
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
        _split_attention,
        _slices,
        _pools,
        _products,
        _masks,
        _scalars,
        _means,
    ):
        for node in list(module.graph.nodes):
            if node.op == "call_function":
                rewrite(node)
        module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def insert_call(before: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """Call ``target`` in front of ``before``, whose owner and source line it inherits."""
    graph = before.graph
    with graph.inserting_before(before):
        node = graph.call_function(target, args)
    node.meta = {k: v for k, v in before.meta.items() if k in ("nn_module_stack", "stack_trace")}
    values = fx.map_arg(args, lambda n: n.meta["val"])
    mode = next(
        n.meta["val"].fake_mode for n in node.all_input_nodes if hasattr(n.meta["val"], "fake_mode")
    )
    with mode:
        node.meta["val"] = target(*values)
    return node


def _replace(node: fx.Node, by: fx.Node) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


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
    target.replace_all_uses_with(node, delete_user_cb=lambda user: order[user] > order[node])


def _drop_nothing(node: fx.Node) -> None:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or "val" not in source.meta:
        return
    if node.target in _NOTHING or _keeps_everything(node, source):
        _replace(node, source)


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
    return node.target in _NOTHING_AT_THE_SAME_SHAPE and same_shape


def _slices(node: fx.Node) -> None:
    """Parts of a split, and single indices, as slices (and a reshape where an axis goes)."""
    if node.target == aten.select.int:
        a = arguments(node)
        _replace(node, _pick(node, a["self"], a["dim"], a["index"]))
    elif node.target == operator.getitem and getattr(node.args[0], "target", None) in _SPLITS:
        source, index = node.args
        assert isinstance(source, fx.Node) and isinstance(index, int)
        a = arguments(source)
        if source.target == aten.unbind.int:
            _replace(node, _pick(node, a["self"], a["dim"], index))
            return
        axis = a["dim"] % len(shape_of(a["self"]))
        sizes = [int(part.shape[axis]) for part in source.meta["val"]]
        start = sum(sizes[:index])
        part = (a["self"], axis, start, start + sizes[index])
        _replace(node, insert_call(node, aten.slice.Tensor, part))


def _pick(node: fx.Node, x: fx.Node, dim: int, index: int) -> fx.Node:
    axis = dim % len(shape_of(x))
    start = index % shape_of(x)[axis] if index < 0 else index
    part = insert_call(node, aten.slice.Tensor, (x, axis, start, start + 1))
    return insert_call(node, aten.squeeze.dim, (part, axis))


def _split_attention(node: fx.Node) -> None:
    """``softmax(q k^T scale + mask) v``, so that its products and its softmax quantize."""
    if node.target != aten.scaled_dot_product_attention.default:
        return
    a = arguments(node)
    query, key, value, mask = a["query"], a["key"], a["value"], a["attn_mask"]
    if a["is_causal"] or a["enable_gqa"] or a["dropout_p"]:
        raise CaptureError(
            f"{node.name}: attention that is causal, grouped or has dropout in eval mode is not "
            "split into quantizable parts; pass an explicit attn_mask and equal head counts"
        )
    scale = a["scale"] if a["scale"] is not None else 1 / math.sqrt(shape_of(query)[-1])
    swapped = insert_call(node, aten.transpose.int, (key, -2, -1))
    scores = insert_call(node, aten.matmul.default, (query, swapped))
    scores = insert_call(node, aten.mul.Tensor, (scores, scale))
    if mask is not None:
        if mask.meta["val"].dtype == torch.bool:
            mask = _additive(node, mask)
        scores = insert_call(node, aten.add.Tensor, (scores, mask))
        scores.meta["mask"] = True
    weights = insert_call(node, aten.softmax.int, (scores, -1))
    if mask is not None:
        weights.meta["mask"] = True
    _replace(node, insert_call(node, aten.matmul.default, (weights, value)))


def _split_silu(node: fx.Node) -> None:
    """``x sigmoid(x)``: two operations that have integer kernels where the whole has none."""
    if node.target == aten.silu.default:
        gate = insert_call(node, aten.sigmoid.default, (node.args[0],))
        _replace(node, insert_call(node, aten.mul.Tensor, (node.args[0], gate)))


def _additive(node: fx.Node, mask: fx.Node) -> fx.Node:
    """0 where a boolean mask is true; a number that softmax takes for minus infinity elsewhere."""
    if "additive" in mask.meta:  # made for an earlier layer
        made: fx.Node = mask.meta["additive"]
        return made
    blocked = insert_call(node, aten.logical_not.default, (mask,))
    number = insert_call(node, aten.to.dtype, (blocked, torch.float32))
    added = insert_call(node, aten.mul.Tensor, (number, -1e9))
    for part in (blocked, number, added):
        part.meta["mask"] = True
    mask.meta["additive"] = added
    return added


def _pools(node: fx.Node) -> None:
    """An average with a divisor of its own as a product; an adaptive maximum as one of windows."""
    if node.target == aten.avg_pool2d.default:
        a = arguments(node)
        if a["divisor_override"] and not a["ceil_mode"]:
            mean = insert_call(node, node.target, (*node.args[:3], a["padding"], False, True))
            factor = math.prod(pairs(a["kernel_size"], 2)) / a["divisor_override"]
            _replace(node, insert_call(node, aten.mul.Tensor, (mean, factor)))
    elif node.target == operator.getitem and node.args[1] == 0:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source.target != aten.adaptive_max_pool2d.default:
            return
        x = source.args[0]
        assert isinstance(x, fx.Node)
        sizes = list(zip(shape_of(x)[2:], shape_of(node)[2:], strict=True))
        if all(size % wanted == 0 for size, wanted in sizes):
            kernel = [size // wanted for size, wanted in sizes]
            _replace(node, insert_call(node, aten.max_pool2d.default, (x, kernel)))


def _products(node: fx.Node) -> None:
    """SiLU as a product with a sigmoid; a subtraction from the left as one from the right."""
    if node.target == aten.silu.default:
        gate = insert_call(node, aten.sigmoid.default, node.args[:1])
        _replace(node, insert_call(node, aten.mul.Tensor, (node.args[0], gate)))
    elif node.target == aten.rsub.Scalar:
        x, left, *rest = node.args
        _replace(node, insert_call(node, aten.sub.Tensor, (constant(node, left, x), x, *rest)))  # type: ignore[arg-type]


def _masks(node: fx.Node) -> None:
    """``masked_fill(x, m, v)`` as ``where(m, v, x)``."""
    if node.target == aten.masked_fill.Scalar:
        x, mask, value = node.args
        filled = constant(node, float(value), x)  # type: ignore[arg-type]
        _replace(node, insert_call(node, aten.where.self, (mask, filled, x)))
    elif node.target == aten.ne.Scalar:
        equal = insert_call(node, aten.eq.Scalar, node.args)
        _replace(node, insert_call(node, aten.logical_not.default, (equal,)))


def constant(before: fx.Node, value: float, like: Any) -> fx.Node:
    """A constant of one element, of the dtype of ``like``, as a buffer of the graph."""
    graph, module = before.graph, before.graph.owning_module
    assert module is not None, "a node of a GraphModule"
    name = f"constant_{len(list(module.buffers()))}"
    dtype = like.meta["val"].dtype if isinstance(like, fx.Node) else torch.float32
    module.register_buffer(name, torch.tensor([value], dtype=dtype))
    with graph.inserting_before(before):
        node = graph.get_attr(name)
    mode = before.meta["val"].fake_mode
    node.meta = {"val": mode.from_tensor(getattr(module, name), static_shapes=True)}
    return node


def _scalars(node: fx.Node) -> None:
    """Scalars become constants, except a scale behind a product, which the product absorbs."""
    target: Any = _WITH_SCALAR.get(node.target)  # type: ignore[call-overload]
    if target is None or len(node.args) < 2:
        return
    left, right, *rest = node.args
    alpha = rest[0] if rest else node.kwargs.get("alpha", 1)
    if alpha != 1:
        raise CaptureError(f"{node.name}: write the factor alpha={alpha} as a multiplication")
    if target == aten.div.Tensor and isinstance(right, int | float):
        target, right = aten.mul.Tensor, 1 / right
    if target == aten.sub.Tensor and isinstance(right, int | float):
        target, right = aten.add.Tensor, -right
    if isinstance(left, int | float):
        left = constant(node, left, right)
    if isinstance(right, int | float):
        value = right
        right = constant(node, right, left)
        right.meta["scalar"] = float(value)
    if (left, right) != tuple(node.args[:2]):
        new = insert_call(node, target, (left, right))
        new.meta |= {k: v for k, v in node.meta.items() if k == "mask"}
        _replace(node, new)


def _means(node: fx.Node) -> None:
    """A mean over all of space without its axes, as one that keeps them and a reshape."""
    if node.target != aten.mean.dim:
        return
    a = arguments(node)
    rank = len(shape_of(a["self"]))
    spatial = sorted(d % rank for d in a["dim"]) == list(range(2, rank))
    if rank > 2 and spatial and not a["keepdim"]:
        kept = insert_call(node, aten.mean.dim, (a["self"], list(range(2, rank)), True))
        _replace(node, insert_call(node, aten.flatten.using_ints, (kept, 1)))
