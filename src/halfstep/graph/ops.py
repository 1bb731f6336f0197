"""THE op table: what each captured operation is, in the vocabulary of the integer program.

``describe(node)`` reads one call of the captured graph: its kind, the values it computes on, its
weight and bias, and its attributes in the form that ``program.ir`` uses. An operation without a
row here stays float and cannot be lowered; a new one is a row and, if its arguments need work, a
reader.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from halfstep.core.execution import BATCH

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


def _conv(node: Node) -> OpInfo:
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


def _linear(node: Node) -> OpInfo:
    a = arguments(node)
    return OpInfo("linear", (a["input"],), {}, a["weight"], a["bias"])


def _matmul(node: Node) -> OpInfo:
    return OpInfo("matmul", (node.args[0], node.args[1]), {"alpha": 1.0})  # type: ignore[arg-type]


def _plain(kind: str, n_inputs: int = 1) -> Callable[[Node], OpInfo]:
    return lambda node: OpInfo(kind, tuple(node.args[:n_inputs]))  # type: ignore[arg-type]


def _with(kind: str, **names: str) -> Callable[[Node], OpInfo]:
    """A one-input operation; ``names`` maps our attributes to the schema's arguments."""

    def read(node: Node) -> OpInfo:
        a = arguments(node)
        return OpInfo(kind, (node.args[0],), {ours: a[theirs] for ours, theirs in names.items()})  # type: ignore[arg-type]

    return read


def _fixed(kind: str, **attrs: Any) -> Callable[[Node], OpInfo]:
    return lambda node: OpInfo(kind, (node.args[0],), dict(attrs))  # type: ignore[arg-type]


def _reshape(node: Node) -> OpInfo:
    return OpInfo("reshape", (node.args[0],), {"shape": shape_of(node)})  # type: ignore[arg-type]


def _permutation(node: Node) -> OpInfo:
    a = arguments(node)
    rank = len(shape_of(node))
    perm = list(range(rank))
    if "dims" in a:
        perm = [d % rank for d in a["dims"]]
    else:
        i, j = (a["dim0"] % rank, a["dim1"] % rank) if "dim0" in a else (0, 1)
        perm[i], perm[j] = perm[j], perm[i]
    return OpInfo("transpose", (a.get("self", node.args[0]),), {"perm": tuple(perm)})


def _slice(node: Node) -> OpInfo:
    a = arguments(node)
    x = a["self"]
    axis = a["dim"] % len(shape_of(x))
    size = shape_of(x)[axis]
    start, stop = a["start"] or 0, LARGEST_INDEX if a["end"] is None else a["end"]
    if size != BATCH:
        start, stop, _ = slice(start, stop).indices(size)
    return OpInfo("slice", (x,), {"axis": axis, "start": start, "stop": stop, "step": a["step"]})


def _cat(node: Node) -> OpInfo:
    a = arguments(node)
    return OpInfo("concat", tuple(a["tensors"]), {"axis": a["dim"] % len(shape_of(node))})


