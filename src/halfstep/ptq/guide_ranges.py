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

A derivative speaks of small errors, and clipping a huge value is none: attention that is sure of
itself does not depend on a score until the score is gone. So derivatives are taken at both ends,
in the float model and then in the quantized one with the ranges found so far, and the weights are
their mean (the trapezoidal rule, for the square root of the error).

Deviations: PTQ4ViT quantizes layer by layer, weights among them, and weights by the gradient of a
loss in the float model; ``ptq.influence`` says what takes its place.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import fx

from halfstep.core.grid import Affine
from halfstep.errors import CalibrationError
from halfstep.graph.calibrate import grid_of, keep_biases_small
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.ptq.influence import influences
from halfstep.quant.calibrators.weighted_mse import WeightedMse
from halfstep.quant.quantizer import Quantizer


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
    model: QuantizedModel,
    data: Sequence[Any],
    *,
    rounds: int = 2,
    seed: int = 0,
    progress: Progress = silent,
) -> GuidedReport:
    """Give the activations of ``model`` other ranges, in place.

    Args:
        model: calibrated: what the output does not depend on keeps its grid.
        data: batches, read ``rounds`` times; about a hundred samples. A batch takes the memory of
            a training step without gradients of parameters.
        rounds: how often derivatives are taken: of the float model, then of the quantized one as
            it is by then.
        seed: of the random signs of the derivatives.
        progress: wraps the batches.

    Raises:
        CalibrationError: the model has no ranges yet.
        DataError: an empty loader, or a batch that does not fit.
    """
    activations = set(model.activation_sites())
    calls = {node: q for node, q in model.calls().items() if q.site in activations}
    found = {
        q.site: WeightedMse(q.spec.qtype, symmetric=q.spec.symmetric, pow2=q.spec.pow2)
        for q in calls.values()
    }
    before = {quantizer.site: quantizer.grid() for quantizer in calls.values()}
    samples = 0
    for index in range(rounds):
        with _quantizers(model, on=index > 0):
            samples += _watch(model, calls, found, data, seed + index, progress)
        for site, calibrator in found.items():
            quantizer = model.quantizer(site)
            if calibrator.updates and not quantizer.spec.dictated:
                quantizer.set_grid(_best(calibrator, quantizer, before[site]))
        keep_biases_small(model)
    ranges, skipped = [], []
    for site, calibrator in found.items():
        if not calibrator.updates:
            skipped.append((site, "the output does not depend on it"))
            continue
        grids = before[site], model.quantizer(site).grid()
        ranges.append(GuidedRange(site, *(calibrator.error_of(g) / samples for g in grids)))
    return GuidedReport(tuple(ranges), tuple(skipped))


def _watch(
    model: QuantizedModel,
    calls: dict[fx.Node, Quantizer],
    found: dict[str, WeightedMse],
    data: Sequence[Any],
    seed: int,
    progress: Progress,
) -> int:
    """Show what is quantized, weighted by the influence of what it becomes; how many samples."""
    samples = 0
    nodes = {*calls, *(node.all_input_nodes[0] for node in calls)}
    batches = influences(model.module, model.graph, nodes, data, seed=seed, progress=progress)
    for size, batch in batches:
        samples += size
        for node, quantizer in calls.items():
            value = batch[node.all_input_nodes[0]].value
            try:
                found[quantizer.site].update_weighted(value, batch[node].weight)
            except CalibrationError as error:
                raise CalibrationError(f"{quantizer.site}: {error}") from error
    return samples


@contextmanager
def _quantizers(model: QuantizedModel, on: bool) -> Iterator[None]:
    """All of them on or off, and no dropout, while the body runs."""
    was_training, before = model.training, {q.site: q.enabled for q in model.quantizers()}
    model.eval()
    for quantizer in model.quantizers():
        quantizer.enabled = on
    try:
        yield
    finally:
        for quantizer in model.quantizers():
            quantizer.enabled = before[quantizer.site]
        model.train(was_training)


def _best(calibrator: WeightedMse, quantizer: Quantizer, before: Affine) -> Affine:
    """The grid that was found, unless the one before is better by the same measure."""
    grid = grid_of(calibrator, quantizer.spec, quantizer.site)
    return min((before, grid), key=calibrator.error_of)
