"""Operations over windows as ONNX nodes, in forms that ONNX Runtime takes."""

from typing import TYPE_CHECKING, Any

import numpy as np

from halfstep.errors import ExportError
from halfstep.program.ir import Op

if TYPE_CHECKING:
    from halfstep.export.onnx_qdq import Writer

Margins = tuple[tuple[int, int], ...]


def pads(padding: Margins) -> list[int]:
    """ONNX's order: all beginnings, then all ends."""
    return [begin for begin, _ in padding] + [end for _, end in padding]


def padded(writer: "Writer", op: Op, value: str, fill: str) -> str:
    """The input of an operation over windows with its padding around it, in a node of its own."""
    margins = np.asarray(pads(((0, 0), (0, 0), *op.attrs["padding"])), np.int64)
    amounts = writer.constant(f"{op.output}/pads", margins)
    return writer.node("Pad", [value, amounts, fill], f"{op.output}/padded")


def conv(writer: "Writer", op: Op, inputs: list[str]) -> str:
    """A convolution or a transposed one; the name of its result."""
    attrs = {
        "strides": list(op.attrs["stride"]),
        "dilations": list(op.attrs["dilation"]),
        "group": op.attrs["groups"],
        "pads": pads(op.attrs["padding"]),
    }
    if op.kind == "conv_transpose":
        padding, added = _uncut(op)
        attrs |= {"pads": pads(padding), "output_padding": added}
        return writer.node("ConvTranspose", inputs, f"{op.output}/result", **attrs)
    return writer.node("Conv", inputs, f"{op.output}/result", **attrs)


def _uncut(op: Op) -> tuple[Margins, list[int]]:
    """Padding and output padding where rows that both cut off and add are left alone.

    It is the same result, and ONNX Runtime adds fewer rows than its stride alone.
    """
    stride, added, cut = (op.attrs[name] for name in ("stride", "output_padding", "padding"))
    both = [min(end, extra) for (_, end), extra in zip(cut, added, strict=True)]
    rest = [extra - n for extra, n in zip(added, both, strict=True)]
    if any(extra >= step for extra, step in zip(rest, stride, strict=True)):
        raise ExportError(
            f"{op.output}: a transposed convolution whose output padding {list(added)} exceeds its "
            f"padding by its stride {list(stride)} or more. Pad its output in a step of its own"
        )
    return tuple((begin, end - n) for (begin, end), n in zip(cut, both, strict=True)), rest


def pool(writer: "Writer", op: Op, inputs: list[str]) -> str:
    """A maximum or an average over windows; the name of its result."""
    margins, inputs = _within_kernel(writer, op, inputs)
    attrs: dict[str, Any] = {
        "kernel_shape": list(op.attrs["kernel"]),
        "strides": list(op.attrs["stride"]),
        "pads": pads(margins),
        "ceil_mode": int(op.attrs["ceil_mode"]),
    }
    if op.kind == "max_pool":
        return writer.node(
            "MaxPool", inputs, f"{op.output}/result", dilations=list(op.attrs["dilation"]), **attrs
        )
    if op.attrs["divisor"]:
        raise ExportError(f"{op.output}: an average with a divisor of its own has no form in ONNX")
    include = int(op.attrs["count_include_pad"])
    return writer.node(
        "AveragePool", inputs, f"{op.output}/result", count_include_pad=include, **attrs
    )


def _within_kernel(writer: "Writer", op: Op, inputs: list[str]) -> tuple[Margins, list[str]]:
    """Padding and inputs of a pool; padding of a maximum as wide as its kernel is a node."""
    margins, kernel = op.attrs["padding"], op.attrs["kernel"]
    wide = any(max(pair) >= size for pair, size in zip(margins, kernel, strict=True))
    if op.kind != "max_pool" or not wide:
        return margins, inputs
    tensor = writer.program.tensor(op.inputs[0])
    codes = tensor.grid is not None
    low = np.iinfo(tensor.dtype).min if codes else -np.inf
    lowest = writer.constant(f"{tensor.dtype}/lowest", np.array(low, tensor.dtype))
    return ((0, 0),) * len(margins), [padded(writer, op, inputs[0], lowest)]
