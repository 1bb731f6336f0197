"""Pools and upsampling, over one or two axes of space."""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from halfstep.errors import ExportError
from halfstep.export.litert_moves import padded, strided
from halfstep.export.litert_windows import Window, as_image, emit_image, image_shape, prepared
from halfstep.program.ir import Op

if TYPE_CHECKING:
    from halfstep.export.litert import Writer


def _max_pool(writer: "Writer", op: Op) -> None:
    window = Window.of(op, op.attrs["kernel"])
    lowest = float(np.finfo(np.float32).min)
    if not writer.real(op):
        lowest = np.iinfo(writer.program.grid(op.inputs[0]).qtype.storage).min
    if window.dilation != (1, 1):
        _by_taps(writer, op, window, lowest, "MAXIMUM", "MaximumMinimumOptions")
        return
    source, _, padding = prepared(writer, op, window, _typed(writer, op, lowest))
    _pool(writer, op, window, source, padding, "MAX_POOL_2D")


def _typed(writer: "Writer", op: Op, value: Any) -> np.generic:
    found: np.generic = np.dtype(writer.program.tensor(op.inputs[0]).dtype).type(value)
    return found


def _avg_pool(writer: "Writer", op: Op) -> None:
    """As far as the operator counts as was asked for; else, of real values, tap by tap."""
    window = Window.of(op, op.attrs["kernel"])
    out = image_shape(writer.layouts[op.output].file_shape)
    shape = image_shape(writer.layouts[op.inputs[0]].file_shape)
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
    source, _, padding = prepared(writer, op, window)
    _pool(writer, op, window, source, padding, "AVERAGE_POOL_2D")


def _counted(writer: "Writer", op: Op, window: Window) -> int:
    """The input with its padding as values, which count."""
    source, shape = as_image(writer, op.inputs[0])
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
    emit_image(
        writer,
        op,
        lambda out: writer.file.operator(kind, [source], out, "Pool2DOptions", **attrs),
    )


def _by_taps(writer: "Writer", op: Op, window: Window, fill: Any, kind: str, options: str) -> None:
    """The values that each tap of the window sees, joined by a binary operator."""
    source, shape = as_image(writer, op.inputs[0])
    final = image_shape(writer.layouts[op.output].file_shape)
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


def _shares(op: Op, window: Window, shape: tuple[int, ...], final: tuple[int, ...]) -> np.ndarray:
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
            shape = image_shape(writer.layouts[op.output].file_shape)
            writer.reshaped(total, shape, out)

    emit_image(writer, op, emit)


def _upsample(kind: str, options: str) -> Callable[["Writer", Op], None]:
    def emit(writer: "Writer", op: Op) -> None:
        source, _ = as_image(writer, op.inputs[0])
        shape = image_shape(writer.layouts[op.output].file_shape)
        sizes = writer.constant(np.asarray(shape[1:3], np.int32))
        attrs = {}
        if op.kind == "upsample_linear":
            corners = op.attrs["align_corners"]
            attrs = {"alignCorners": corners, "halfPixelCenters": not corners}
        emit_image(
            writer,
            op,
            lambda out: writer.file.operator(kind, [source, sizes], out, options, **attrs),
        )

    return emit


POOLS: dict[str, Callable[["Writer", Op], None]] = {
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "upsample_nearest": _upsample("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"),
    "upsample_linear": _upsample("RESIZE_BILINEAR", "ResizeBilinearOptions"),
}
