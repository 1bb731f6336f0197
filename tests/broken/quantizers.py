"""Deliberately broken quantizers: each has one fault, which a law must find."""

import copy
from typing import Any

import torch
from torch import Tensor

from halfstep.core.grid import Affine
from halfstep.core.spec import QuantSpec
from halfstep.quant.functional import along
from halfstep.quant.quantizer import Quantizer
from halfstep.quant.quantizers.ste import StraightThrough


class _OwnPath(StraightThrough):
    """Not broken: the straight-through forward path in parts, for its children to replace."""

    def fake_quantize(self, x: Tensor) -> Tensor:
        scale, zero_point = (
            along(values, self.spec.axis, x.ndim) for values in (self.scale, self.zero_point)
        )
        steps = self.steps(x.detach(), scale) + zero_point
        codes = self.saturate(steps)
        moved = self.real(codes, scale, zero_point)
        return moved + self.passes(x - x.detach(), steps == codes)

    def steps(self, x: Tensor, scale: Tensor) -> Tensor:
        return torch.round(x / scale)

    def saturate(self, codes: Tensor) -> Tensor:
        return codes.clamp(self.spec.qtype.qmin, self.spec.qtype.qmax)

    def real(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return (codes - zero_point) * scale

    def passes(self, zero: Tensor, inside: Tensor) -> Tensor:
        """A zero with the gradient of ``x``."""
        return torch.where(inside, zero, 0.0)


class InParts(_OwnPath):
    """Not broken: proves that the faults of the others are what is found."""


class ScaleOffByOnePercent(_OwnPath):
    """Gives values on a grid that is 1 % wider."""

    def real(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return super().real(codes, scale * 1.01, zero_point)


class ZeroPointOffByOne(_OwnPath):
    """Gives values that are one step too low."""

    def real(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return super().real(codes, scale, zero_point + 1)


class RoundHalfUp(_OwnPath):
    """Rounds ties up instead of to even."""

    def steps(self, x: Tensor, scale: Tensor) -> Tensor:
        return torch.floor(x / scale + 0.5)


class Reciprocal(_OwnPath):
    """Multiplies by the reciprocal of the scale, which rounds once more than a division."""

    def steps(self, x: Tensor, scale: Tensor) -> Tensor:
        return torch.round(x * (1 / scale))


class Wraps(_OwnPath):
    """Drops the high bits of a code that is too large."""

    def saturate(self, codes: Tensor) -> Tensor:
        low, high = self.spec.qtype.qmin, self.spec.qtype.qmax
        return torch.remainder(codes - low, high - low + 1) + low


class LosesTheLowestCode(_OwnPath):
    """Takes every type for a narrow one."""

    def saturate(self, codes: Tensor) -> Tensor:
        return codes.clamp(self.spec.qtype.qmin + 1, self.spec.qtype.qmax)


class HalfSteps(_OwnPath):
    """Rounds to halves of a step: values between the codes."""

    def steps(self, x: Tensor, scale: Tensor) -> Tensor:
        return torch.round(2 * x / scale) / 2


class UnclippedGradient(_OwnPath):
    """Passes the gradient where the value saturated, too."""

    def passes(self, zero: Tensor, inside: Tensor) -> Tensor:
        return zero


class NoGradient(_OwnPath):
    """Forgets that rounding has no gradient of its own."""

    def passes(self, zero: Tensor, inside: Tensor) -> Tensor:
        return zero * 0.0


class GridOfChannelZero(_OwnPath):
    """Uses the scale of the first channel for all."""

    def steps(self, x: Tensor, scale: Tensor) -> Tensor:
        return super().steps(x, scale.flatten()[0])


class ForgetsItsGrid(StraightThrough):
    """Keeps its scale out of the state dict."""

    def __init__(self, site: str, spec: QuantSpec, n_channels: int | None = None) -> None:
        super().__init__(site, spec, n_channels)
        self.register_buffer("scale", self.scale, persistent=False)


class SharesItsGrid(StraightThrough):
    """A copy writes into the grid of the original."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Quantizer:
        copied = copy.copy(self)
        copied._buffers = dict(self._buffers)
        return copied


class RoundsItsGrid(StraightThrough):
    """Keeps its scale as a half-precision number."""

    def set_grid(self, grid: Affine) -> None:
        super().set_grid(grid)
        self.scale.copy_(self.scale.half())
