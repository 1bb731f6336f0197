"""Traces of the Hessian, by Hutchinson's estimator, and the costs of bits that follow from them.

References: Z. Dong et al., "HAWQ-V2: Hessian aware trace-weighted quantization of neural networks",
arXiv 1911.03852, 2020, sections 3.1 and 3.3; M. Hutchinson, "A stochastic estimator of the trace of
the influence matrix", 1990.

Equations, with ``H`` the Hessian of the loss with respect to the ``n`` values of one site, and
``z`` vectors of independent signs, each +1 or -1 with probability one half:

    tr(H) = E[z^T H z]
    Omega(b) = tr(H) / n * |Q_b(x) - x|^2

``H z`` is the gradient of ``g^T z``, ``g`` the gradient of the loss: no Hessian is ever made.

All weights are probed at once, and then all activations, each with signs of its own. What two sites
have in common has mean zero, so that the estimates are unbiased, for one backward pass; but it adds
to their variance, for activations much, as each of them determines those behind it. The standard
error of each estimate is reported with it.

Without labels the loss is the cross-entropy with the float model's own distribution (soft
pseudo-labels). At the float weights its Hessian is the Fisher information, the curvature of
KL(float, quantized), and no trace is negative.

Deviations: of an activation, ``n`` counts the values of one sample, ``tr(H)`` is the mean over
samples, and so is ``|Q_b(x) - x|^2``; sites that share a quantizer are summed.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from halfstep.core.grid import Affine
from halfstep.errors import DataError
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.search.bit_costs import BitCosts, divided
from halfstep.search.candidates import Grids
from halfstep.search.samples import Batch, stream
from halfstep.search.states import applied
from halfstep.search.walk import Walk

PROBES = 32
"""Vectors of signs a batch."""


@dataclass(frozen=True)
class Traces:
    """The mean of the Hessian's diagonal at each site.

    Attributes:
        mean: ``tr(H) / n`` by site, of weights, activations and constants.
        error: the standard error of each, from the differences between probes.
        probes: vectors of signs a batch.
        samples: how many samples the loss is a mean over.
    """

    mean: Mapping[str, float]
    error: Mapping[str, float]
    probes: int
    samples: int

    def __post_init__(self) -> None:
        for name in ("mean", "error"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __str__(self) -> str:
        width = max((len(site) for site in self.mean), default=0)
        lines = [f"mean curvature, {self.probes} probes a batch, {self.samples} samples"]
        ranked = sorted(self.mean.items(), key=lambda item: -item[1])
        lines += [
            f"  {site:<{width}}  {value:.4g} +- {self.error[site]:.2g}" for site, value in ranked
        ]
        return "\n".join(lines)


def hessian_traces(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    probes: int = PROBES,
    seed: int = 0,
    progress: Progress = silent,
) -> Traces:
    """The curvature of the float model's loss at every site.

    Args:
        model: from ``prepare``; it is left as it was.
        data: a few small batches, with labels or without; read once. A batch is kept with all that
            two backward passes need: ask for small ones.
        probes: vectors of signs a batch, at least 2; the errors fall with the root of their number.
        seed: of the signs.
        progress: wraps the batches.

    Raises:
        DataError: no batch, or one whose outputs are no classes.
    """
    walk = Walk(model)
    generator = torch.Generator().manual_seed(seed)
    means: dict[str, float] = defaultdict(float)
    variances: dict[str, float] = defaultdict(float)
    samples = 0
    for batch in stream(model, data, progress, "traces"):
        values, output = walk.differentiable(batch.inputs)
        loss = cross_entropy(output, batch)
        for constant in (True, False):
            nodes = [node for node in values if walk.is_constant(node) is constant]
            found = hutchinson(loss, [values[node] for node in nodes], probes, generator)
            for node, estimates in zip(nodes, found, strict=True):
                n = values[node].numel() / (1 if constant else len(batch))
                share = len(batch) / n
                means[walk.site(node)] += share * float(estimates.mean())
                variances[walk.site(node)] += share**2 * float(estimates.var()) / probes
        samples += len(batch)
    mean = {site: total / samples for site, total in means.items()}
    error = {site: math.sqrt(variances[site]) / samples for site in mean}
    return Traces(mean, error, probes, samples)


def hutchinson(
    loss: Tensor, values: Sequence[Tensor], probes: int, generator: torch.Generator
) -> Tensor:
    """Estimates of the traces of the Hessian of ``loss``: (values, probes), float64.

    Args:
        loss: a scalar that depends on the values differentiably, twice.
        values: what to differentiate by, leaves or not; each has a trace of its own.
        probes: how many vectors of signs there are.
        generator: of the signs.
    """
    found = torch.zeros(len(values), probes, dtype=torch.float64)
    if not values:
        return found
    gradients = torch.autograd.grad(loss, values, create_graph=True, materialize_grads=True)
    for probe in range(probes):
        signs = [_signs(value, generator) for value in values]
        products = [(g * z).sum() for g, z in zip(gradients, signs, strict=True)]
        curved = [product for product in products if product.requires_grad]
        if not curved:  # a loss without curvature
            break
        images = torch.autograd.grad(
            torch.stack(curved).sum(), values, retain_graph=True, materialize_grads=True
        )
        for index, (image, z) in enumerate(zip(images, signs, strict=True)):
            found[index, probe] = (image * z).sum(dtype=torch.float64)
    return found


def cross_entropy(output: Tensor, batch: Batch) -> Tensor:
    """The mean over samples, with labels or with the float model's own distribution."""
    if output.ndim != 2:
        raise DataError(
            f"traces: asked for outputs of shape (samples, classes), found {tuple(output.shape)}; "
            "use bit_costs with metric='mse'"
        )
    if batch.labels is not None:
        return F.cross_entropy(output, batch.labels)
    return F.cross_entropy(output, batch.reference.clone().softmax(dim=-1))


def trace_costs(
    model: QuantizedModel,
    grids: Grids,
    traces: Traces,
    data: Iterable[Any],
    *,
    progress: Progress = silent,
) -> BitCosts:
    """``Omega(b)`` of every candidate.

    A negative trace, which labels or too few probes can give, counts as zero.

    Args:
        model: from ``prepare``; it is left as it was.
        grids: the candidates, from ``candidate_grids`` for this model.
        traces: of this model.
        data: batches for the perturbations of activations; read once.
        progress: wraps the batches.
    """
    constant: dict[tuple[str, int], float] = defaultdict(float)
    sampled: dict[tuple[str, int], float] = defaultdict(float)
    walk = Walk(model)
    samples = 0
    for batch in stream(model, data, progress, "perturbations"):
        with torch.inference_mode():
            for node, value in walk.values(batch.inputs):
                if walk.is_constant(node) and samples:
                    continue  # it was counted with the first batch
                sums = constant if walk.is_constant(node) else sampled
                site, curvature = walk.quantizers[node].site, max(traces.mean[walk.site(node)], 0)
                for bits, grid in grids[site].items():
                    sums[site, bits] += curvature * _squared_error(model, site, grid, value)
        samples += len(batch)
    costs = {
        site: {bits: constant[site, bits] + sampled[site, bits] / samples for bits in found}
        for site, found in grids.items()
    }
    return divided(model, "trace", costs)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, like.shape, generator=generator, dtype=like.dtype) * 2 - 1


def _squared_error(model: QuantizedModel, site: str, grid: Affine, value: Tensor) -> float:
    with applied(model, {site: grid}):
        moved = model.quantizer(site).fake_quantize(value)
    return float((moved - value).square().sum(dtype=torch.float64))
