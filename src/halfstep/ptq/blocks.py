"""The weight of any layer in one form: (groups, outputs, inputs, taps...), per group.

| layer          | its weight        |
|----------------|-------------------|
| conv           | (O, I / g, taps)  |
| conv_transpose | (I, O / g, taps)  |
| linear         | (O, I)            |

Output channel ``o`` belongs to group ``o // outputs``, input channel ``i`` to group
``i // inputs``. A depthwise convolution has as many groups as channels, and one input in each.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def blocks(kind: str, attrs: Mapping[str, Any], weight: Tensor) -> Tensor:
    """A view of ``weight``, (groups, outputs, inputs, taps...): to write into it changes it."""
    if kind == "linear":
        return weight[None, :, :, None]
    grouped = weight.view(attrs["groups"], -1, *weight.shape[1:])
    return grouped.transpose(1, 2) if kind == "conv_transpose" else grouped


def along_outputs(values: Tensor, parts: Tensor) -> Tensor:
    """Values of output channels, (O,), so that they broadcast over ``parts``."""
    return values.reshape(*parts.shape[:2], 1, *[1] * (parts.ndim - 3))


def along_inputs(values: Tensor, parts: Tensor) -> Tensor:
    """Values of input channels, (I,), so that they broadcast over ``parts``."""
    return values.reshape(parts.shape[0], 1, parts.shape[2], *[1] * (parts.ndim - 3))


def of_constant(parts: Tensor, values: Tensor) -> Tensor:
    """What a layer without bias makes of inputs that are constant over space: (I,) to (O,)."""
    inputs = values.reshape(parts.shape[0], parts.shape[2])
    return torch.einsum("goi,gi->go", parts.flatten(3).sum(3), inputs).flatten()
