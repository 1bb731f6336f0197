"""The cost of every candidate from a few backward passes: the Fisher information along its error.

References: S. Amari, "Natural gradient works efficiently in learning", 1998 (the divergence to
second order); Y. Li et al., "BRECQ: Pushing the limit of post-training quantization by block
reconstruction", arXiv 2102.05426, 2021, section 3.3 (the Fisher information in place of the Hessian
of a trained network).

Equations, with ``p`` the float model's distribution, ``e = Q_b(x) - x`` the error of one site at
``b`` bits, and ``g`` the gradient of ``-log p(y)`` at that site for a label ``y`` drawn from ``p``:

    KL(float, quantized) = 1/2 e^T F e + O(|e|^3),   F = E[g g^T]
    Omega(b) = 1/2 E[(g^T e)^2]

It is what ``bit_costs`` measures, to second order, for all candidates at once: one forward pass and
``probes`` backward passes a sample, whatever their number. Unlike a trace times ``|e|^2``
(``search.traces``) it knows the direction of the error: rounding that the network does not see
costs nothing.

Samples are differentiated one by one, so that ``g^T e`` is that of one label, for weights as well.
All probes of a sample share the error of a candidate: kept are ``probes`` gradients of every site.

Deviations: none of the references treats bits of activations, which are like any value here.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from halfstep.errors import DataError, unknown_name
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.search.bit_costs import BitCosts, divided
from halfstep.search.candidates import Grids
from halfstep.search.samples import stream
from halfstep.search.states import applied
from halfstep.search.walk import Walk

Candidate = tuple[str, int]
Draw = Callable[[torch.Generator], Tensor]

SEED = 0


def fisher_costs(
    model: QuantizedModel,
    grids: Grids,
    data: Iterable[Any],
    *,
    metric: str = "kl",
    probes: int = 8,
    progress: Progress = silent,
) -> BitCosts:
    """``Omega(b)`` of every candidate.

    Args:
        model: from ``prepare``; it is left as it was.
        grids: the candidates, from ``candidate_grids`` for this model.
        data: a few batches, labels unused; read once.
        metric: "kl" or "mse", as for ``bit_costs``.
        probes: labels, or directions of the output, drawn for each sample.
        progress: wraps the batches.

    Raises:
        UnknownNameError: of the metric.
        DataError: no batch, or one whose outputs are no classes, for "kl".
    """
    if metric not in _PROBES:
        raise unknown_name("error that can be summed", metric, _PROBES)
    generator = torch.Generator().manual_seed(SEED)
    squares: dict[Candidate, float] = defaultdict(float)
    walk, size = Walk(model), 0.0
    for batch in stream(model, data, progress, "fisher"):
        for index in range(len(batch)):
            values, output = walk.differentiable(tuple(v[index : index + 1] for v in batch.inputs))
            draw, weight = _PROBES[metric](output)
            size += weight
            gradients = [
                torch.autograd.grad(
                    draw(generator),
                    list(values.values()),
                    retain_graph=True,
                    materialize_grads=True,
                )
                for _ in range(probes)
            ]
            for candidate, square in _along_errors(walk, grids, values, gradients).items():
                squares[candidate] += square / probes
    costs = {
        site: {bits: squares[site, bits] / size for bits in found} for site, found in grids.items()
    }
    return divided(model, f"fisher {metric}", costs)


def _along_errors(
    walk: Walk,
    grids: Grids,
    values: Mapping[fx.Node, Tensor],
    gradients: Sequence[tuple[Tensor, ...]],
) -> dict[Candidate, float]:
    """``(g^T e)^2`` of each candidate, summed over the probes of one sample."""
    products: dict[Candidate, Tensor] = {}
    for index, (node, value) in enumerate(values.items()):
        quantizer = walk.quantizers[node]
        directions = torch.stack([gradient[index].flatten() for gradient in gradients])
        for bits, grid in grids[quantizer.site].items():
            with torch.no_grad(), applied(walk.model, {quantizer.site: grid}):
                error = quantizer.fake_quantize(value.detach()) - value
            along = directions @ error.flatten()
            # Values that share a grid have one error together.
            candidate = (quantizer.site, bits)
            products[candidate] = products[candidate] + along if candidate in products else along
    return {c: float(p.square().sum(dtype=torch.float64)) for c, p in products.items()}


def _labels(output: Tensor) -> tuple[Draw, float]:
    """``-log p`` of a label drawn anew in each call; and what its square is divided by."""
    if output.ndim != 2:
        raise DataError(
            f"kl: asked for outputs of shape (samples, classes), found {tuple(output.shape)}; "
            "use metric='mse'"
        )
    log_p = output.log_softmax(dim=-1)
    p = log_p.detach().exp()

    def draw(generator: torch.Generator) -> Tensor:
        return -log_p.gather(1, torch.multinomial(p, 1, generator=generator)).sum()

    return draw, 2.0


def _directions(output: Tensor) -> tuple[Draw, float]:
    """The output along signs drawn anew in each call; and what its square is divided by."""

    def draw(generator: torch.Generator) -> Tensor:
        signs = torch.randint(0, 2, output.shape, generator=generator, dtype=output.dtype) * 2 - 1
        return (output * signs).sum()

    return draw, float(output.detach().square().sum(dtype=torch.float64))


_PROBES: Mapping[str, Callable[[Tensor], tuple[Draw, float]]] = {
    "kl": _labels,
    "mse": _directions,
}
