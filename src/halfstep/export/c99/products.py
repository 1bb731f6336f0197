"""Sums of products: convolutions, linear layers, and products of two activations."""

from typing import Any

import array_api_compat.numpy
import numpy as np
from numpy.typing import NDArray

from halfstep.errors import ExportError
from halfstep.export.c99.draft import Draft
from halfstep.export.c99.fields import SPACE, along, image, ratio_arrays
from halfstep.export.c99.numbers import packed, packed_bits, sum_ratios
from halfstep.program.bounds import weight_scales
from halfstep.program.ir import Op
from halfstep.program.kernels.weighted import as_convolution


def conv(draft: Draft, op: Op) -> None:
    """A convolution, or a transposed one: the same with the kernel turned and pixels spread."""
    attrs, weight = op.attrs, draft.program.constant(op.inputs[1])
    strides, margins = attrs["stride"], [before for before, _ in attrs["padding"]]
    spread = (1,) * len(strides)
    if op.kind == "conv_transpose":
        weight = as_convolution(array_api_compat.numpy, weight, attrs["groups"])
        spread, strides = strides, spread
        margins = [
            d * (k - 1) - m
            for d, k, m in zip(attrs["dilation"], weight.shape[2:], margins, strict=True)
        ]
    groups = attrs["groups"]
    height, width, channels = image(draft.shape(op.inputs[0]))
    out_height, out_width, out_channels = image(draft.shape(op.output))
    depthwise = groups == channels == out_channels > 1 and op.kind == "conv"
    flat = weight.reshape(*weight.shape[:2], -1)
    rows = flat[:, 0].T if depthwise else flat.swapaxes(1, 2).reshape(len(weight), -1)
    geometry = {
        "in_height": height,
        "in_width": width,
        "in_channels": channels,
        "out_height": out_height,
        "out_width": out_width,
        "out_channels": out_channels,
        **along("kernel_{}", SPACE, weight.shape[2:]),
        **along("stride_{}", "yx", strides),
        **along("dilation_{}", "yx", attrs["dilation"]),
        **along("pad_{}", ("top", "left"), margins, 0),
        **along("spread_{}", "yx", spread),
        "groups": groups,
    }
    _sums_of_products(draft, op, geometry, rows, depthwise)


def linear(draft: Draft, op: Op) -> None:
    """A 1x1 convolution: every row of the input is a pixel."""
    weight = draft.program.constant(op.inputs[1])
    n_rows = draft.size(op.inputs[0]) // weight.shape[1]
    geometry = {
        "in_height": 1,
        "in_width": n_rows,
        "in_channels": weight.shape[1],
        "out_height": 1,
        "out_width": n_rows,
        "out_channels": weight.shape[0],
        **dict.fromkeys(("kernel_height", "kernel_width", "stride_y", "stride_x"), 1),
        **dict.fromkeys(("dilation_y", "dilation_x", "spread_y", "spread_x", "groups"), 1),
    }
    _sums_of_products(draft, op, geometry, weight, depthwise=False)


def _sums_of_products(
    draft: Draft, op: Op, geometry: dict[str, int], rows: NDArray[Any], depthwise: bool
) -> None:
    program, n_outputs = draft.program, geometry["out_channels"]
    weight = program.grid(op.inputs[1])
    bits = packed_bits(weight.qtype)
    scales = np.broadcast_to(weight_scales(op, weight), (n_outputs,))
    scale_out = program.grid(op.output).scale
    ratios = sum_ratios(op.formula or "", program.grid(op.inputs[0]).scale, scales, scale_out)
    bias = program.constant(op.inputs[2]) if len(op.inputs) > 2 else np.zeros(n_outputs)
    layer = draft.layer(
        "hs_conv",
        op.output,
        {
            **geometry,
            "in_zero": draft.zero(op.inputs[0]),
            "weight_bits": bits,
            "weights": draft.constant(op.inputs[1], packed(rows, bits), "weights"),
            "bias": draft.constant(f"{op.output}/bias", bias.astype(np.int32), "biases"),
            **ratio_arrays(draft, op, ratios),
            "out": draft.codes(op),
        },
    )
    source, out = draft.read(op.inputs[0], op.kind != "linear"), draft.names[op.output]
    kernel = f"{'depthwise' if depthwise else 'conv'} {'int8' if bits == 8 else 'packed'}"
    if depthwise:
        call = f"hs_depthwise_conv2d({layer}, {source}, {out}, sums);"
        draft.add(op, [call], [source], kernel, op.macs, sums=n_outputs)
        return
    call = f"hs_conv2d({layer}, {source}, {out}, patch);"
    draft.add(op, [call], [source], kernel, op.macs, patch=rows.shape[1])


def matmul(draft: Draft, op: Op) -> None:
    """Row-major matrices, each with its own number of batches, or one for all."""
    program = draft.program
    *_, n_rows, inner = draft.shape(op.inputs[0])
    columns = draft.shape(op.inputs[1])[-1]
    n_batches = draft.size(op.output) // (n_rows * columns)
    sizes = [draft.size(name) for name in op.inputs]
    each = n_rows * inner, inner * columns
    if any(size not in (one, one * n_batches) for size, one in zip(sizes, each, strict=True)):
        raise ExportError(
            f"{op.output}: a product of {draft.shape(op.inputs[0])} and "
            f"{draft.shape(op.inputs[1])} repeats a part of the batches, and the kernel in C "
            "repeats all or none; expand the smaller operand in the model"
        )
    first, second = (program.grid(name) for name in op.inputs)
    scale_out = program.grid(op.output).scale / np.float32(op.attrs["alpha"])
    ratio = sum_ratios(op.formula or "", first.scale, second.scale, scale_out)
    steps = [one if size > one else 0 for size, one in zip(sizes, each, strict=True)]
    layer = draft.layer(
        "hs_matmul",
        op.output,
        {
            "batches": n_batches,
            "rows": n_rows,
            "inner": inner,
            "columns": columns,
            "a_batch": steps[0],
            "b_batch": steps[1],
            **{f"{x}_zero": draft.zero(n) for x, n in zip("ab", op.inputs, strict=True)},
            "ratio": ratio.one,
            "rounding": ratio.rounding,
            "out": draft.codes(op),
        },
    )
    a, b = (draft.read(name, channels_last=False) for name in op.inputs)
    call = f"hs_multiply_matrices({layer}, {a}, {b}, {draft.names[op.output]}, patch);"
    draft.add(op, [call], [a, b], "matmul", op.macs, patch=inner)
