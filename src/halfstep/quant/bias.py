"""Biases: int32 on the scale of the accumulator, as every integer kernel adds them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from halfstep.core.grid import Affine
from halfstep.core.qtype import INT32
from halfstep.quant.quantizer import Quantizer

# Room for the products in a 32-bit accumulator beside the largest bias.
LARGEST_BIAS_CODE = 2**28


def bias_grid(input_grid: Affine, weight_grid: Affine, n_channels: int) -> Affine:
    """int32 with scale ``f32(scale_in * scale_weight)`` and zero point 0.

    The groups of a transposed convolution share their weight scales, which are repeated then.
    """
    weight_scale = weight_grid.scale
    if weight_scale.ndim:
        weight_scale = np.tile(weight_scale, n_channels // weight_scale.size)
    scale = (input_grid.scale * weight_scale).astype(np.float32)
    return Affine(INT32, scale, np.zeros(scale.shape, np.int32), None if not scale.ndim else 0)


def bias_codes(bias: NDArray[np.float32], grid: Affine) -> NDArray[np.int32]:
    """Codes of a bias, computed in float64, whose mantissa holds every int32."""
    steps = np.rint(bias.astype(np.float64) / grid.scale.astype(np.float64))
    return np.clip(steps, -LARGEST_BIAS_CODE, LARGEST_BIAS_CODE).astype(np.int32)


def widen_for_bias(weight_grid: Affine, bias: NDArray[np.float32], input_grid: Affine) -> Affine:
    """Raise the weight scales of channels whose bias code would be too large.

    A dead channel has tiny weights, so a tiny scale, and a bias that overflows int32 on it. Its
    weights do not matter: a larger scale costs nothing.
    """
    needed = np.abs(bias.astype(np.float64)) / (LARGEST_BIAS_CODE * np.float64(input_grid.scale))
    # Per tensor, or per channel of a group: the scale is one for several channels.
    needed = needed.reshape(-1, *weight_grid.scale.shape).max(axis=0)
    # One part in 2^20 more, so that rounding to float32 never falls below what is needed.
    scale = np.maximum(weight_grid.scale, (needed * (1 + 2.0**-20)).astype(np.float32))
    return Affine(weight_grid.qtype, scale, weight_grid.zero_point, weight_grid.axis)


class BiasQuantizer(nn.Module):
    """Fake quantization of a bias, on the grids that its input and its weight have now."""

    def __init__(self, input_quantizer: Quantizer, weight_quantizer: Quantizer) -> None:
        super().__init__()
        self.enabled = True
        # In a tuple, so that they are not registered, saved and counted a second time.
        self._sources = (input_quantizer, weight_quantizer)

    def grid(self, n_channels: int) -> Affine:
        """The grid that follows from the two sources."""
        input_quantizer, weight_quantizer = self._sources
        return bias_grid(input_quantizer.grid(), weight_quantizer.grid(), n_channels)

    def forward(self, bias: Tensor) -> Tensor:
        """The bias on its grid, with gradient 1."""
        watching = any(source.calibrator is not None for source in self._sources)
        if not self.enabled or watching or not all(s.enabled for s in self._sources):
            return bias
        scale = torch.tensor(self.grid(len(bias)).scale, dtype=torch.float64, device=bias.device)
        limit = float(LARGEST_BIAS_CODE)
        steps = torch.round(bias.detach().double() / scale).clamp_(-limit, limit)
        moved = (steps * scale).to(bias.dtype)
        return moved + (bias - bias.detach()) if bias.requires_grad else moved
