"""How the arguments of captured operations are read: one reader a family.

A reader turns one call of the captured graph into an ``OpInfo``, with attributes in the form that
the integer program uses: padding as pairs, axes counted from the front, sizes for every axis.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from halfstep.core.execution import BATCH
from halfstep.errors import CaptureError

aten = torch.ops.aten
Attrs = dict[str, Any]
LARGEST_INDEX = 2**63 - 1


@dataclass(frozen=True, eq=False)
class OpInfo:
    """One operation.

    Attributes:
        kind: its name in the integer program.
        inputs: the values that it computes on, in order.
        attrs: as the kernels and exporters read them.
        weight: the node of its weight, for conv, linear and their like.
        bias: the node of its bias.
    """

    kind: str
    inputs: tuple[Node, ...]
    attrs: Attrs = field(default_factory=dict)
    weight: Node | None = None
    bias: Node | None = None


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of a call by their names in the operator's schema, defaults included."""
    values: dict[str, Any] = {}
    for position, parameter in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if position < len(node.args):
            values[parameter.name] = node.args[position]
        elif parameter.name in node.kwargs:
            values[parameter.name] = node.kwargs[parameter.name]
        elif parameter.has_default_value():
            values[parameter.name] = parameter.default_value
    return values


def shape_of(node: Node) -> tuple[int, ...]:
    """The sizes of a value; ``BATCH`` for every size that depends on the batch."""
    return tuple(size if isinstance(size, int) else BATCH for size in node.meta["val"].shape)


def pairs(value: int | list[int], n: int) -> tuple[int, ...]:
    """``3`` or ``[3]`` as ``(3, 3)``; ``[1, 2]`` as ``(1, 2)``."""
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * n if len(values) == 1 else values)


def _spatial(node: Node) -> tuple[int, ...]:
    return shape_of(node)[2:]


def conv(node: Node) -> OpInfo:
    """Conv and transposed conv, 1-d and 2-d, padding as numbers or by name."""
    a = arguments(node)
    n = len(_spatial(a["input"]))
    kernel = shape_of(a["weight"])[2:]
    attrs: Attrs = {name: pairs(a[name], n) for name in ("stride", "dilation")}
    attrs |= {"groups": a["groups"]}
    if isinstance(a["padding"], str):
        attrs["padding"] = _same_padding(a["padding"], kernel, attrs["dilation"])
    else:
        attrs["padding"] = tuple((p, p) for p in pairs(a["padding"], n))
    if "output_padding" in a:
        attrs["output_padding"] = pairs(a["output_padding"], n)
    kind = "conv_transpose" if "output_padding" in a else "conv"
    return OpInfo(kind, (a["input"],), attrs, a["weight"], a["bias"])


