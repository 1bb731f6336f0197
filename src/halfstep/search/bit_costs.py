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

from halfstep.catalog import find
from halfstep.core.grid import Affine
from halfstep.core.spec import QuantSpec
from halfstep.core.target import Target
from halfstep.errors import PlanError, unknown_name
from halfstep.graph.calibrate import Watched, grid_of, make_calibrator
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.search.samples import Scores, stream
from halfstep.search.states import (
    activation_sites,
    only,
    weight_site,
    weight_sites,
    weighted_units,
)
from halfstep.search.walk import Branches

Bits = tuple[int, ...]
EVERY_WIDTH: Bits = (2, 3, 4, 5, 6, 7, 8)


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
    watched: Watched,
    data: Iterable[Any],
    *,
    weight_bits: Bits = EVERY_WIDTH,
    activation_bits: Bits = EVERY_WIDTH,
    metric: str = "kl",
    progress: Progress = silent,
) -> BitCosts:
    """Measure every candidate of every site on the output.

    Args:
        model: from ``prepare``; it is left as it was.
        watched: from ``halfstep.graph.calibrate.observe`` on this model.
        data: a few batches; read once, one at a time.
        weight_bits: the candidates of weights.
        activation_bits: the candidates of activations.
        metric: "kl" of the outputs' softmax, or "mse" of the outputs.
        progress: wraps the batches.

    Raises:
        PlanError: the target does not take one of the widths.
        UnknownNameError: of the metric.
        DataError: no batch, or one that does not fit the model or the metric.
    """
    if metric not in ("kl", "mse"):
        raise unknown_name("error that can be summed", metric, ("kl", "mse"))
    grids = candidate_grids(model, watched, weight_bits, activation_bits)
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
    weights = {site: costs[site] for site in weight_sites(model)}
    activations = {site: costs[site] for site in activation_sites(model)}
    return BitCosts(measure, weights, activations)


def candidate_grids(
    model: QuantizedModel, watched: Watched, weight_bits: Bits, activation_bits: Bits
) -> dict[str, dict[int, Affine]]:
    """For each site and number of bits, the grid by the plan's own rule for ranges."""
    target: Target = find("target", model.plan.target)
    _check(target, "weights", weight_bits, target.weight_bits)
    _check(target, "activations", activation_bits, target.activation_bits)
    grids: dict[str, dict[int, Affine]] = {}
    for unit in weighted_units(model):
        site = weight_site(model, unit)
        grids.setdefault(site, {})
        assert unit.weight is not None
        weight = model.parameter_of(unit.weight).detach()
        for bits in weight_bits:
            spec = with_bits(model.quantizer(site).spec, bits)
            found = make_calibrator(spec)
            found.update(weight)
            grids[site][bits] = grid_of(found, spec, site)
    for site in activation_sites(model):
        spec = model.quantizer(site).spec
        grids[site] = {}
        for bits in candidates(spec, activation_bits):
            wanted = with_bits(spec, bits)
            found = make_calibrator(wanted).adopt(watched.calibrators[site])
            grids[site][bits] = grid_of(found, wanted, site)
    return grids


def candidates(spec: QuantSpec, bits: Bits) -> Bits:
    """The widths that a site may have: its own alone, where the kernel dictates the grid."""
    return (spec.qtype.bits,) if spec.calibrator == "unit_interval" else bits


def with_bits(spec: QuantSpec, bits: int) -> QuantSpec:
    """The spec with another number of bits."""
    return replace(spec, qtype=replace(spec.qtype, bits=bits))


def _check(target: Target, what: str, bits: Bits, accepted: tuple[int, int]) -> None:
    if not bits or not all(accepted[0] <= b <= accepted[1] for b in bits):
        raise PlanError(
            f"{what}: asked for candidates of {', '.join(map(str, bits)) or 'no'} bits; target "
            f"'{target.name}' takes {accepted[0]} to {accepted[1]}"
        )
