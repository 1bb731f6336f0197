"""Operations that are several others: attention, SiLU, pools with special padding or divisors.

Each part then is planned, quantized and run on its own, mostly on integer kernels.
"""

import math
import operator

import torch
from torch import fx

from halfstep.core.execution import BATCH
from halfstep.errors import CaptureError
from halfstep.graph.readers import arguments, pairs, pool, shape_of
from halfstep.graph.rewriting import buffer, constant, insert_call, replace

aten = torch.ops.aten
# What softmax takes for minus infinity, and float32 adds without NaN.
_BLOCKED = -1e9


def split_attention(node: fx.Node) -> None:
    """``softmax(q k^T scale + mask) v``, so that its products and its softmax quantize."""
    if node.target != aten.scaled_dot_product_attention.default:
        return
    a = arguments(node)
    query, key, value, mask = a["query"], a["key"], a["value"], a["attn_mask"]
    if a["dropout_p"]:
        raise CaptureError(
            f"{node.name}: attention with dropout {a['dropout_p']} in eval mode is random; pass "
            "dropout_p=0.0 unless self.training"
        )
    if a["is_causal"]:
        mask = _causal(node, query, key)
    elif mask is not None and mask.meta["val"].dtype == torch.bool:
        mask = _additive(node, mask)
    if a["enable_gqa"]:
        key, value = (_repeated(node, part, shape_of(query)[-3]) for part in (key, value))
    scale = a["scale"] if a["scale"] is not None else 1 / math.sqrt(shape_of(query)[-1])
    swapped = insert_call(node, aten.transpose.int, (key, -2, -1))
    scores = insert_call(node, aten.matmul.default, (query, swapped))
    scores = insert_call(node, aten.mul.Tensor, (scores, scale))
    if mask is not None:
        scores = insert_call(node, aten.add.Tensor, (scores, mask))
        scores.meta["mask"] = True
    weights = insert_call(node, aten.softmax.int, (scores, -1))
    if mask is not None:
        weights.meta["mask"] = True
    replace(node, insert_call(node, aten.matmul.default, (weights, value)))


def _causal(node: fx.Node, query: fx.Node, key: fx.Node) -> fx.Node:
    """A query sees the keys up to its own position, both counted from the first, as in torch."""
    sizes = (shape_of(query)[-2], shape_of(key)[-2])
    if BATCH in sizes:
        raise CaptureError(
            f"{node.name}: causal attention needs sequences of a fixed length, and this one grows "
            "with the batch"
        )
    earlier = (n for n in node.graph.nodes if n.meta.get("causal") == sizes)
    made: fx.Node | None = next(earlier, None)
    if made is not None:  # for another layer
        return made
    blocked = torch.ones(sizes, dtype=torch.bool).tril().logical_not()
    mask = buffer(node, "causal", blocked * _BLOCKED)
    mask.meta["causal"] = sizes
    return mask


def _repeated(node: fx.Node, x: fx.Node, n_heads: int) -> fx.Node:
    """Each head of a key or a value once for every query head of its group: copies, no product."""
    repeats = n_heads // shape_of(x)[-3]
    if repeats == 1:
        return x
    x = insert_call(node, aten.unsqueeze.default, (x, -3))
    sizes = [repeats if axis == -3 else -1 for axis in range(-len(shape_of(x)), 0)]
    x = insert_call(node, aten.expand.default, (x, sizes))
    return insert_call(node, aten.flatten.using_ints, (x, -4, -3))


def _additive(node: fx.Node, mask: fx.Node) -> fx.Node:
    """0 where a boolean mask is true, ``_BLOCKED`` elsewhere."""
    if "additive" in mask.meta:  # made for an earlier layer
        made: fx.Node = mask.meta["additive"]
        return made
    blocked = insert_call(node, aten.logical_not.default, (mask,))
    number = insert_call(node, aten.to.dtype, (blocked, torch.float32))
    added = insert_call(node, aten.mul.Tensor, (number, _BLOCKED))
    for part in (blocked, number, added):
        part.meta["mask"] = True
    mask.meta["additive"] = added
    return added


def special_pools(node: fx.Node) -> None:
    """Averages whose padding or divisor is special, and adaptive maxima, by plain operations."""
    if node.target in (aten.avg_pool1d.default, aten.avg_pool2d.default):
        a = arguments(node)
        if a.get("divisor_override") and not a["ceil_mode"]:
            mean = insert_call(node, node.target, (*node.args[:3], a["padding"], False, True))
            factor = math.prod(pairs(a["kernel_size"], 2)) / a["divisor_override"]
            replace(node, insert_call(node, aten.mul.Tensor, (mean, factor)))
        elif pool("avg_pool")(node).attrs.get("ceil_mode"):
            replace(node, _average_of_padded(node))
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
            replace(node, insert_call(node, aten.max_pool2d.default, (x, kernel)))


def _average_of_padded(node: fx.Node) -> fx.Node:
    """An average that counts its padding but not what lies beyond it: padding becomes values."""
    a = arguments(node)
    x, sizes = a["self"], shape_of(node)[2:]
    kernel, stride, padding = (
        list(pairs(a[name] or a["kernel_size"], len(sizes)))
        for name in ("kernel_size", "stride", "padding")
    )
    one_axis = len(sizes) == 1
    if one_axis:
        x = insert_call(node, aten.unsqueeze.default, (x, 2))
        kernel, stride, padding, sizes = [1, *kernel], [1, *stride], [0, *padding], (1, *sizes)
    margins = [size for size in reversed(padding) for _ in range(2)]
    padded = [size + 2 * p for size, p in zip(shape_of(x)[2:], padding, strict=True)]
    padded = [*x.meta["val"].shape[:2], *padded]
    x = insert_call(node, aten.constant_pad_nd.default, (x, margins, 0.0), padded)
    x = insert_call(node, aten.avg_pool2d.default, (x, kernel, stride, [0, 0], True, False))
    for axis, wanted in enumerate(sizes, start=2):
        if shape_of(x)[axis] != wanted:  # another window starts in the padding
            x = insert_call(node, aten.slice.Tensor, (x, axis, 0, wanted))
    return insert_call(node, aten.squeeze.dim, (x, 2)) if one_axis else x


def products(node: fx.Node) -> None:
    """SiLU as a product with a sigmoid; a subtraction from the left as one from the right."""
    if node.target == aten.silu.default:
        gate = insert_call(node, aten.sigmoid.default, node.args[:1])
        replace(node, insert_call(node, aten.mul.Tensor, (node.args[0], gate)))
    elif node.target == aten.rsub.Scalar:
        x, left, *rest = node.args
        assert isinstance(x, fx.Node) and isinstance(left, int | float)
        number = constant(node, left, torch.result_type(x.meta["val"], left))
        replace(node, insert_call(node, aten.sub.Tensor, (number, x, *rest)))