def _pad(node: Node) -> OpInfo:
    a = arguments(node)
    flat, rank = a["pad"], len(shape_of(node))
    margins = [(0, 0)] * (rank - len(flat) // 2)
    margins += [(flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2)]
    mode, value = a.get("mode", "constant"), a.get("value") or 0
    return OpInfo("pad", (a["self"],), {"padding": tuple(margins), "mode": mode, "value": value})


def _pool(kind: str) -> Callable[[Node], OpInfo]:
    def read(node: Node) -> OpInfo:
        a = arguments(node)
        n = len(_spatial(a["self"]))
        kernel = pairs(a["kernel_size"], n)
        attrs: Attrs = {"kernel": kernel, "stride": pairs(a["stride"] or list(kernel), n)}
        begins = pairs(a["padding"], n)
        attrs["padding"] = tuple((p, p) for p in begins)
        attrs["ceil_mode"] = a["ceil_mode"]
        if kind == "max_pool":
            attrs["dilation"] = pairs(a["dilation"], n)
        else:
            attrs["count_include_pad"] = a["count_include_pad"] or not any(begins)
            attrs["divisor"] = a.get("divisor_override")
            if kernel == _spatial(a["self"]) and not any(begins) and not attrs["divisor"]:
                return OpInfo("global_avg_pool", (a["self"],))
        return OpInfo(kind, (a["self"],), attrs)

    return read


def _adaptive_pool(node: Node) -> OpInfo:
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


def _reduction(kind: str) -> Callable[[Node], OpInfo]:
    def read(node: Node) -> OpInfo:
        a = arguments(node)
        rank = len(shape_of(a["self"]))
        dims = a.get("dim")
        axes = tuple(sorted(d % rank for d in (range(rank) if dims is None else dims)))
        keepdim = a.get("keepdim", False)
        if kind == "mean" and keepdim and rank > 2 and axes == tuple(range(2, rank)):
            return OpInfo("global_avg_pool", (a["self"],))
        return OpInfo(kind, (a["self"],), {"axes": axes, "keepdim": keepdim})

    return read


def _upsample(kind: str) -> Callable[[Node], OpInfo]:
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


def _layer_norm(node: Node) -> OpInfo:
    a = arguments(node)
    inputs = tuple(n for n in (a["input"], a["weight"], a["bias"]) if n is not None)
    return OpInfo("layer_norm", inputs, {"n_axes": len(a["normalized_shape"]), "eps": a["eps"]})


def _embedding(node: Node) -> OpInfo:
    a = arguments(node)
    return OpInfo("embedding", (a["weight"], a["indices"]))


def _cast(node: Node) -> OpInfo:
    return OpInfo("cast", (node.args[0],), {})  # type: ignore[arg-type]


_CLAMP_RELU6: Mapping[str, float] = {"low": 0.0, "high": 6.0}

OPS: dict[Any, Callable[[Node], OpInfo]] = {
    aten.conv1d.default: _conv,
    aten.conv2d.default: _conv,
    aten.conv1d.padding: _conv,
    aten.conv2d.padding: _conv,
    aten.conv_transpose1d.default: _conv,
    aten.conv_transpose2d.input: _conv,
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mm.default: _matmul,
    aten.add.Tensor: _plain("add", 2),
    aten.sub.Tensor: _plain("sub", 2),
    aten.mul.Tensor: _plain("mul", 2),
    aten.div.Tensor: _plain("div", 2),
    aten.eq.Tensor: _plain("equal", 2),
    aten.logical_and.default: _plain("logical_and", 2),
    aten.__and__.Tensor: _plain("logical_and", 2),
    aten.bitwise_and.Tensor: _plain("logical_and", 2),
    aten.logical_not.default: _plain("logical_not"),
    aten.bitwise_not.default: _plain("logical_not"),
    aten.where.self: _plain("where", 3),
    aten.to.dtype: _cast,
    aten.to.device: _cast,
    aten._to_copy.default: _cast,
    aten.neg.default: _plain("neg"),
    aten.exp.default: _plain("exp"),
    aten.sqrt.default: _plain("sqrt"),
    aten.erf.default: _plain("erf"),
    aten.relu.default: _plain("relu"),
    aten.relu6.default: _fixed("clamp", **_CLAMP_RELU6),
    aten.hardtanh.default: _with("clamp", low="min_val", high="max_val"),
    aten.clamp.default: _with("clamp", low="min", high="max"),
    aten.leaky_relu.default: _with("leaky_relu", slope="negative_slope"),
    aten.sigmoid.default: _plain("sigmoid"),
    aten.tanh.default: _plain("tanh"),
    aten.silu.default: _plain("silu"),
    aten.hardswish.default: _plain("hardswish"),
    aten.hardsigmoid.default: _plain("hardsigmoid"),
    aten.gelu.default: _with("gelu", approximate="approximate"),
    aten.softmax.int: _with("softmax", axis="dim"),
    aten.layer_norm.default: _layer_norm,
    aten.max_pool1d.default: _pool("max_pool"),
    aten.max_pool2d.default: _pool("max_pool"),
    aten.avg_pool1d.default: _pool("avg_pool"),
    aten.avg_pool2d.default: _pool("avg_pool"),
    aten.adaptive_avg_pool1d.default: _adaptive_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_pool,
    aten.mean.dim: _reduction("mean"),
    aten.mean.default: _reduction("mean"),
    aten.sum.dim_IntList: _reduction("sum"),
    aten.cat.default: _cat,
    aten.slice.Tensor: _slice,
    aten.reshape.default: _reshape,
    aten.view.default: _reshape,
    aten.flatten.using_ints: _reshape,
    aten.unsqueeze.default: _reshape,
    aten.squeeze.default: _reshape,
    aten.squeeze.dim: _reshape,
    aten.squeeze.dims: _reshape,
    aten.permute.default: _permutation,
    aten.transpose.int: _permutation,
    aten.t.default: _permutation,
    aten.expand.default: lambda node: OpInfo("expand", (node.args[0],), {"shape": shape_of(node)}),  # type: ignore[arg-type]
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.upsample_nearest1d.vec: _upsample("upsample_nearest"),
    aten.upsample_nearest2d.vec: _upsample("upsample_nearest"),
    aten.upsample_bilinear2d.vec: _upsample("upsample_linear"),
    aten.embedding.default: _embedding,
}

# Dropout is kept for training and is nothing in a program.
IDENTITIES = (aten.dropout.default,)


def describe(node: Node) -> OpInfo:
    """What ``node`` computes; the name of the operator itself if the table has no row for it."""
    reader = OPS.get(node.target)
    if reader is None or node.kwargs.keys() & {"out"}:
        name = node.target.name() if hasattr(node.target, "name") else str(node.target)
        return OpInfo(name, tuple(node.all_input_nodes))
    return reader(node)


def is_computation(node: Node) -> bool:
    """Whether ``node`` is an operation on tensors, not arithmetic on sizes."""
    if node.op != "call_function" or node.target in (aten.sym_size.int, operator.getitem):
        return False
    return isinstance(node.meta.get("val"), torch.Tensor)


def macs(info: OpInfo, node: Node) -> int:
    """Multiply-accumulates a sample; 0 for all but conv, linear and matmul."""
    per_sample = math.prod(abs(size) for size in shape_of(node))
    if info.kind == "conv" and info.weight is not None:
        return per_sample * math.prod(shape_of(info.weight)[1:])
    if info.kind == "conv_transpose" and info.weight is not None:
        inputs = math.prod(abs(size) for size in shape_of(info.inputs[0]))
        return inputs * math.prod(shape_of(info.weight)[1:])
    if info.kind == "linear" and info.weight is not None:
        return per_sample * shape_of(info.weight)[1]
    if info.kind == "matmul":
        return per_sample * shape_of(info.inputs[0])[-1]
    return 0
