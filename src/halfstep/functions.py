"""Functions of one value: what a table of codes is filled with.

In float32 and by torch, whose results the runtimes' own float kernels were measured to share on
every code (``docs/arithmetic.md``).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _clamp(x: Tensor, low: float | None, high: float | None) -> Tensor:
    return x.clamp(low, high)


def _gelu(x: Tensor, approximate: str) -> Tensor:
    return F.gelu(x, approximate=approximate)


def _leaky_relu(x: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(x, slope)


TABLES: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "clamp": _clamp,
    "leaky_relu": _leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": _gelu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}
