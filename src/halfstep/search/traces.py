"""Traces of the Hessian, by Hutchinson's estimator, and the costs of bits that follow from them.

References: Z. Dong et al., "HAWQ-V2: Hessian aware trace-weighted quantization of neural networks",
arXiv 1911.03852, 2020, sections 3.1 and 3.3; M. Hutchinson, "A stochastic estimator of the trace of
the influence matrix", 1990.

Equations, with ``H`` the Hessian of the loss with respect to the ``n`` values of one site, and
``z`` vectors of independent signs, each +1 or -1 with probability one half:

    tr(H) = E[z^T H z]
    Omega(b) = tr(H) / n * |Q_b(x) - x|^2

``H z`` is the gradient of ``g^T z``, ``g`` the gradient of the loss: no Hessian is ever made.

All sites are probed at once, each with signs of its own. The products between two sites have mean
zero, so that the estimate is unbiased; it needs more probes for the same precision than one site at
a time would, and costs one backward pass for all of them.

Without labels the loss is the cross-entropy with the float model's own distribution (soft
pseudo-labels). At the float weights its Hessian is the Fisher information, the curvature of
KL(float, quantized), and no trace is negative.

Deviations: of an activation, ``n`` counts the values of one sample, ``tr(H)`` is the mean over
samples, and so is ``|Q_b(x) - x|^2``; sites that share a quantizer are summed.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from halfstep.core.grid import Affine
from halfstep.errors import DataError
from halfstep.graph.calibrate import Watched
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.search.bit_costs import EVERY_WIDTH, BitCosts, Bits, candidate_grids, divided
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
        probes: vectors of signs a batch.
        samples: how many samples the loss is a mean over.
    """

    mean: Mapping[str, float]
    probes: int
    samples: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", MappingProxyType(dict(self.mean)))

    def __str__(self) -> str:
        width = max((len(site) for site in self.mean), default=0)
        lines = [f"mean curvature, {self.probes} probes a batch, {self.samples} samples"]
        ranked = sorted(self.mean.items(), key=lambda item: -item[1])
        return "\n".join(lines + [f"  {site:<{width}}  {value:.4g}" for site, value in ranked])


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
        probes: vectors of signs a batch; the estimate's error falls with the root of their number.
        seed: of the signs.
        progress: wraps the batches.

    Raises:
        DataError: no batch, or one whose outputs are no classes.
    """
    walk = Walk(model)
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, float] = {}
    samples = 0
    for batch in stream(model, data, progress, "traces"):
        values, output = _differentiable(walk, batch)
        found = hutchinson(cross_entropy(output, batch), list(values.values()), probes, generator)
        for node, trace in zip(values, found, strict=True):
            n = values[node].numel() / (1 if _constant(walk, node) else len(batch))
            sums[walk.site(node)] = sums.get(walk.site(node), 0.0) + trace / n * len(batch)
        samples += len(batch)
    return Traces({site: total / samples for site, total in sums.items()}, probes, samples)


def hutchinson(
    loss: Tensor, values: Sequence[Tensor], probes: int, generator: torch.Generator
) -> list[float]:
    """Estimates of the traces of the Hessian of ``loss``, one for each of ``values``.

    Args:
        loss: a scalar that depends on the values differentiably, twice.
        values: what to differentiate by, leaves or not.
        probes: how many vectors of signs the mean is over.
        generator: of the signs.
    """
    gradients = torch.autograd.grad(loss, values, create_graph=True, materialize_grads=True)
    sums = [0.0] * len(values)
    for _ in range(probes):
        signs = [_signs(value, generator) for value in values]
        products = [(g * z).sum() for g, z in zip(gradients, signs, strict=True)]
        curved = [product for product in products if product.requires_grad]
        if not curved:  # a loss without curvature
            break
        images = torch.autograd.grad(
            torch.stack(curved).sum(), values, retain_graph=True, materialize_grads=True
        )
        for index, (image, z) in enumerate(zip(images, signs, strict=True)):
            sums[index] += float((image * z).sum(dtype=torch.float64))
    return [total / probes for total in sums]


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
    watched: Watched,
    traces: Traces,
    data: Iterable[Any],
    *,
    weight_bits: Bits = EVERY_WIDTH,
    activation_bits: Bits = EVERY_WIDTH,
    progress: Progress = silent,
) -> BitCosts:
    """``Omega(b)`` of every candidate, on the ranges that the plan's rule finds for it.

    A negative trace, which labels or too few probes can give, counts as zero.

    Args:
        model: from ``prepare``; it is left as it was.
        watched: from ``halfstep.graph.calibrate.observe`` on this model.
        traces: of this model.
        data: batches for the perturbations of activations; read once.
        weight_bits: the candidates of weights.
        activation_bits: the candidates of activations.
        progress: wraps the batches.
    """
    grids = candidate_grids(model, watched, weight_bits, activation_bits)
    constant: dict[tuple[str, int], float] = defaultdict(float)
    sampled: dict[tuple[str, int], float] = defaultdict(float)
    walk = Walk(model)
    samples = 0
    for batch in stream(model, data, progress, "perturbations"):
        with torch.inference_mode():
            for node, value in _values(walk, batch):
                if _constant(walk, node) and samples:
                    continue  # it was counted with the first batch
                sums = constant if _constant(walk, node) else sampled
                site, curvature = walk.quantizers[node].site, max(traces.mean[walk.site(node)], 0)
                for bits, grid in grids[site].items():
                    sums[site, bits] += curvature * _squared_error(model, site, grid, value)
        samples += len(batch)
    costs = {
        site: {bits: constant[site, bits] + sampled[site, bits] / samples for bits in found}
        for site, found in grids.items()
    }
    return divided(model, "trace", costs)


def _differentiable(walk: Walk, batch: Batch) -> tuple[dict[fx.Node, Tensor], Tensor]:
    """The values that quantizers are called on, by their calls, and the output of the float model.

    The output depends on all of them differentiably, whether the model trains them or not.
    """
    sources = {walk.source(node) for node in walk.quantizers}
    live = walk.begin(batch.inputs)
    found: dict[fx.Node, Tensor] = {}
    with torch.enable_grad():
        for node in walk.nodes:
            if node in walk.quantizers:
                found[node] = live[walk.source(node)]
            walk.step(node, live, real=True)
            if node in sources and node.op in ("placeholder", "get_attr"):
                live[node] = live[node].detach().clone().requires_grad_()
    output: Tensor = live[walk.nodes[-1]]
    return found, output


def _values(walk: Walk, batch: Batch) -> Iterator[tuple[fx.Node, Tensor]]:
    """The values of the float model that quantizers are called on, one by one, by their calls."""
    live = walk.begin(batch.inputs)
    for node in walk.nodes:
        if node in walk.quantizers:
            yield node, live[walk.source(node)]
        walk.step(node, live, real=True)


def _constant(walk: Walk, node: fx.Node) -> bool:
    """Whether a quantizer is called on a weight or a constant, which has no samples."""
    return walk.source(node).op == "get_attr"


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, like.shape, generator=generator, dtype=like.dtype) * 2 - 1


def _squared_error(model: QuantizedModel, site: str, grid: Affine, value: Tensor) -> float:
    with applied(model, {site: grid}):
        moved = model.quantizer(site).fake_quantize(value)
    return float((moved - value).square().sum(dtype=torch.float64))
