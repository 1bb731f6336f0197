"""The steps of a random network: what each kind computes, as a module made from plain options.

``LAYERS[kind](shapes, **options)`` makes the module of a step that reads values of these shapes,
each without the batch. Options are numbers, names and tuples, so that a network can be printed and
read back.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, ...]
Layer = Callable[..., nn.Module]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.75),
    "clamp": lambda x: x.clamp(max=0.5),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "leaky_relu_up": lambda x: F.leaky_relu(x, 1.5),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "abs": torch.abs,
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "softplus": F.softplus,
    "mish": F.mish,
    "log_sigmoid": F.logsigmoid,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "minimum": torch.minimum,
    "div": lambda x, y: x / (y.sigmoid() + 1),
}


class Applied(nn.Module):
    """A function of tensors as a module, so that its operations are named after their step."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Tensor) -> Tensor:
        """The function of the values."""
        return self.function(*values)


class WithConstant(nn.Module):
    """A binary operation with a constant."""

    def __init__(self, op: str, shape: Shape, left: bool) -> None:
        super().__init__()
        self.op, self.left = op, left
        self.constant = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        """The constant is the first or the second operand."""
        operands = (self.constant, x) if self.left else (x, self.constant)
        return BINARY[self.op](*operands)


def _conv(
    shapes: list[Shape], *, padding: tuple[tuple[int, int], ...], **options: Any
) -> nn.Module:
    n_axes = len(shapes[0]) - 1
    layer = (nn.Conv1d, nn.Conv2d)[n_axes - 1]
    if all(before == after for before, after in padding):
        return layer(shapes[0][0], padding=[before for before, _ in padding], **options)
    flat = [size for pair in reversed(padding) for size in pair]
    zeros = (nn.ConstantPad1d, nn.ConstantPad2d)[n_axes - 1](flat, 0.0)
    return nn.Sequential(zeros, layer(shapes[0][0], **options))


def _conv_transpose(shapes: list[Shape], **options: Any) -> nn.Module:
    layer = (nn.ConvTranspose1d, nn.ConvTranspose2d)[len(shapes[0]) - 2]
    return layer(shapes[0][0], **options)


def _max_pool(shapes: list[Shape], **options: Any) -> nn.Module:
    return (nn.MaxPool1d, nn.MaxPool2d)[len(shapes[0]) - 2](**options)


def _avg_pool(shapes: list[Shape], **options: Any) -> nn.Module:
    return (nn.AvgPool1d, nn.AvgPool2d)[len(shapes[0]) - 2](**options)


def _global_pool(shapes: list[Shape]) -> nn.Module:
    return (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[len(shapes[0]) - 2](1)


def _batch_norm(shapes: list[Shape]) -> nn.Module:
    return (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[len(shapes[0]) - 1](shapes[0][0])


def _reduced(shapes: list[Shape], *, op: str, axes: Shape, keepdim: bool) -> nn.Module:
    del shapes
    return Applied(lambda x: getattr(torch, op)(x, axes, keepdim=keepdim))


def _matmul(shapes: list[Shape], *, scale: float) -> nn.Module:
    def product(x: Tensor, y: Tensor) -> Tensor:
        found = x @ y.transpose(-1, -2)
        return found if scale == 1 else found * scale

    del shapes
    return Applied(product)


def _attention(shapes: list[Shape]) -> nn.Module:
    del shapes
    return Applied(lambda x: F.scaled_dot_product_attention(x, x, x))


def _slice(shapes: list[Shape], *, axis: int, start: int, stop: int, step: int) -> nn.Module:
    index = [slice(None)] * len(shapes[0])
    index[axis - 1] = slice(start, stop, step)
    return Applied(lambda x: x[:, *index])


def _upsample(shapes: list[Shape], *, factor: int, mode: str) -> nn.Module:
    del shapes
    return nn.Upsample(scale_factor=factor, mode=mode)


def _applied(shapes: list[Shape], *, function: str) -> nn.Module:
    del shapes
    return Applied(ACTIVATIONS[function])


LAYERS: dict[str, Layer] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": lambda shapes, **options: nn.Linear(shapes[0][-1], **options),
    "batch_norm": _batch_norm,
    "layer_norm": lambda shapes, affine: nn.LayerNorm(shapes[0][-1], elementwise_affine=affine),
    "prelu": lambda shapes: nn.PReLU(shapes[0][0]),
    "embedding": lambda shapes, rows, columns: nn.Embedding(rows, columns),
    "matmul": _matmul,
    "attention": _attention,
    "binary": lambda shapes, op: Applied(BINARY[op]),
    "constant": lambda shapes, op, shape, left: WithConstant(op, shape, left),
    "scalar": lambda shapes, op, value: Applied(lambda x: BINARY[op](x, value)),
    "activation": _applied,
    "softmax": lambda shapes, axis: nn.Softmax(axis),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_pool": _global_pool,
    "reduce": _reduced,
    "concat": lambda shapes, axis: Applied(lambda *values: torch.cat(values, axis)),
    "flatten": lambda shapes: nn.Flatten(),
    "split": lambda shapes, sizes: nn.Unflatten(1, sizes),
    "transpose": lambda shapes, perm: Applied(lambda x: x.permute(0, *perm)),
    "slice": _slice,
    "pad": lambda shapes, sizes, mode, value: Applied(lambda x: F.pad(x, sizes, mode, value)),
    "expand": lambda shapes, times: Applied(
        lambda x: x.unsqueeze(1).expand(-1, times, *[-1] * len(shapes[0]))
    ),
    "upsample": _upsample,
}