def _same_padding(
    mode: str, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if mode == "valid":
        return tuple((0, 0) for _ in kernel)
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def linear(node: Node) -> OpInfo:
    """(..., in) times the transpose of (out, in)."""
    a = arguments(node)
    return OpInfo("linear", (a["input"],), {}, a["weight"], a["bias"])


def matmul(node: Node) -> OpInfo:
    """A product of two values; a scale behind it becomes ``alpha``."""
    return OpInfo("matmul", (node.args[0], node.args[1]), {"alpha": 1.0})  # type: ignore[arg-type]


def plain(kind: str, n_inputs: int = 1) -> Callable[[Node], OpInfo]:
    """An operation on its first arguments, without attributes."""
    return lambda node: OpInfo(kind, tuple(node.args[:n_inputs]))  # type: ignore[arg-type]


def with_attributes(kind: str, **names: str) -> Callable[[Node], OpInfo]:
    """A one-input operation; ``names`` maps our attributes to the schema's arguments."""

    def read(node: Node) -> OpInfo:
        a = arguments(node)
        return OpInfo(kind, (node.args[0],), {ours: a[theirs] for ours, theirs in names.items()})  # type: ignore[arg-type]

    return read


def fixed(kind: str, **attrs: Any) -> Callable[[Node], OpInfo]:
    """A one-input operation with attributes that its name implies."""
    return lambda node: OpInfo(kind, (node.args[0],), dict(attrs))  # type: ignore[arg-type]


def reshape(node: Node) -> OpInfo:
    """Anything that only renames axes: the output's sizes say it all."""
    return OpInfo("reshape", (node.args[0],), {"shape": shape_of(node)})  # type: ignore[arg-type]


def expand(node: Node) -> OpInfo:
    """Axes of size 1, and new ones in front, repeated; others stay what they are."""
    x, shape = node.args[0], shape_of(node)
    before = shape_of(x)  # type: ignore[arg-type]
    before = (1,) * (len(shape) - len(before)) + before
    for size, mine, exact in zip(shape, before, node.meta["val"].shape, strict=True):
        if size == BATCH != mine and not exact.node.expr.is_Symbol:
            raise CaptureError(
                f"{node.name}: it repeats a value {exact} times, a multiple of the batch; expand "
                "it to (batch, repeats, ...) and reshape that"
            )
    return OpInfo("expand", (x,), {"shape": shape})  # type: ignore[arg-type]


def permutation(node: Node) -> OpInfo:
    """permute, transpose and t."""
    a = arguments(node)
    rank = len(shape_of(node))
    perm = list(range(rank))
    if "dims" in a:
        perm = [d % rank for d in a["dims"]]
    else:
        i, j = (a["dim0"] % rank, a["dim1"] % rank) if "dim0" in a else (0, 1)
        perm[i], perm[j] = perm[j], perm[i]
    return OpInfo("transpose", (node.args[0],), {"perm": tuple(perm)})  # type: ignore[arg-type]


def slice_(node: Node) -> OpInfo:
    """``[start:stop:step]`` along one axis, with the ends as indices within it."""
    a = arguments(node)
    x = a["self"]
    axis = a["dim"] % len(shape_of(x))
    size = shape_of(x)[axis]
    start, stop = a["start"] or 0, LARGEST_INDEX if a["end"] is None else a["end"]
    if size != BATCH:
        start, stop, _ = slice(start, stop).indices(size)
    return OpInfo("slice", (x,), {"axis": axis, "start": start, "stop": stop, "step": a["step"]})


def concat(node: Node) -> OpInfo:
    """Cat."""
    a = arguments(node)
    return OpInfo("concat", tuple(a["tensors"]), {"axis": a["dim"] % len(shape_of(node))})


def pad(node: Node) -> OpInfo:
    """Padding of every axis, its mode and its value."""
    a = arguments(node)
    flat, rank = a["pad"], len(shape_of(node))
    margins = [(0, 0)] * (rank - len(flat) // 2)
    margins += [(flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2)]
    mode, value = a.get("mode", "constant"), a.get("value") or 0
    return OpInfo("pad", (a["self"],), {"padding": tuple(margins), "mode": mode, "value": value})


def pool(kind: str) -> Callable[[Node], OpInfo]:
    """Max and average pooling; an average of everything is global.

    What the last windows of ``ceil_mode`` see beyond the padding never counts. Where padding does
    not count either it is more padding, and the mode is gone.
    """

    def read(node: Node) -> OpInfo:
        a = arguments(node)
        n = len(_spatial(a["self"]))
        kernel, padding = pairs(a["kernel_size"], n), pairs(a["padding"], n)
        dilation = pairs(a.get("dilation", 1), n)
        attrs: Attrs = {"kernel": kernel, "stride": pairs(a["stride"] or list(kernel), n)}
        counted = any(padding) and a.get("count_include_pad", False)
        beyond = _beyond_padding(node, attrs["stride"], kernel, dilation, padding)
        attrs["ceil_mode"] = counted and any(beyond)
        more = (0,) * n if attrs["ceil_mode"] else beyond
        attrs["padding"] = tuple((p, p + m) for p, m in zip(padding, more, strict=True))
        if kind == "max_pool":
            return OpInfo(kind, (a["self"],), attrs | {"dilation": dilation})
        attrs["count_include_pad"] = counted or not any(map(any, attrs["padding"]))
        attrs["divisor"] = a.get("divisor_override")
        if kernel == _spatial(a["self"]) and not any(padding) and not attrs["divisor"]:
            return OpInfo("global_avg_pool", (a["self"],))
        return OpInfo(kind, (a["self"],), attrs)

    return read


def _beyond_padding(
    node: Node,
    stride: tuple[int, ...],
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: tuple[int, ...],
) -> tuple[int, ...]:
    """How far the last window of each axis reaches over the padded input."""
    padded = [size + 2 * p for size, p in zip(_spatial(node.args[0]), padding, strict=True)]  # type: ignore[arg-type]
    return tuple(
        max((out - 1) * s + d * (k - 1) + 1 - size, 0)
        for out, s, d, k, size in zip(_spatial(node), stride, dilation, kernel, padded, strict=True)
    )


def adaptive_pool(node: Node) -> OpInfo:
    """Adaptive averages, where the windows are equal, as what they are."""
    x = node.args[0]
    sizes, wanted = _spatial(x), _spatial(node)  # type: ignore[arg-type]
    if all(size == 1 for size in wanted):
        return OpInfo("global_avg_pool", (x,))  # type: ignore[arg-type]
    if any(size % out for size, out in zip(sizes, wanted, strict=True)):
        return OpInfo("adaptive_avg_pool", (x,), {"sizes": wanted})  # type: ignore[arg-type]
    kernel = tuple(size // out for size, out in zip(sizes, wanted, strict=True))
    padding = tuple((0, 0) for _ in kernel)
    attrs = {"kernel": kernel, "stride": kernel, "padding": padding, "ceil_mode": False}
    return OpInfo("avg_pool", (x,), attrs | {"count_include_pad": True, "divisor": None})  # type: ignore[arg-type]


def reduction(kind: str) -> Callable[[Node], OpInfo]:
    """Mean and sum; a mean over all of space that keeps its axes is a global pool."""

    def read(node: Node) -> OpInfo:
        a = arguments(node)
        rank = len(shape_of(a["self"]))
        dims = a.get("dim")
        axes = tuple(sorted(d % rank for d in (dims or range(rank))))  # none are all of them
        keepdim = a.get("keepdim", False)
        if kind == "mean" and keepdim and rank > 2 and axes == tuple(range(2, rank)):
            return OpInfo("global_avg_pool", (a["self"],))
        return OpInfo(kind, (a["self"],), {"axes": axes, "keepdim": keepdim})

    return read


def upsample(kind: str) -> Callable[[Node], OpInfo]:
    """Interpolation by whole factors; ``resize`` for any other."""

    def read(node: Node) -> OpInfo:
        a = arguments(node)
        factors = [o / i for o, i in zip(_spatial(node), _spatial(a["input"]), strict=True)]
        if any(factor != int(factor) for factor in factors):
            return OpInfo("resize", (a["input"],), {"factors": tuple(factors)})
        attrs: Attrs = {"factors": tuple(map(int, factors))}
        if kind == "upsample_linear":
            attrs["align_corners"] = a["align_corners"]
        return OpInfo(kind, (a["input"],), attrs)

    return read


def layer_norm(node: Node) -> OpInfo:
    """Layer norm with or without weight and bias, which are inputs."""
    a = arguments(node)
    inputs = tuple(n for n in (a["input"], a["weight"], a["bias"]) if n is not None)
    return OpInfo("layer_norm", inputs, {"n_axes": len(a["normalized_shape"]), "eps": a["eps"]})


def embedding(node: Node) -> OpInfo:
    """Rows of a table; the indices are the second input."""
    a = arguments(node)
    return OpInfo("embedding", (a["weight"], a["indices"]))


def cast(node: Node) -> OpInfo:
    """To another dtype, which the output has."""
    return OpInfo("cast", (node.args[0],), {})  # type: ignore[arg-type]
