"""Convolutions and transposed convolutions, over one or two axes of space."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from halfstep.export.litert_moves import strided
from halfstep.export.litert_weights import bias_tensor, no_bias, weight_tensor
from halfstep.export.litert_windows import (
    Pair,
    Window,
    as_image,
    emit_image,
    image_shape,
    prepared,
)
from halfstep.program.ir import Op

if TYPE_CHECKING:
    from halfstep.export.litert import Writer


def _conv(writer: "Writer", op: Op) -> None:
    _, weight, *bias = op.inputs
    codes = writer.program.constant(weight)
    codes = codes if codes.ndim == 4 else codes[:, :, None]
    window = Window.of(op, codes.shape[2:])
    source, shape, padding = prepared(writer, op, window)
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
    biases = [bias_tensor(writer, name) for name in bias] or [no_bias(writer, op)]
    operands = [source, weights, *biases]
    emit_image(writer, op, lambda out: writer.file.operator(kind, operands, out, options, **attrs))


def _conv_transpose(writer: "Writer", op: Op) -> None:
    """One operator a group, over all of the result, from which the padding is cut."""
    codes = writer.program.constant(op.inputs[1])
    codes = codes if codes.ndim == 4 else codes[:, :, None]
    window = Window.of(op, codes.shape[2:])
    source, shape = as_image(writer, op.inputs[0])
    final = image_shape(writer.layouts[op.output].file_shape)
    codes = _spread(codes, window, shape, final)
    begin = [pair[0] for pair in window.padding]
    whole = (
        1,
        *(
            (n - 1) * s + k
            for n, s, k in zip(shape[1:3], window.stride, codes.shape[2:], strict=True)
        ),
        final[3],
    )

    def emit(out: int) -> None:
        cut = whole != final
        full = writer.temporary(f"{op.output}/whole", whole, op.output) if cut else out
        _of_groups(writer, op, codes, (source, shape), window.stride, (full, whole))
        if cut:
            windows = {axis + 1: slice(b, b + final[axis + 1]) for axis, b in enumerate(begin)}
            strided(writer, full, whole, windows, out)

    emit_image(writer, op, emit)


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
    attrs = {
        "padding": writer.file.schema.Padding.VALID,
        "strideH": stride[0],
        "strideW": stride[1],
    }
    size = (*whole[:3], n_outputs)
    sizes = writer.constant(np.asarray(size, np.int32))
    parts = []
    for group in range(groups):
        part, result = x, made
        if groups > 1:
            part = writer.temporary(
                f"{op.output}/input_{group}", (*shape[:3], n_inputs), op.inputs[0]
            )
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


CONVOLUTIONS: dict[str, Callable[["Writer", Op], None]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
}
