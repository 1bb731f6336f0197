"""Make scales fit the kernels of a target: wider ranges where these cost nothing, float elsewhere.

Some kernels take no scales that are too far apart (``OpRule.refuses_scales``). Where the output is
too fine, a step of an input is many steps of it, and no code is lost on a range of twice the size.
Where an input is too fine, all of its range is less than one step of the output, and nobody misses
its resolution if nobody else reads it. Ranges are only ever doubled, around the code of real zero,
so that scales which are powers of two stay so, and nothing is clipped that was not.

A range that others depend on stays: the operation runs in float then, and the plan says why. Only a
layer with a weight, whose codes float kernels do not read, takes along what shares its output's
range.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from halfstep.catalog import find
from halfstep.core.execution import Execution
from halfstep.core.target import Target
from halfstep.graph.insert import QuantizedModel
from halfstep.graph.match import Unit, see_through
from halfstep.graph.scales import scale_refusal
from halfstep.quant.quantizer import Quantizer

# A scale that is not taken after so many doublings is taken at no size.
_MOST_DOUBLINGS = 48


@dataclass(frozen=True, repr=False)
class ScaleRepair:
    """What ``repair_scales`` did.

    Attributes:
        widened: for each site whose range is wider, how many times.
        floats: for each operation that runs in float now, the reason.
    """

    widened: Mapping[str, int]
    floats: Mapping[str, str]

    def __repr__(self) -> str:
        return str(self)  # what a notebook shows

    def __str__(self) -> str:
        lines = [f"{len(self.widened)} ranges widened, {len(self.floats)} operations left to float"]
        lines += [f"  {site}: its range is {n} times as wide" for site, n in self.widened.items()]
        lines += [f"  {name}: in float: {reason}" for name, reason in self.floats.items()]
        return "\n".join(lines)


def repair_scales(model: QuantizedModel) -> ScaleRepair:
    """Change the ranges of ``model`` that its kernels do not take, in place.

    Behind all that sets ranges, which may undo it, and ``lower`` says so.

    Args:
        model: calibrated.

    Returns:
        What was changed; the plan of the model has the new float operations. A range that a kernel
        dictates is not widened for a layer with a weight, which ``lower`` then refuses.
    """
    target: Target = find("target", model.plan.target)
    before = {quantizer: quantizer.grid().scale for quantizer in model.quantizers()}
    units = model.units.units
    for _ in units:  # a wider range may be too wide for a neighbour
        if not sum(_widen(model, unit) for unit in units):
            break
    left = [unit for unit in units if unit.weight is None and not target.integer_only]
    found = {unit.name: scale_refusal(model, unit) for unit in left}
    floats = {name: refusal for name, refusal in found.items() if refusal}
    for name, reason in floats.items():
        model.plan = model.plan.keep_float(name, reason)
    factors = {q.site: np.max(q.grid().scale / scale) for q, scale in before.items()}
    return ScaleRepair({site: round(n) for site, n in factors.items() if n > 1}, floats)


def repair_facts(report: ScaleRepair) -> Mapping[str, str]:
    """What the journal keeps of a repair."""
    widened = ", ".join(f"{site} x{n}" for site, n in report.widened.items())
    return {"widened": widened or "none", "to float": ", ".join(report.floats) or "none"}


def _widen(model: QuantizedModel, unit: Unit) -> bool:
    """Double ranges until the unit's kernel takes them; whether that helped."""
    if not scale_refusal(model, unit):
        return False
    output = model.quantizer(unit.out)
    alone = unit.weight is not None or _makers(model, output) == {unit.out}
    outputs = [output] if alone else []
    sites = [model.units.sites[node] for node in unit.inputs]
    read = dict.fromkeys(model.quantizer(site) for site in sites if site in model.site_quantizer)
    inputs = [q for q in read if q is not output and _readers(model, q) == {unit.name}]
    return any(_doubled(model, unit, choice) for choice in (outputs, inputs, outputs + inputs))


def _doubled(model: QuantizedModel, unit: Unit, choice: Sequence[Quantizer]) -> bool:
    """Double the finest of some grids, again and again; they are as before if that is no use."""
    able = [quantizer for quantizer in choice if not quantizer.spec.dictated]
    before = [quantizer.grid() for quantizer in able]
    for _ in range(_MOST_DOUBLINGS if able else 0):
        finest = min(able, key=lambda quantizer: float(quantizer.grid().scale.max()))
        grid = finest.grid()
        finest.set_grid(replace(grid, scale=grid.scale * np.float32(2)))
        if not scale_refusal(model, unit):
            return True
    for quantizer, grid in zip(able, before, strict=True):
        quantizer.set_grid(grid)
    return False


def _sites(model: QuantizedModel, quantizer: Quantizer) -> set[str]:
    """The sites that share a grid."""
    return {site for site, shared in model.site_quantizer.items() if shared == quantizer.site}


def _moving(model: QuantizedModel, unit: Unit) -> bool:
    return model.plan.executions[unit.name] is Execution.COPY


def _makers(model: QuantizedModel, quantizer: Quantizer) -> set[str]:
    """The sites on a grid whose values are not copies of others."""
    copied = {unit.out for unit in model.units.units if _moving(model, unit)}
    return _sites(model, quantizer) - copied


def _readers(model: QuantizedModel, quantizer: Quantizer) -> set[str]:
    """The operations that compute on a grid's values; "" stands for the outputs of the model."""
    sites, named = _sites(model, quantizer), model.units.sites
    found = {
        unit.name
        for unit in model.units.units
        if not _moving(model, unit) and any(named[node] in sites for node in unit.inputs)
    }
    output = next(node for node in model.graph.module.graph.nodes if node.op == "output")
    ends = {named[see_through(node)] for node in output.all_input_nodes}
    return found | {""} if ends & sites else found
