"""Second moments of what a layer reads, in the float and in the quantized model, streamed.

They are all that the squared error of a layer's output depends on. For inputs ``x`` (float) and
``z`` (quantized), weights ``W`` and ``V``, and a bias that takes care of the means,

    E |W x - V z|^2 = tr((W* - V) H (W* - V)^T) + what no V can change,
    H = cov(z, z),   W* = W cov(x, z) H^-1

so that fitting ``V`` to the float output on quantized inputs is fitting it to ``W*``.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from halfstep.graph.match import Unit
from halfstep.graph.readers import shape_of

POSITIONS = 1 << 13
POSITIONS_A_COLUMN = 32
"""Output positions that are looked at, over all samples, spread evenly: at least so many, and so
many for each column of the weight, whose moments they have to settle."""

DAMPING = 1e-3
"""Share of the mean variance that is added to every variance: what is not known well stays."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Means and covariances of the inputs of a layer, float64.

    Attributes:
        mean: of the float inputs, (groups, columns).
        mean_quantized: of the quantized ones.
        cross: cov(x, z), float with quantized inputs, (groups, columns, columns).
        gram: cov(z, z) of the quantized inputs, damped: positive definite.
        damping: what was added to the variances, (groups, 1, 1).
        count: how many positions it is over.
    """

    mean: Tensor
    mean_quantized: Tensor
    cross: Tensor
    gram: Tensor
    damping: Tensor
    count: int

    def target(self, weight: Tensor) -> Tensor:
        """``W*``: the weights, (groups, rows, columns), that do best on the quantized inputs."""
        pulled = weight @ self.cross + self.damping * weight
        solved: Tensor = torch.linalg.solve(self.gram, pulled.mT)
        return solved.mT

    def shift(self, weight: Tensor, quantized: Tensor) -> Tensor:
        """What the bias has to gain so that the means of the outputs agree, (groups, rows)."""
        wanted = weight @ self.mean[..., None] - quantized @ self.mean_quantized[..., None]
        return wanted[..., 0]


def moments(unit: Unit, pairs: Iterable[tuple[Tensor, Tensor]], samples: int) -> Moments:
    """The moments of a convolution's or a linear layer's inputs.

    Args:
        unit: the layer.
        pairs: for each batch, the input in the float and in the quantized model.
        samples: how many samples these batches hold.
    """
    sums: list[Tensor] = []
    count = 0
    every = max(1, positions(unit) * samples // max(POSITIONS, POSITIONS_A_COLUMN * _columns(unit)))
    for index, pair in enumerate(pairs):
        x, z = (patches(unit, value, index % every, every) for value in pair)
        count += x.shape[1]
        found = [part.double() for part in (x.sum(1), z.sum(1), x.mT @ z, z.mT @ z)]
        sums = [a.add_(b) for a, b in zip(sums, found, strict=True)] if sums else found
    mean, mean_quantized, cross, gram = (part / count for part in sums)
    cross = cross - mean[:, :, None] * mean_quantized[:, None]
    gram = gram - mean_quantized[:, :, None] * mean_quantized[:, None]
    damping = _damping(gram.diagonal(dim1=-2, dim2=-1).mean(-1))
    gram.diagonal(dim1=-2, dim2=-1).add_(damping[:, None])
    return Moments(mean, mean_quantized, cross, gram, damping[:, None, None], count)


def _damping(variances: Tensor) -> Tensor:
    """A share of the mean variance of each group; of that of all groups, where one is dead."""
    typical = variances.mean()
    floor = typical * torch.finfo(torch.float32).eps if typical > 0 else torch.ones_like(typical)
    return DAMPING * torch.maximum(variances, floor)


def positions(unit: Unit) -> int:
    """How many positions of its output a sample has."""
    shape = [abs(size) for size in shape_of(unit.head)]
    channels = shape[-1] if unit.kind == "linear" else shape[1]
    return math.prod(shape) // channels


def _columns(unit: Unit) -> int:
    assert unit.weight is not None
    return math.prod(shape_of(unit.weight)[1:])


def patches(unit: Unit, x: Tensor, first: int = 0, every: int = 1) -> Tensor:
    """What some output positions read: (groups, positions, columns).

    Args:
        unit: a convolution or a linear layer.
        x: its input.
        first: which of them to begin with, below ``every``.
        every: one position in so many is looked at, on a regular lattice of each sample.
    """
    if unit.kind == "linear":
        return x.reshape(-1, x.shape[-1])[first::every][None]
    assert unit.weight is not None
    padding = [size for pair in reversed(unit.attrs["padding"]) for size in pair]
    windows = F.pad(x, padding) if any(padding) else x
    for axis, kernel in enumerate(shape_of(unit.weight)[2:]):
        stride, dilation = unit.attrs["stride"][axis], unit.attrs["dilation"][axis]
        windows = windows.unfold(2 + axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    # (samples, channels, *places, *kernel): a view, of which a regular part is copied
    n_axes = x.ndim - 2
    step = max(1, round(every ** (1 / n_axes)))
    offset = [first // step**axis % step for axis in range(n_axes)]
    for axis, begin in enumerate(offset):
        windows = windows.movedim(2 + axis, 0)[begin::step].movedim(0, 2 + axis)
    by_place = windows.movedim(1, 1 + n_axes)
    rows = by_place.reshape(by_place.shape[: 1 + n_axes].numel(), unit.attrs["groups"], -1)
    return rows.transpose(0, 1)
