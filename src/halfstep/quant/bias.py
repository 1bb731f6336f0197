"""Biases: integers on the scale of the accumulator, as every integer kernel adds them.

They are int32, and wider where a target with wide accumulators multiplies operands of more than 8
bits (``Target.bias_type``).
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from halfstep.core.grid import Affine, power_of_two_above
from halfstep.core.qtype import INT32, QType
from halfstep.quant.quantizer import Quantizer


def largest_bias_code(qtype: QType) -> int:
    """An eighth of the type's range: room for the products beside the largest bias."""
    return 1 << (qtype.bits - 4)


LARGEST_BIAS_CODE = largest_bias_code(INT32)


def bias_grid(
    input_grid: Affine, weight_grid: Affine, n_channels: int, qtype: QType = INT32
) -> Affine:
    """Codes with scale ``f32(scale_in * scale_weight)`` and zero point 0.

    The groups of a transposed convolution share their weight scales, which are repeated then. Of
    the scales of a channel's groups it is the largest: the one that the channel would have alone.
    """
    weight_scale = weight_grid.channel_scale
    if weight_scale.ndim:
        weight_scale = np.tile(weight_scale, n_channels // weight_scale.size)
    scale = (input_grid.scale * weight_scale).astype(np.float32)
    return Affine(qtype, scale, np.zeros(scale.shape, np.int32), None if not scale.ndim else 0)


def bias_codes(bias: NDArray[np.float32], grid: Affine) -> NDArray[np.signedinteger]:
    """Codes of a bias, computed in float64, whose mantissa holds every code."""
    limit = largest_bias_code(grid.qtype)
    steps = np.rint(bias.astype(np.float64) / grid.scale.astype(np.float64))
    return np.clip(steps, -limit, limit).astype(grid.qtype.storage)


def widen_for_bias(
    weight_grid: Affine,
    bias: NDArray[np.float32],
    input_grid: Affine,
    qtype: QType = INT32,
    pow2: bool = False,
) -> Affine:
    """Raise the weight scales of channels whose bias code would be too large.

    A dead channel has tiny weights, so a tiny scale, and a bias that overflows on it. Its weights
    do not matter: a larger scale costs nothing.

    Args:
        weight_grid: symmetric.
        bias: (channels,).
        input_grid: of the activation that the weights multiply.
        qtype: of the codes of the bias.
        pow2: raise to a power of two.
    """
    limit = largest_bias_code(qtype)
    needed = np.abs(bias.astype(np.float64)) / (limit * np.float64(input_grid.scale))
    # Per tensor, or per channel of a group: the scale is one for several channels.
    needed = needed.reshape(-1, *weight_grid.channel_scale.shape).max(axis=0)
    # One part in 2^20 more, so that rounding to float32 never falls below what is needed.
    least = np.asarray(needed * (1 + 2.0**-20), np.float32)
    least = power_of_two_above(least) if pow2 else least
    if weight_grid.group_size is not None:
        least = least[:, None]
    return replace(weight_grid, scale=np.maximum(weight_grid.scale, least))


class BiasQuantizer(nn.Module):
    """Fake quantization of a bias, on the grids that its input and its weight have now."""

    def __init__(
        self, input_quantizer: Quantizer, weight_quantizer: Quantizer, qtype: QType = INT32
    ) -> None:
        super().__init__()
        self.enabled = True
        self.qtype = qtype
        # In a tuple, so that they are not registered, saved and counted a second time.
        self._sources = (input_quantizer, weight_quantizer)

    def grid(self, n_channels: int) -> Affine:
        """The grid that follows from the two sources."""
        input_quantizer, weight_quantizer = self._sources
        return bias_grid(input_quantizer.grid(), weight_quantizer.grid(), n_channels, self.qtype)

    def forward(self, bias: Tensor) -> Tensor:
        """The bias on its grid, with gradient 1."""
        watching = any(source.calibrator is not None for source in self._sources)
        if not self.enabled or watching or not all(s.enabled for s in self._sources):
            return bias
        scale = torch.tensor(self.grid(len(bias)).scale, dtype=torch.float64, device=bias.device)
        limit = float(largest_bias_code(self.qtype))
        steps = torch.round(bias.detach().double() / scale).clamp_(-limit, limit)
        moved = (steps * scale).to(bias.dtype)
        return moved + (bias - bias.detach()) if bias.requires_grad else moved
