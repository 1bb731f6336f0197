"""Fake quantization: float values moved onto a grid, with a straight-through gradient.

The forward path is the one of ``core.grid``, in torch: true division, half to even, saturate,
then ``scale * (code - zero_point)``; the same float32 operations in the same order, so that it
equals ``dequantize(quantize(x))`` bit for bit.
"""

import math
from typing import Any

import torch
from torch import Tensor


def along(values: Tensor, axis: int | None, ndim: int) -> Tensor:
    """Reshape per-channel ``values`` so that they broadcast over a tensor of ``ndim`` axes."""
    if axis is None:
        return values
    return values.reshape([-1 if index == axis % ndim else 1 for index in range(ndim)])


def spread(
    values: Tensor, axis: int | None, shape: tuple[int, ...], group_size: int | None
) -> Tensor:
    """``values`` of scales, so that they broadcast over a tensor of ``shape``; see ``Affine``."""
    if group_size is None or axis is None:
        return along(values, axis, len(shape))
    axis %= len(shape)
    others = shape[:axis] + shape[axis + 1 :]
    each = values.repeat_interleave(group_size, dim=1)[:, : math.prod(others)]
    return each.reshape(-1, *others).movedim(0, axis)


class _FakeQuantize(torch.autograd.Function):
    """Gradient 1 where the code is inside of its type, 0 where it saturated."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
    ) -> Tensor:
        steps = torch.round(x / scale) + zero_point
        codes = steps.clamp(qmin, qmax)
        ctx.save_for_backward(steps == codes)
        return (codes - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    axis: int | None,
    group_size: int | None = None,
) -> Tensor:
    """``x`` on the grid.

    Args:
        x: float32 values.
        scale: shape (), (channels,) or (channels, groups).
        zero_point: float32 integers, the shape of ``scale``.
        qmin: smallest code.
        qmax: largest code.
        axis: the axis of ``x`` that the channels run along.
        group_size: how many values of a channel have one scale; ``None`` is all of them.

    Source:
        Krishnamoorthi 2018 (arXiv 1806.08342), section 2.4.2: the gradient passes where the value
        is inside the range, decided here on the rounded code.
    """
    scale, zero_point = (spread(v, axis, tuple(x.shape), group_size) for v in (scale, zero_point))
    if not (torch.is_grad_enabled() and x.requires_grad):
        # Without a gradient the intermediate results are overwritten: a third of the memory.
        codes = torch.div(x, scale).round_().add_(zero_point).clamp_(qmin, qmax)
        return codes.sub_(zero_point).mul_(scale)
    result: Tensor = _FakeQuantize.apply(x, scale, zero_point, qmin, qmax)  # type: ignore[no-untyped-call]
    return result
