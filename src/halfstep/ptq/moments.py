"""Second moments of what a layer reads, in the float and in the quantized model, streamed.

They are all that the squared error of a layer's output depends on. For inputs ``x`` (float) and
``z`` (quantized), weights ``W`` and ``V``, and a bias that takes care of the means,

    E |W x - V z|^2 = tr((W* - V) H (W* - V)^T) + what no V can change,
    H = cov(z, z),   W* = W cov(x, z) H^-1

so that fitting ``V`` to the float output on quantized inputs is fitting it to ``W*``.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from halfstep.graph.match import Unit
from halfstep.graph.readers import shape_of
from halfstep.quant.rounding import lattice
from halfstep.quant.rounding.lattice import Array

POSITIONS = 1 << 13
POSITIONS_A_COLUMN = 32
"""Output positions that are looked at, over all samples, spread evenly: at least so many, and so
many for each column of the weight, whose moments they have to settle."""

DAMPING = 0.05
"""Share of the mean variance that is added to every variance."""

DISTRUST = 0.2
"""Share of every covariance that is given up beside what is noise.

Both stand for samples unlike those that were seen, which no statistics of these can know. On 256
photos of other classes than the ones it was rounded on, EfficientNet-Lite0 with 4-bit weights gains
three points by them, and loses less than one on those it was rounded on."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Means and covariances of the inputs of a layer, float64.

    Attributes:
        mean: of the float inputs, (groups, columns).
        mean_quantized: of the quantized ones.
        gram: ``H = cov(z, z)`` of the quantized inputs, shrunk and damped: positive definite.
        drift: ``cov(x - z, z)``, (groups, columns, columns).
        shrinkage: the share of what was measured beside the diagonal that was taken for noise.
        halves: the same of each half of the samples; empty in a half, or where there is one sample.
    """

    mean: Tensor
    mean_quantized: Tensor
    gram: Tensor
    drift: Tensor
    shrinkage: float
    halves: tuple["Moments", ...] = ()

    def with_means(self) -> "Moments":
        """Second moments that hold the means too: for a layer without a bias to take care of them.

        Its ``shift`` is not to be added then.
        """
        mean = self.mean_quantized
        return replace(
            self,
            gram=self.gram + mean[:, :, None] * mean[:, None],
            drift=self.drift + (self.mean - mean)[:, :, None] * mean[:, None],
            halves=tuple(half.with_means() for half in self.halves),
        )

    def target(self, weight: Tensor) -> Tensor:
        """``W*``: the weights, (groups, rows, columns), that do best on the quantized inputs."""
        return weight + self.confirmed(weight) * self._correction(weight)

    def confirmed(self, weight: Tensor) -> float:
        """The share of the correction of ``weight`` that holds on other samples, 0 to 1.

        Fitted to one half of the samples, ``c`` times a share ``a`` leaves on the other half the
        error ``E |W (x - z) - a c z|^2``, which is least at ``a = tr(W D c^T) / tr(c H c^T)``.
        """
        gain = size = 0.0
        for fitted, other in itertools.permutations(self.halves, 2):
            correction = fitted._correction(weight)
            gain += float(((weight @ other.drift) * correction).sum())
            size += float(((correction @ other.gram) * correction).sum())
        return min(max(gain / size, 0.0), 1.0) if size > 0 else 1.0

    def _correction(self, weight: Tensor) -> Tensor:
        """``W D H^-1``."""
        found: Tensor = torch.linalg.solve(self.gram, (weight @ self.drift).mT)
        return found.mT

    def shift(self, weight: Tensor, quantized: Tensor) -> Tensor:
        """What the bias has to gain so that the means of the outputs agree, (groups, rows)."""
        wanted = weight @ self.mean[..., None] - quantized @ self.mean_quantized[..., None]
        return wanted[..., 0]


@dataclass(frozen=True, eq=False)
class Problem:
    """The weights of one layer as ``quant.rounding.lattice`` wants them.

    Attributes:
        target: ``W*``, (groups, columns, rows).
        gram: ``H``, (groups, columns, columns).
    """

    target: Array
    gram: Array

    @classmethod
    def of(cls, weight: Tensor, found: Moments) -> "Problem":
        """For a weight as its layer has it, on the CPU, and the moments of its inputs."""
        wanted = found.target(by_groups(weight.double(), len(found.gram)))
        return cls(columns_first(wanted), found.gram.numpy().astype(np.float32))

    @property
    def groups(self) -> int:
        """How many groups the layer has."""
        return len(self.gram)

    def error(self, values: Array) -> float:
        """The squared error of the output with these weights, relative to its variance."""
        error, power = (
            float(lattice.squared_error(self.target, v, self.gram).sum())
            for v in (values, np.zeros_like(self.target))
        )
        return error / max(power, float(np.finfo(np.float32).tiny))


def by_groups(weight: Tensor, groups: int) -> Tensor:
    """A weight as its layer has it, as (groups, rows, columns)."""
    return weight.reshape(groups, len(weight) // groups, -1)


def columns_first(weight: Tensor, groups: int | None = None) -> Array:
    """(groups, rows, columns), or a weight as its layer has it, as (groups, columns, rows)."""
    grouped = weight if groups is None else by_groups(weight, groups)
    return np.ascontiguousarray(grouped.mT.numpy(), np.float32)


@dataclass
class _Sums:
    """Sums over positions, by how much they count: of x and z, of x z^T and z z^T."""

    count: float
    parts: list[Tensor]

    def __add__(self, other: "_Sums") -> "_Sums":
        parts = [a + b for a, b in zip(self.parts, other.parts, strict=True)]
        return _Sums(self.count + other.count, parts)

    def covariances(self) -> tuple[Tensor, Tensor]:
        """cov(x, z) and cov(z, z)."""
        mean, mean_quantized, cross, square = (part / self.count for part in self.parts)
        return (
            cross - mean[:, :, None] * mean_quantized[:, None],
            square - mean_quantized[:, :, None] * mean_quantized[:, None],
        )


def moments(
    unit: Unit,
    pairs: Iterable[tuple[Tensor, Tensor]],
    samples: int,
    importance: Sequence[Tensor] | None = None,
) -> Moments:
    """The moments of a convolution's or a linear layer's inputs.

    A few hundred samples do not settle the covariances of a thousand columns, and codes that are
    fitted to their noise fail on other samples. Two halves of the samples tell how much noise
    there is: with ``A`` and ``B`` their matrices beside the diagonal, ``|A - B|^2 / 4`` is the
    squared error to expect of their mean, and multiplying that mean by ``1 - |A - B|^2 / (4 |(A +
    B) / 2|^2)`` makes its error least (the shrinkage of Ledoit and Wolf 2004, towards the diagonal,
    with the noise measured and not assumed).

    Args:
        unit: the layer.
        pairs: for each batch, the input in the float and in the quantized model.
        samples: how many samples these batches hold.
        importance: for each batch, how much its positions count; ``None`` if all count alike.
    """
    halves: dict[int, _Sums] = {}
    every = max(1, positions(unit) * samples // max(POSITIONS, POSITIONS_A_COLUMN * _columns(unit)))
    for index, pair in enumerate(pairs):
        x, z = (patches(unit, value, index % every, every) for value in pair)
        rows = [x, z]
        if importance is not None:
            rows.append(patches(unit, importance[index][..., None], index % every, every))
        for half in (0, 1):
            # Positions of one sample are alike: halves are made of samples.
            found = _sums(*(_half(value, len(pair[0]), half) for value in rows))
            if found.count:
                halves[half] = halves[half] + found if half in halves else found
    if len(halves) == 1:
        return _moments(next(iter(halves.values())), 0.0)
    shrinkage = _noise(halves[0], halves[1])
    whole = _moments(halves[0] + halves[1], shrinkage)
    return replace(whole, halves=tuple(_moments(half, shrinkage) for half in halves.values()))


def _moments(sums: _Sums, shrinkage: float) -> Moments:
    cross, gram = sums.covariances()
    drift = cross - gram
    variances = gram.diagonal(dim1=-2, dim2=-1).clone()
    gram = gram * (1 - shrinkage) * (1 - DISTRUST)
    gram.diagonal(dim1=-2, dim2=-1).copy_(variances + _damping(variances.mean(-1))[:, None])
    mean, mean_quantized = (part / sums.count for part in sums.parts[:2])
    return Moments(mean, mean_quantized, gram, drift, shrinkage)


def _half(rows: Tensor, n_samples: int, half: int) -> Tensor:
    """The positions of every second sample."""
    by_sample = rows.reshape(len(rows), n_samples, -1, rows.shape[-1])
    return by_sample[:, half::2].flatten(1, 2)


def _sums(x: Tensor, z: Tensor, counts: Tensor | None = None) -> _Sums:
    mine, theirs = (x, z) if counts is None else (x * counts, z * counts)
    parts = [part.double() for part in (mine.sum(1), theirs.sum(1), mine.mT @ z, theirs.mT @ z)]
    return _Sums(x.shape[1] if counts is None else float(counts.sum()), parts)


def _noise(first: _Sums, second: _Sums) -> float:
    """The share of the whole, beside the diagonal, that is noise; between 0 and 1."""
    a, b = (_beside_diagonal(part.covariances()[1]) for part in (first, second))
    signal, noise = ((a + b) / 2).square().sum(), (a - b).square().sum() / 4
    return float((noise / signal).clamp(max=1)) if signal > 0 else 0.0


def _beside_diagonal(gram: Tensor) -> Tensor:
    return gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))


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
        tokens = x.reshape(len(x), -1, x.shape[-1])
        return tokens[:, first % tokens.shape[1] :: every].reshape(1, -1, x.shape[-1])
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
