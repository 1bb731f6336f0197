"""The numbers of bits that each site may have, each with the grid that it would get."""

from collections.abc import Mapping
from dataclasses import replace

from halfstep.catalog import find
from halfstep.core.grid import Affine
from halfstep.core.spec import QuantSpec
from halfstep.core.target import Target
from halfstep.errors import PlanError
from halfstep.graph.calibrate import Watched, grid_of, make_calibrator
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent

Bits = tuple[int, ...]
Grids = Mapping[str, Mapping[int, Affine]]
EVERY_WIDTH: Bits = (2, 3, 4, 5, 6, 7, 8)


def candidate_grids(
    model: QuantizedModel,
    watched: Watched,
    *,
    weight_bits: Bits = EVERY_WIDTH,
    activation_bits: Bits = EVERY_WIDTH,
    progress: Progress = silent,
) -> Grids:
    """For each site and number of bits, the grid by the plan's own rule for its range.

    All widths of an activation are read from one calibration. A site whose grid the kernel dictates
    has one candidate, the one that it has.

    Args:
        model: from ``prepare``; it is left as it was.
        watched: from ``halfstep.graph.calibrate.observe`` on this model.
        weight_bits: the candidates of weights.
        activation_bits: the candidates of activations.
        progress: wraps the sites.

    Raises:
        PlanError: the target does not take one of the widths.
    """
    target: Target = find("target", model.plan.target)
    _check(target, "weights", weight_bits, target.weight_bits)
    _check(target, "activations", activation_bits, target.activation_bits)
    weights = {model.weight_site(unit): unit.weight for unit in model.weighted_units()}
    grids: dict[str, dict[int, Affine]] = {}
    for site in progress((*weights, *model.activation_sites()), "ranges"):
        spec = model.quantizer(site).spec
        node = weights.get(site)
        grids[site] = {}
        for bits in widths(spec, activation_bits if node is None else weight_bits):
            wanted = with_bits(spec, bits)
            calibrator = make_calibrator(wanted)
            if node is None:
                calibrator.adopt(watched.calibrators[site])
            else:
                calibrator.update(model.parameter_of(node).detach())
            grids[site][bits] = grid_of(calibrator, wanted, site)
    return grids


def widths(spec: QuantSpec, bits: Bits) -> Bits:
    """The widths that a site may have: its own alone, where the kernel dictates the grid."""
    return (spec.qtype.bits,) if spec.dictated else bits


def with_bits(spec: QuantSpec, bits: int) -> QuantSpec:
    """The spec with another number of bits."""
    return replace(spec, qtype=replace(spec.qtype, bits=bits))


def _check(target: Target, what: str, bits: Bits, accepted: tuple[int, int]) -> None:
    if not bits or not all(accepted[0] <= b <= accepted[1] for b in bits):
        raise PlanError(
            f"{what}: asked for candidates of {', '.join(map(str, bits)) or 'no'} bits; target "
            f"'{target.name}' takes {accepted[0]} to {accepted[1]}"
        )
