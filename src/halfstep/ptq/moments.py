"""Second moments of what a layer reads, in the float and in the quantized model, streamed.

They are all that the squared error of a layer's output depends on. For inputs ``x`` (float) and
``z`` (quantized), weights ``W`` and ``V``, and a bias that takes care of the means,

    E |W x - V z|^2 = tr((W* - V) H (W* - V)^T) + what no V can change,
    H = cov(z, z),   W* = W cov(x, z) H^-1

so that fitting ``V`` to the float output on quantized inputs is fitting it to ``W*``.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from halfstep.graph.match import Unit
from halfstep.graph.readers import shape_of

POSITIONS = 1 << 17
"""Positions of a layer's output that are looked at, over all samples, spread evenly."""

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
        return torch.linalg.solve(self.gram, pulled.mT).mT

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
    every = max(1, -(-positions(unit) * samples // POSITIONS))
    for index, pair in enumerate(pairs):
        x, z = (patches(unit, value, index % every, every) for value in pair)
        count += x.shape[1]
        found = [part.double() for part in (x.sum(1), z.sum(1), x.mT @ z, z.mT @ z)]
        sums = [a.add_(b) for a, b in zip(sums, found, strict=True)] if sums else found
    mean, mean_quantized, cross, gram = (part / count for part in sums)
    cross = cross - mean[:, :, None] * mean_quantized[:, None]
    gram = gram - mean_quantized[:, :, None] * mean_quantized[:, None]
    variances = gram.diagonal(dim1=-2, dim2=-1)
    damping = DAMPING * variances.mean(-1).clamp(min=torch.finfo(torch.float32).tiny)
    gram.diagonal(dim1=-2, dim2=-1).add_(damping[:, None])
    return Moments(mean, mean_quantized, cross, gram, damping[:, None, None], count)


def positions(unit: Unit) -> int:
    """How many positions of its output a sample has."""
    shape = [abs(size) for size in shape_of(unit.head)]
    channels = shape[-1] if unit.kind == "linear" else shape[1]
    return int(torch.tensor(shape).prod()) // channels


def patches(unit: Unit, x: Tensor, first: int = 0, every: int = 1) -> Tensor:
    """What some output positions read: (groups, positions, columns).

    Args:
        unit: a convolution or a linear layer.
        x: its input.
        first: the first position, of those of all samples in a row.
        every: the distance from one position to the next.
    """
    if unit.kind == "linear":
        return x.reshape(-1, x.shape[-1])[first::every][None]
    assert unit.weight is not None
    x = F.pad(x, [size for pair in reversed(unit.attrs["padding"]) for size in pair])
    windows = x
    for axis, kernel in enumerate(shape_of(unit.weight)[2:]):
        stride, dilation = unit.attrs["stride"][axis], unit.attrs["dilation"][axis]
        windows = windows.unfold(2 + axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    places = (len(x), *windows.shape[2 : x.ndim])
    chosen = torch.arange(first, int(torch.tensor(places).prod()), every, device=x.device)
    sample, *where = torch.unravel_index(chosen, places)
    rows = windows[(sample, slice(None), *where)]
    return rows.reshape(len(chosen), unit.attrs["groups"], -1).transpose(0, 1)
