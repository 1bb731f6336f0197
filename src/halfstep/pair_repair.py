"""Make the sums of pairs of products fit int16, channel by channel, at the least cost.

x86 CPUs without VNNI add two products in int16 (``program.pairs``). Halving the range of all
weights would keep every sum safe; here only the channels that the prover names are changed, and
each in the cheapest way: single weights are clipped, or the scale of the channel is raised, or
both (``quant.rounding.pair_limit``), by the squared error of the channel's weights, which is what
ranges of weights are searched by.

What comes behind it may raise scales, as the bias guard does: two codes that fit together still do
on a larger scale. Whatever moves weights, or makes scales smaller, has to come in front of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from halfstep.graph.edit import set_value
from halfstep.graph.insert import QuantizedModel
from halfstep.graph.match import Unit
from halfstep.lower import draft
from halfstep.program.code_ranges import code_ranges, read_range
from halfstep.program.pairs import from_pairs, in_pairs
from halfstep.program.saturation import prove_sums
from halfstep.quant.rounding.lattice import Array, Codes
from halfstep.quant.rounding.pair_limit import exceeds, fit, squared_error

_LARGEST = int(np.iinfo(np.int16).max)


@dataclass(frozen=True)
class RepairedWeight:
    """What was done to one weight.

    Attributes:
        site: its name.
        channels: how many output channels it has.
        repaired: how many of them had a sum of two products that may leave int16.
        rescaled: how many of the repaired ones have a larger scale.
        clipped: how many pairs of their weights are clipped, on the new scale.
        before: the squared error of the codes of these channels, relative to their squares.
        after: the same, repaired.
    """

    site: str
    channels: int
    repaired: int
    rescaled: int
    clipped: int
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"{self.site}: {self.repaired} of {self.channels} channels repaired, "
            f"{self.rescaled} on a larger scale, {self.clipped} pairs clipped; "
            f"squared error {self.before:.3g} -> {self.after:.3g}"
        )


@dataclass(frozen=True, repr=False)
class PairRepair:
    """What ``repair_pair_sums`` did.

    Attributes:
        weights: every weight with channels that were not safe, in order of execution.
        channels: how many channels all weights have whose products are added in pairs.
    """

    weights: tuple[RepairedWeight, ...]
    channels: int

    @property
    def repaired(self) -> int:
        """How many channels were changed."""
        return sum(weight.repaired for weight in self.weights)

    @property
    def error(self) -> str:
        """The squared error of the repaired channels, relative to their squares; the mean."""
        if not self.weights:
            return "0 -> 0"
        counts = [weight.repaired for weight in self.weights]
        before = np.average([weight.before for weight in self.weights], weights=counts)
        after = np.average([weight.after for weight in self.weights], weights=counts)
        return f"{before:.3g} -> {after:.3g}"

    def __repr__(self) -> str:
        return str(self)  # what a notebook shows

    def __str__(self) -> str:
        head = f"{self.repaired} of {self.channels} channels repaired, squared error {self.error}"
        return "\n".join([head, *(f"  {weight}" for weight in self.weights)])


def repair_pair_sums(model: QuantizedModel) -> PairRepair:
    """Change the channels of ``model`` whose sums of two products may leave int16, in place.

    The last step in front of ``lower``: what moves weights afterwards may undo it, and ``lower``
    says so for targets that need it.

    Args:
        model: calibrated, and rounded if it is to be.

    Returns:
        What was changed, and what it costs.
    """
    program = draft(model)
    ranges = code_ranges(program)
    units = {model.weight_site(unit): unit for unit in model.weighted_units()}
    unsafe: dict[str, set[int]] = {}
    highest: dict[str, int] = {}
    channels: dict[str, int] = {}
    makers = {op.output: op for op in program.ops}
    for found in prove_sums(program, "int16_pairs").ops:
        op = makers[found.site]
        site = op.inputs[1]
        if site not in units:  # a product of two activations
            continue
        channels[site] = found.channels
        unsafe.setdefault(site, set()).update(found.unsafe)
        highest[site] = max(highest.get(site, 0), read_range(program, op, ranges)[1])
    repaired = [
        _repair(model, units[site], sorted(rows), _LARGEST // highest[site])
        for site, rows in unsafe.items()
        if rows
    ]
    return PairRepair(tuple(repaired), sum(channels.values()))


def repair_facts(report: PairRepair) -> Mapping[str, str]:
    """What the journal keeps of a repair."""
    return {
        "channels": f"{report.repaired} of {report.channels}",
        "rescaled": str(sum(weight.rescaled for weight in report.weights)),
        "clipped": f"{sum(weight.clipped for weight in report.weights)} pairs",
        "squared error": report.error,
    }


def _repair(model: QuantizedModel, unit: Unit, rows: list[int], limit: int) -> RepairedWeight:
    assert unit.weight is not None
    site = model.weight_site(unit)
    quantizer, grid = model.quantizer(site), model.quantizer(site).grid()
    weight = model.parameter_of(unit.weight).detach().cpu().numpy()
    whole: Array = in_pairs(weight)
    if grid.axis is None:  # all channels share the scale, and are fitted as one
        rows, pairs, old = list(range(len(weight))), whole.reshape(1, -1, 2), grid.scale[None]
    else:
        pairs, old = whole[rows], grid.scale[rows]
    codes = Codes(grid.qtype.qmin, grid.qtype.qmax)
    before = squared_error(pairs, codes.nearest(pairs / old[:, None, None]), old)
    found, new, after = fit(pairs, old, codes, limit, quantizer.spec.pow2)
    clipped = exceeds(codes.nearest(pairs / new[:, None, None]), limit)
    whole[rows] = (found * new[:, None, None]).reshape(len(rows), -1, 2)
    value = np.ascontiguousarray(from_pairs(whole, weight.shape))
    set_value(model.module, unit.weight, torch.from_numpy(value))
    scale = grid.scale.copy()
    scale[() if grid.axis is None else rows] = new[0] if grid.axis is None else new
    quantizer.set_grid(replace(grid, scale=scale))
    squares = np.square(pairs, dtype=np.float64).sum()
    return RepairedWeight(
        site,
        channels=len(weight),
        repaired=len(rows),
        rescaled=int((new > old).sum()) * len(rows) // len(new),
        clipped=int(clipped.sum()),
        before=float(before.sum() / squares),
        after=float(after.sum() / squares),
    )
