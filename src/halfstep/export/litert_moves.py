"""Operators that move values: codes stay what they are."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from halfstep.export.litert_layout import keeps_channels
from halfstep.program.ir import Op

if TYPE_CHECKING:
    from halfstep.export.litert import Writer

# PyTorch's names of the ways to pad, and numpy's.
_REPEATING: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _reshape(writer: "Writer", op: Op) -> None:
    """In the file's order where samples and channels stay, or the next layer undoes it."""
    out = writer.layouts[op.output]
    follows = keeps_channels(writer.program, op) and out.perm != tuple(range(len(out.shape)))
    if out.flattened or follows:
        writer.reshaped(writer.own(op.inputs[0]), out.file_shape, writer.begin(op))
        return
    writer.reshaped(writer.plain(op.inputs[0]), out.shape, writer.begin(op, in_order=True))


def _transpose(writer: "Writer", op: Op) -> None:
    """One permutation of the file, whatever the layouts in front and behind."""
    source, out = writer.layouts[op.inputs[0]], writer.layouts[op.output]
    perm = [source.axis(op.attrs["perm"][axis]) for axis in out.perm]
    writer.transposed(writer.own(op.inputs[0]), source.file_shape, perm, writer.begin(op))


def _concat(writer: "Writer", op: Op) -> None:
    sources = [writer.aligned(name, op.output) for name in op.inputs]
    axis = writer.layouts[op.output].axis(op.attrs["axis"])
    out = writer.begin(op)
    writer.file.operator("CONCATENATION", sources, out, "ConcatenationOptions", axis=axis)


def _slice(writer: "Writer", op: Op) -> None:
    source, layout = writer.aligned(op.inputs[0], op.output), writer.layouts[op.inputs[0]]
    axis = layout.axis(op.attrs["axis"])
    window = slice(op.attrs["start"], op.attrs["stop"], op.attrs["step"])
    strided(writer, source, layout.file_shape, {axis: window}, writer.begin(op))


def strided(
    writer: "Writer", source: int, shape: tuple[int, ...], windows: dict[int, slice], out: int
) -> None:
    """``out`` is ``source[windows]``; without steps a SLICE, which delegates know."""
    ranges = [windows.get(axis, slice(None)).indices(size) for axis, size in enumerate(shape)]
    begin = [start for start, _, _ in ranges]
    steps = [step for _, _, step in ranges]
    sizes = [len(range(*part)) for part in ranges]
    if all(step == 1 for step in steps):
        rows, kind, options = [begin, sizes], "SLICE", "SliceOptions"
    else:
        ends = [b + s * (n - 1) + 1 for b, s, n in zip(begin, steps, sizes, strict=True)]
        rows, kind, options = [begin, ends, steps], "STRIDED_SLICE", "StridedSliceOptions"
    numbers = [writer.constant(np.asarray(row, np.int32)) for row in rows]
    writer.file.operator(kind, [source, *numbers], out, options)


def _pad(writer: "Writer", op: Op) -> None:
    source, layout = writer.aligned(op.inputs[0], op.output), writer.layouts[op.inputs[0]]
    margins = [op.attrs["padding"][axis] for axis in layout.perm]
    shape = layout.file_shape
    if op.attrs["mode"] != "constant":
        _repeated(writer, op, source, shape, margins)
        return
    if any(size < 0 for pair in margins for size in pair):
        windows = {
            axis: slice(max(-before, 0), size - max(-after, 0))
            for axis, ((before, after), size) in enumerate(zip(margins, shape, strict=True))
        }
        shape = tuple(len(range(*windows[axis].indices(size))) for axis, size in enumerate(shape))
        margins = [(max(before, 0), max(after, 0)) for before, after in margins]
        inner = any(map(any, margins))
        cropped = (
            writer.temporary(f"{op.output}/cropped", shape, op.output)
            if inner
            else writer.begin(op)
        )
        strided(writer, source, layout.file_shape, windows, cropped)
        if not inner:
            return
        source = cropped
    fill = np.float32(op.attrs["value"]) if writer.real(op) and op.attrs["value"] else None
    padded(writer, source, margins, writer.begin(op), fill)


def padded(
    writer: "Writer",
    source: int,
    margins: Any,
    out: int,
    fill: np.generic | None = None,
    like: str | None = None,
) -> None:
    """``out`` is ``source`` with margins of real zero, or of ``fill`` on the grid of ``like``."""
    sizes = writer.constant(np.asarray(margins, np.int32))
    if fill is None:
        writer.file.operator("PAD", [source, sizes], out, "PadOptions")
        return
    grid = None if like is None else writer.program.tensor(like).grid
    value = writer.constant(np.asarray([fill]), grid)
    writer.file.operator("PADV2", [source, sizes, value], out, "PadV2Options")


def _repeated(
    writer: "Writer", op: Op, source: int, shape: tuple[int, ...], margins: list[tuple[int, int]]
) -> None:
    """Padding with values that are there already: rows by their index, axis by axis."""
    axes = [axis for axis, margin in enumerate(margins) if margin != (0, 0)]
    sizes = list(shape)
    for axis in axes:
        index = np.pad(np.arange(shape[axis]), margins[axis], mode=_REPEATING[op.attrs["mode"]])
        sizes[axis] = index.size
        name = f"{op.output}/axis_{axis}"
        last = axis == axes[-1]
        made = writer.begin(op) if last else writer.temporary(name, tuple(sizes), op.output)
        rows = writer.constant(index.astype(np.int32))
        writer.file.operator("GATHER", [source, rows], made, "GatherOptions", axis=axis)
        source = made


def _expand(writer: "Writer", op: Op) -> None:
    layout = writer.layouts[op.output]
    source = writer.aligned(op.inputs[0], op.output)
    sizes = writer.constant(np.asarray(layout.file_shape, np.int32))
    out = writer.begin(op)
    writer.file.operator("BROADCAST_TO", [source, sizes], out, "BroadcastToOptions")


def _embedding(writer: "Writer", op: Op) -> None:
    sources = [writer.plain(name) for name in op.inputs]
    out = writer.begin(op, in_order=True)
    writer.file.operator("GATHER", sources, out, "GatherOptions", axis=0)


MOVES: dict[str, Callable[["Writer", Op], None]] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "expand": _expand,
    "embedding": _embedding,
}
