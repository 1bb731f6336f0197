"""What each number of bits costs at each site: the error that it alone makes at the output.

Reference: Y. Cai et al., "ZeroQ: A novel zero shot quantization framework", arXiv 2001.00281, 2020,
equations 3 and 4: ``Omega_i(b) = 1/N sum KL(M(theta), M(theta_i(b)))`` with site ``i`` alone at
``b`` bits, and the sum of ``Omega_i(b_i)`` as the error of a network.

Deviations: the paper measures weights; activations are measured the same way, each site apart from
the weights. Ranges are found by the rule that the plan has for the site, for the number of bits at
hand: all widths of an activation are read from one calibration.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from halfstep.errors import unknown_name
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.search.candidates import Grids
from halfstep.search.samples import Scores, stream
from halfstep.search.states import only
from halfstep.search.walk import Branches

SUMMABLE = ("kl", "mse")
"""The metrics that are errors, which are added up over sites."""


@dataclass(frozen=True)
class BitCosts:
    """The predicted error of every candidate.

    Attributes:
        measure: what the costs are.
        weights: by the site of each quantized weight, the cost of each number of bits.
        activations: by the site of each quantizer of activations, the same; a site whose grid the
            kernel dictates has one candidate, the one that it has.
    """

    measure: str
    weights: Mapping[str, Mapping[int, float]]
    activations: Mapping[str, Mapping[int, float]]

    def __post_init__(self) -> None:
        for name in ("weights", "activations"):
            table = {site: MappingProxyType(dict(c)) for site, c in getattr(self, name).items()}
            object.__setattr__(self, name, MappingProxyType(table))

    def scaled(self, *, weights: float) -> "BitCosts":
        """Costs for weights that lose this share of what nearest rounding loses.

        Methods that round the weights of a layer together, after the bits were chosen, leave a
        fifth to two fifths of it (``ptq.round_weights``, on EfficientNet-Lite0); bits are then
        better spent on activations.
        """
        cheaper = {s: {b: c * weights for b, c in t.items()} for s, t in self.weights.items()}
        return replace(self, weights=cheaper)

    def __str__(self) -> str:
        rows = {**self.weights, **self.activations}
        width = max((len(site) for site in rows), default=0)
        lines = [f"{self.measure} of one site alone, by its bits"]
        for site, costs in rows.items():
            listed = "  ".join(f"{bits}: {cost:.3g}" for bits, cost in costs.items())
            lines.append(f"  {site:<{width}}  {listed}")
        return "\n".join(lines)


def bit_costs(
    model: QuantizedModel,
    grids: Grids,
    data: Iterable[Any],
    *,
    metric: str = "kl",
    progress: Progress = silent,
) -> BitCosts:
    """Measure every candidate of every site on the output.

    Args:
        model: from ``prepare``; it is left as it was.
        grids: the candidates, from ``candidate_grids`` for this model.
        data: a few batches; read once, one at a time, and run from each site on for each candidate.
        metric: "kl" of the outputs' softmax, or "mse" of the outputs.
        progress: wraps the batches.

    Raises:
        UnknownNameError: of the metric.
        DataError: no batch, or one that does not fit the model or the metric.
    """
    if metric not in SUMMABLE:
        raise unknown_name("error that can be summed", metric, SUMMABLE)
    scores: Scores[tuple[str, int]] = Scores(metric)
    variants = {(s, b): {s: grid} for s, found in grids.items() for b, grid in found.items()}
    branches = Branches(model, variants, only(model, ()))
    for batch in stream(model, data, progress, "bits"):
        scores.begin(batch)
        branches.run(batch.inputs, scores.add)
    costs = {site: {b: scores.value((site, b)) for b in found} for site, found in grids.items()}
    return divided(model, metric, costs)


def divided(
    model: QuantizedModel, measure: str, costs: Mapping[str, Mapping[int, float]]
) -> BitCosts:
    """Costs of all sites as those of weights and of activations."""
    weights = {site: costs[site] for site in model.weight_sites()}
    activations = {site: costs[site] for site in model.activation_sites()}
    return BitCosts(measure, weights, activations)
