"""Ranges of activations by what their errors do to the output of the model.

Reference: the Hessian-guided metric of PTQ4ViT (Yuan et al. 2022, arXiv 2111.12293, section 3.2):
errors of an activation are weighted by the squared derivative of the output, so that

    E |dy|^2 ~ sum over i of h_i (x_i - Q(x_i))^2

is what a range minimizes (``halfstep.ptq.influence``), for each quantizer of an activation. Errors
of different quantizers are independent to first order, so the sum over all of them predicts that
of the whole model.

A plain squared error asks how wrong a value is; this asks whether it matters. A few huge values
that a layer norm behind them depends on are kept, huge ones that nothing depends on are clipped,
and tokens behind a mask do not count.

Deviations: PTQ4ViT quantizes layer by layer, weights among them, and weights by the gradient of a
loss; ``ptq.influence`` says what takes its place. Derivatives are those of the float model.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx

from halfstep.core.grid import Affine
from halfstep.errors import CalibrationError
from halfstep.graph.calibrate import grid_of, keep_biases_small
from halfstep.graph.insert import QuantizedModel
from halfstep.graph.placement import is_weighted
from halfstep.progress import Progress, silent
from halfstep.ptq.influence import influences
from halfstep.quant.calibrators.weighted_mse import WeightedMse
from halfstep.quant.quantizer import Quantizer

FIXED = "unit_interval"
"""The calibrator of sites whose grid the kernel dictates: they keep it."""


@dataclass(frozen=True)
class GuidedRange:
    """What became of one quantizer.

    Attributes:
        site: of the quantizer.
        before: squared error of the output that it alone makes, predicted, as a share of the
            output's power; on the grid that it had.
        after: the same on its new grid.
    """

    site: str
    before: float
    after: float


@dataclass(frozen=True)
class GuidedReport:
    """All quantizers of activations, in order; and those that were left alone, with the reason."""

    ranges: tuple[GuidedRange, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def before(self) -> float:
        """The predicted squared error of the output, as a share of its power."""
        return sum(found.before for found in self.ranges)

    @property
    def after(self) -> float:
        """The same with the new grids."""
        return sum(found.after for found in self.ranges)

    def ranked(self) -> tuple[GuidedRange, ...]:
        """The most harmful first."""
        return tuple(sorted(self.ranges, key=lambda found: -found.after))

    def __str__(self) -> str:
        errors = f"{self.before:.3g} -> {self.after:.3g}"
        lines = [f"{len(self.ranges)} ranges: predicted error of the output {errors}"]
        lines += [f"  {r.site}: {r.before:.3g} -> {r.after:.3g}" for r in self.ranked()]
        return "\n".join(lines + [f"  {site}: {reason}" for site, reason in self.skipped])


def guide_ranges(
    model: QuantizedModel, data: Iterable[Any], *, seed: int = 0, progress: Progress = silent
) -> GuidedReport:
    """Give the activations of ``model`` other ranges, in place.

    Args:
        model: calibrated: what the output does not depend on keeps its grid.
        data: batches, read once; about a hundred samples. A batch takes the memory of a training
            step without gradients of parameters.
        seed: of the random signs of the derivatives.
        progress: wraps the batches.

    Raises:
        CalibrationError: the model has no ranges yet.
        DataError: an empty loader, or a batch that does not fit.
    """
    calls = _calls(model)
    found = {q.site: WeightedMse(q.spec.qtype, pow2=q.spec.pow2) for q in calls.values()}
    before = {quantizer.site: quantizer.grid() for quantizer in calls.values()}
    samples = _watch(model, calls, found, data, seed, progress)
    ranges, skipped = [], []
    for site, calibrator in found.items():
        quantizer = model.quantizer(site)
        if not calibrator.updates:
            skipped.append((site, "the output does not depend on it"))
            continue
        if quantizer.spec.calibrator != FIXED:
            quantizer.set_grid(_best(calibrator, quantizer, before[site]))
        errors = (calibrator.error_of(g) / samples for g in (before[site], quantizer.grid()))
        ranges.append(GuidedRange(site, *errors))
    keep_biases_small(model)
    return GuidedReport(tuple(ranges), tuple(skipped))


def _calls(model: QuantizedModel) -> dict[fx.Node, Quantizer]:
    """The quantizers of activations, by the nodes that call them."""
    weights = {
        model.units.sites[unit.weight]
        for unit in model.units.units
        if unit.weight is not None and is_weighted(unit, model.plan.executions)
    }
    found = {}
    for node in model.module.graph.nodes:
        if node.op == "call_module":
            module = model.module.get_submodule(str(node.target))
            if isinstance(module, Quantizer) and module.site not in weights:
                found[node] = module
    return found


def _watch(
    model: QuantizedModel,
    calls: dict[fx.Node, Quantizer],
    found: dict[str, WeightedMse],
    data: Iterable[Any],
    seed: int,
    progress: Progress,
) -> int:
    """Show every value with its weight; the number of samples."""
    samples = 0
    was_training, on = model.training, {q.site: q.enabled for q in model.quantizers()}
    model.eval()
    for quantizer in model.quantizers():
        quantizer.enabled = False
    try:
        batches = influences(model.module, model.graph, calls, data, seed=seed, progress=progress)
        for size, batch in batches:
            for node, influence in batch.items():
                site = calls[node].site
                try:
                    found[site].update_weighted(influence.value, influence.weight)
                except CalibrationError as error:
                    raise CalibrationError(f"{site}: {error}") from error
            samples += size
    finally:
        for quantizer in model.quantizers():
            quantizer.enabled = on[quantizer.site]
        model.train(was_training)
    return samples


def _best(calibrator: WeightedMse, quantizer: Quantizer, before: Affine) -> Affine:
    """The grid that was found, unless the one before is better by the same measure."""
    grid = grid_of(calibrator, quantizer.spec, quantizer.site)
    return min((before, grid), key=calibrator.error_of)
