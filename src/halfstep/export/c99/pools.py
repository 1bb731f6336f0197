"""Pools, and softmax: what looks at many codes of one channel."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from halfstep.core.softmax import integer_powers
from halfstep.export.c99.draft import Draft
from halfstep.export.c99.fields import SPACE, along, image, ratio_arrays
from halfstep.export.c99.numbers import mean_ratios, stored_offset
from halfstep.program.ir import Op


def softmax(draft: Draft, op: Op) -> None:
    """Exponentials of differences of codes come from a table of integers."""
    grid, out = draft.program.grid(op.inputs[0]), draft.program.grid(op.output)
    shape, x = draft.shape(op.output), draft.read(op.inputs[0])
    axis = op.attrs["axis"] % len(shape)
    inner = draft.steps_of(op.output)[axis]
    powers = integer_powers(grid.scale, grid.qtype.qmax - grid.qtype.qmin + 1)
    layer = draft.layer(
        "hs_softmax_layer",
        op.output,
        {
            "outer": draft.size(op.output) // (shape[axis] * inner),
            "length": shape[axis],
            "inner": inner,
            "powers": draft.constant(f"{op.output}/powers", powers.astype(np.uint32), "tables"),
            "steps": math.floor(np.float32(1) / out.scale),
            "out": draft.codes(op),
        },
    )
    call = f"hs_softmax({layer}, {x}, {draft.names[op.output]});"
    draft.add(op, [call], [x], "softmax", draft.size(op.output), [x])


def _window(draft: Draft, op: Op) -> dict[str, int]:
    """Geometry of a pool; one over all of space is a single window."""
    height, width, channels = image(draft.shape(op.inputs[0]))
    out_height, out_width, _ = image(draft.shape(op.output))
    whole: Mapping[str, Any] = {
        "kernel": (height, width),
        "stride": (1, 1),
        "padding": ((0, 0), (0, 0)),
    }
    attrs = whole if op.kind == "global_avg_pool" else op.attrs
    margins = [before for before, _ in attrs["padding"]]
    return {
        "in_height": height,
        "in_width": width,
        "channels": channels,
        "out_height": out_height,
        "out_width": out_width,
        **along("kernel_{}", SPACE, attrs["kernel"]),
        **along("stride_{}", "yx", attrs["stride"]),
        **along("dilation_{}", "yx", attrs.get("dilation", (1, 1))),
        **along("pad_{}", ("top", "left"), margins, 0),
    }


def max_pool(draft: Draft, op: Op) -> None:
    """The largest code of each window; padding never wins."""
    window, qtype = _window(draft, op), draft.program.grid(op.inputs[0]).qtype
    layer = draft.layer("hs_window", op.output, window)
    x = draft.read(op.inputs[0], channels_last=True)
    lowest = qtype.qmin - stored_offset(qtype)
    call = f"hs_max_pool({layer}, {lowest}, {x}, {draft.names[op.output]});"
    taps = draft.size(op.output) * window["kernel_height"] * window["kernel_width"]
    draft.add(op, [call], [x], "pool", taps)


def average(draft: Draft, op: Op) -> None:
    """Means over windows, or over all of space."""
    program, window = draft.program, _window(draft, op)
    height, width = window["in_height"], window["in_width"]
    counted = (0, height, 0, width)
    largest = window["kernel_height"] * window["kernel_width"]
    counts = [largest]
    if op.kind == "avg_pool":
        counts = _counts(op, largest)
        if op.attrs["count_include_pad"]:
            (top, bottom), (left, right) = ((0, 0), *op.attrs["padding"])[-2:]
            counted = (-top, height + bottom, -left, width + right)
    scales = (program.grid(name).scale for name in (op.inputs[0], op.output))
    ratios = mean_ratios(op.formula or "", counts, *scales)
    layer = draft.layer(
        "hs_average",
        op.output,
        {
            **{f"window.{key}": value for key, value in window.items()},
            **dict(zip(("top", "bottom", "left", "right"), counted, strict=True)),
            "in_zero": draft.zero(op.inputs[0]),
            "one_ratio": int(counts != list(range(1, largest + 1))),
            **ratio_arrays(draft, op, ratios),
            "out": draft.codes(op),
        },
    )
    x = draft.read(op.inputs[0], channels_last=True)
    call = f"hs_average_pool({layer}, {x}, {draft.names[op.output]}, sums);"
    taps = draft.size(op.output) * largest
    draft.add(op, [call], [x], "pool", taps, sums=window["channels"])


def _counts(op: Op, largest: int) -> list[int]:
    """How many values a window may average: one number for all, or each from 1."""
    if op.attrs["divisor"]:
        return [op.attrs["divisor"]]
    padded = any(map(any, op.attrs["padding"])) and not op.attrs["count_include_pad"]
    return list(range(1, largest + 1)) if padded or op.attrs["ceil_mode"] else [largest]
