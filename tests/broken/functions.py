"""Functions that are nearly the runtime's: right in the textbook, wrong in the last bits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from halfstep import functions


def _by_torch(function: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    return lambda x, **attributes: function(torch.from_numpy(x), **attributes).numpy()


def _without_fma(x: Any) -> Any:
    x = x.clip(-9, 9)
    above, below = (np.polyval(np.float32(coefficients), x * x) for coefficients in functions._TANH)
    return (above * x / below).astype(np.float32)


def _divided(x: Any) -> Any:
    return np.clip(x / np.float32(6) + np.float32(0.5), 0, 1).astype(np.float32)


FUNCTION_SPECIMENS: dict[str, Callable[..., Any]] = {
    "sigmoid": _by_torch(torch.sigmoid),
    "tanh": _without_fma,
    "erf": _by_torch(torch.erf),
    "gelu": _by_torch(F.gelu),
    "gelu by tanh": _by_torch(F.gelu),
    "hardsigmoid": _divided,
    "hardswish": _by_torch(F.hardswish),
}
