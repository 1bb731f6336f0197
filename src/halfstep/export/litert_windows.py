"""Operators over windows in space: convolutions, pools and upsampling, channels last.

What has one axis of space gets a second one of size 1, in front. Padding is part of the operator
where the format's "same" is what was asked for, and an operator of its own otherwise.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from halfstep.errors import ExportError
from halfstep.export.litert_moves import padded, strided
from halfstep.export.litert_weights import bias_tensor, weight_tensor
from halfstep.program.ir import Op

if TYPE_CHECKING:
    from halfstep.export.litert import Writer

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """A window over two axes of space, all fields as (vertical, horizontal)."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: tuple[Pair, Pair]

    @classmethod
    def of(cls, op: Op, kernel: tuple[int, ...]) -> "Window":
        """That of an operation over one or two axes."""
        ones = (1,) * len(kernel)
        fields = kernel, op.attrs["stride"], op.attrs.get("dilation", ones)
        margins = tuple(map(tuple, op.attrs["padding"]))
        return cls(*(_two(field, 1) for field in fields), _two(margins, (0, 0)))

    def same_as_format(self, sizes: Pair, out: Pair) -> bool:
        """Whether the padding is what the format calls "same"."""
        for axis in range(2):
            stride, size = self.stride[axis], sizes[axis]
            span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            total = max((out[axis] - 1) * stride + span - size, 0)
            wanted = (total // 2, total - total // 2)
            if out[axis] != -(-size // stride) or self.padding[axis] != wanted:
                return False
        return True


def _two(values: Any, missing: Any) -> Any:
    return tuple(values) if len(values) == 2 else (missing, *values)


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(N, H, W, C), also of (N, L, C)."""
    return shape if len(shape) == 4 else (shape[0], 1, *shape[1:])


def _as_image(writer: "Writer", name: str) -> tuple[int, tuple[int, ...]]:
    """A value with two axes of space, and its shape."""
    layout = writer.layouts[name]
    source, shape = writer.own(name), _image_shape(layout.file_shape)
    if shape == layout.file_shape:
        return source, shape
    image = writer.temporary(f"{name}/image", shape, name)
    writer.reshaped(source, shape, image)
    return image, shape


def _emit_image(writer: "Writer", op: Op, emit: Callable[[int], None]) -> None:
    """Let ``emit`` make the result with two axes of space, and drop the one that is not there."""
    shape = writer.layouts[op.output].file_shape
    if len(shape) == 4:
        emit(writer.begin(op))
        return
    image = writer.temporary(f"{op.output}/image", _image_shape(shape), op.output)
    emit(image)
    writer.reshaped(image, shape, writer.begin(op))


def _prepared(
    writer: "Writer", op: Op, window: Window, fill: np.generic | None = None
) -> tuple[int, tuple[int, ...], int]:
    """The input, padded unless the operator does it; its shape; and the operator's padding."""
    source, shape = _as_image(writer, op.inputs[0])
    modes = writer.file.schema.Padding
    out = _image_shape(writer.layouts[op.output].file_shape)
    if not any(map(any, window.padding)):
        return source, shape, modes.VALID
    if window.same_as_format((shape[1], shape[2]), (out[1], out[2])):
        return source, shape, modes.SAME
    margins = ((0, 0), *window.padding, (0, 0))
    wide = tuple(size + sum(pair) for size, pair in zip(shape, margins, strict=True))
    made = writer.temporary(f"{op.output}/padded", wide, op.inputs[0])
    padded(writer, source, margins, made, fill, op.inputs[0])
    return made, wide, modes.VALID


def _conv(writer: "Writer", op: Op) -> None:
    _, weight, *bias = op.inputs
    codes = writer.program.constant(weight)
    codes = codes if codes.ndim == 4 else codes[:, :, None]
    window = Window.of(op, codes.shape[2:])
    source, shape, padding = _prepared(writer, op, window)
    attrs = {
        "padding": padding,
        "strideH": window.stride[0],
        "strideW": window.stride[1],
        "dilationHFactor": window.dilation[0],
        "dilationWFactor": window.dilation[1],
        "fusedActivationFunction": writer.fused(op),
    }
    kind, options = "CONV_2D", "Conv2DOptions"
    if op.attrs["groups"] == shape[-1] > 1:
        kind, options = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
        attrs["depthMultiplier"] = codes.shape[0] // shape[-1]
        weights = weight_tensor(writer, weight, codes.transpose(1, 2, 3, 0), 3)
    else:
        weights = weight_tensor(writer, weight, codes.transpose(0, 2, 3, 1), 0)
    operands = [source, weights, *(bias_tensor(writer, name) for name in bias)]
    _emit_image(
        writer, op, lambda out: writer.file.operator(kind, operands, out, options, **attrs)
    )


def _conv_transpose(writer: "Writer", op: Op) -> None:
    """One operator a group, over all of the result, from which the padding is cut."""
    codes = writer.program.constant(op.inputs[1])
    codes = codes if codes.ndim == 4 else codes[:, :, None]
    window = Window.of(op, codes.shape[2:])
    source, shape = _as_image(writer, op.inputs[0])
    final = _image_shape(writer.layouts[op.output].file_shape)
    codes = _spread(codes, window, shape, final)
    begin = [pair[0] for pair in window.padding]
    whole = (
        1,
        *((n - 1) * s + k for n, s, k in zip(shape[1:3], window.stride, codes.shape[2:], strict=True)),
        final[3],
    )

    def emit(out: int) -> None:
        cut = whole != final
        full = writer.temporary(f"{op.output}/whole", whole, op.output) if cut else out
        _of_groups(writer, op, codes, (source, shape), window.stride, (full, whole))
        if cut:
            windows = {axis + 1: slice(b, b + final[axis + 1]) for axis, b in enumerate(begin)}
            strided(writer, full, whole, windows, out)

    _emit_image(writer, op, emit)


def _spread(
    codes: np.ndarray, window: Window, shape: tuple[int, ...], final: tuple[int, ...]
) -> np.ndarray:
    """The kernel with zeros for its dilation, and behind it where the result goes on."""
    sizes = []
    for axis in range(2):
        span = window.dilation[axis] * (window.kernel[axis] - 1) + 1
        end = window.padding[axis][0] + final[axis + 1]
        sizes.append(max(span, end - (shape[axis + 1] - 1) * window.stride[axis]))
    wide = np.zeros((*codes.shape[:2], *sizes), codes.dtype)
    spans = [d * (k - 1) + 1 for d, k in zip(window.dilation, window.kernel, strict=True)]
    wide[:, :, : spans[0] : window.dilation[0], : spans[1] : window.dilation[1]] = codes
    return wide


def _of_groups(
    writer: "Writer",
    op: Op,
    codes: np.ndarray,
    source: tuple[int, tuple[int, ...]],
    stride: Pair,
    out: tuple[int, tuple[int, ...]],
) -> None:
    (x, shape), (made, whole) = source, out
    groups, _, weight, *bias = op.attrs["groups"], *op.inputs
    n_inputs, n_outputs = shape[3] // groups, whole[3] // groups
    attrs = {"padding": writer.file.schema.Padding.VALID, "strideH": stride[0], "strideW": stride[1]}
    size = (*whole[:3], n_outputs)
    sizes = writer.constant(np.asarray(size, np.int32))
    parts = []
    for group in range(groups):
        part, result = x, made
        if groups > 1:
            part = writer.temporary(f"{op.output}/input_{group}", (*shape[:3], n_inputs), op.inputs[0])
            channels = slice(group * n_inputs, (group + 1) * n_inputs)
            strided(writer, x, shape, {3: channels}, part)
            result = writer.temporary(f"{op.output}/part_{group}", size, op.output)
        kernel = codes[group * n_inputs : (group + 1) * n_inputs].transpose(1, 2, 3, 0)
        channels = slice(group * n_outputs, (group + 1) * n_outputs)
        suffix = f"/{group}" if groups > 1 else ""
        operands = [sizes, weight_tensor(writer, weight, kernel, 0, suffix=suffix), part]
        operands += [bias_tensor(writer, name, channels, suffix) for name in bias]
        writer.file.operator("TRANSPOSE_CONV", operands, result, "TransposeConvOptions", **attrs)
        parts.append(result)
    if groups > 1:
        writer.file.operator("CONCATENATION", parts, made, "ConcatenationOptions", axis=3)


def _max_pool(writer: "Writer", op: Op) -> None:
    window = Window.of(op, op.attrs["kernel"])
    lowest: np.generic = np.finfo(np.float32).min
    if not writer.real(op):
        lowest = np.iinfo(writer.program.grid(op.inputs[0]).qtype.storage).min
    if window.dilation != (1, 1):
        _by_taps(writer, op, window, lowest, "MAXIMUM", "MaximumMinimumOptions")
        return
    source, _, padding = _prepared(writer, op, window, _typed(writer, op, lowest))
    _pool(writer, op, window, source, padding, "MAX_POOL_2D")


def _typed(writer: "Writer", op: Op, value: Any) -> np.generic:
    found: np.generic = np.dtype(writer.program.tensor(op.inputs[0]).dtype).type(value)
    return found


def _avg_pool(writer: "Writer", op: Op) -> None:
    """As far as the operator counts as was asked for; else, of real values, tap by tap."""
    window = Window.of(op, op.attrs["kernel"])
    out = _image_shape(writer.layouts[op.output].file_shape)
    shape = _image_shape(writer.layouts[op.inputs[0]].file_shape)
    same = window.same_as_format((shape[1], shape[2]), (out[1], out[2]))
    is_padded = any(map(any, window.padding))
    counted = op.attrs["count_include_pad"] and not op.attrs["ceil_mode"]
    if op.attrs["divisor"] or (is_padded and not (counted or same)) or op.attrs["ceil_mode"]:
        if not writer.real(op):
            raise ExportError(f"{op.output}: no average pool of codes counts as it asks for")
        _by_taps(writer, op, window, 0.0, "ADD", "AddOptions")
        return
    if is_padded and counted:
        source, modes = _counted(writer, op, window), writer.file.schema.Padding
        _pool(writer, op, window, source, modes.VALID, "AVERAGE_POOL_2D")
        return
    source, _, padding = _prepared(writer, op, window)
    _pool(writer, op, window, source, padding, "AVERAGE_POOL_2D")


def _counted(writer: "Writer", op: Op, window: Window) -> int:
    """The input with its padding as values, which count."""
    source, shape = _as_image(writer, op.inputs[0])
    margins = ((0, 0), *window.padding, (0, 0))
    wide = tuple(size + sum(pair) for size, pair in zip(shape, margins, strict=True))
    made = writer.temporary(f"{op.output}/padded", wide, op.inputs[0])
    padded(writer, source, margins, made)
    return made


def _pool(writer: "Writer", op: Op, window: Window, source: int, padding: int, kind: str) -> None:
    attrs = {
        "padding": padding,
        "strideH": window.stride[0],
        "strideW": window.stride[1],
        "filterHeight": window.kernel[0],
        "filterWidth": window.kernel[1],
    }
    _emit_image(
        writer,
        op,
        lambda out: writer.file.operator(kind, [source], out, "Pool2DOptions", **attrs),
    )


def _by_taps(
    writer: "Writer", op: Op, window: Window, fill: Any, kind: str, options: str
) -> None:
    """The values that each tap of the window sees, joined by a binary operator."""
    source, shape = _as_image(writer, op.inputs[0])
    final = _image_shape(writer.layouts[op.output].file_shape)
    ends = [
        max((final[i + 1] - 1) * window.stride[i] + window.dilation[i] * (window.kernel[i] - 1) + 1
            - shape[i + 1] - window.padding[i][0], window.padding[i][1], 0)
        for i in range(2)
    ]  # fmt: skip
    margins = ((0, 0), *((window.padding[i][0], ends[i]) for i in range(2)), (0, 0))
    wide = tuple(size + sum(pair) for size, pair in zip(shape, margins, strict=True))
    if wide != shape:
        made = writer.temporary(f"{op.output}/padded", wide, op.inputs[0])
        padded(writer, source, margins, made, _typed(writer, op, fill), op.inputs[0])
        source = made
    total = None
    for number, tap in enumerate(itertools.product(*map(range, window.kernel))):
        windows = {
            i + 1: slice(t * d, t * d + s * (final[i + 1] - 1) + 1, s)
            for i, (t, d, s) in enumerate(zip(tap, window.dilation, window.stride, strict=True))
        }
        seen = writer.temporary(f"{op.output}/tap_{number}", final, op.inputs[0])
        strided(writer, source, wide, windows, seen)
        if total is not None:
            joined = writer.temporary(f"{op.output}/taps_{number}", final, op.inputs[0])
            writer.file.operator(kind, [total, seen], joined, options)
            seen = joined
        total = seen
    assert total is not None
    shares = _shares(op, window, shape, final) if op.kind == "avg_pool" else None
    _from_taps(writer, op, total, shares)


def _shares(
    op: Op, window: Window, shape: tuple[int, ...], final: tuple[int, ...]
) -> np.ndarray:
    """One over the count of each window, (1, H, W, 1)."""
    if op.attrs["divisor"]:
        return np.full((1, 1, 1, 1), 1 / op.attrs["divisor"], np.float32)
    counts = []
    for i in range(2):
        before, after = window.padding[i] if op.attrs["count_include_pad"] else (0, 0)
        starts = np.arange(final[i + 1]) * window.stride[i] - window.padding[i][0]
        last = np.minimum(starts + window.kernel[i], shape[i + 1] + after)
        counts.append(last - np.maximum(starts, -before))
    return (1 / np.outer(*counts))[None, :, :, None].astype(np.float32)


def _from_taps(writer: "Writer", op: Op, total: int, shares: np.ndarray | None) -> None:
    """The joined taps, as a mean if there are shares, in the shape of the result."""

    def emit(out: int) -> None:
        if shares is not None:
            writer.file.operator("MUL", [total, writer.constant(shares)], out, "MulOptions")
        else:
            shape = _image_shape(writer.layouts[op.output].file_shape)
            writer.reshaped(total, shape, out)

    _emit_image(writer, op, emit)


def _upsample(kind: str, options: str) -> Callable[["Writer", Op], None]:
    def emit(writer: "Writer", op: Op) -> None:
        source, _ = _as_image(writer, op.inputs[0])
        shape = _image_shape(writer.layouts[op.output].file_shape)
        sizes = writer.constant(np.asarray(shape[1:3], np.int32))
        attrs = {}
        if op.kind == "upsample_linear":
            corners = op.attrs["align_corners"]
            attrs = {"alignCorners": corners, "halfPixelCenters": not corners}
        _emit_image(
            writer, op, lambda out: writer.file.operator(kind, [source, sizes], out, options, **attrs)
        )

    return emit


WINDOWS: dict[str, Callable[["Writer", Op], None]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "upsample_nearest": _upsample("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"),
    "upsample_linear": _upsample("RESIZE_BILINEAR", "ResizeBilinearOptions"),
}
