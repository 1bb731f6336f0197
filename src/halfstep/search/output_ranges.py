"""Ranges of activations by the error of the model's output itself.

Reference: Y. Nahshan et al., "Loss aware post-training quantization", arXiv 1911.07190, 2019: the
steps of all quantizers are chosen by the loss of the whole network, beginning from the best steps
of each layer alone.

Equation, with the ranges ``r`` of some quantizers and ``d`` a metric of ``halfstep.search``:

    r = argmin  d(quantized model with r, float model)

Deviations: the paper minimizes jointly, by Powell's method; here each end of each range is tried at
a few factors with all others as they are, in one pass over the data for all of them
(``search.walk``), and the best of every quantizer are taken together. That is exact as far as the
errors of different quantizers are independent, and it is checked: where all together are no better
than the best alone, that one is taken. More rounds go on from there. The loss is the distance to
the float model, which needs no labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from halfstep.core.grid import Affine
from halfstep.errors import unknown_name
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.search.metrics import METRICS, Meter
from halfstep.search.samples import Batch, kept
from halfstep.search.states import applied
from halfstep.search.walk import Branches

FACTORS = (0.5, 0.7, 0.85, 1.2, 1.5, 2.0)
"""What each end of a range is multiplied by."""

Grids = dict[str, Affine]


@dataclass(frozen=True)
class FoundRange:
    """One quantizer whose range changed: its ends before and after, and what that gains alone."""

    site: str
    before: tuple[float, float]
    after: tuple[float, float]
    gain: float


@dataclass(frozen=True, eq=False)
class OutputRanges:
    """Other grids for some quantizers; the model is as it was.

    Attributes:
        grids: by site, what to set.
        metric: name of the metric.
        before: its value with the grids that the model has.
        after: its value with these.
        rows: the quantizers that change, those that gain the most first.
    """

    grids: Mapping[str, Affine]
    metric: str
    before: float
    after: float
    rows: tuple[FoundRange, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "grids", MappingProxyType(dict(self.grids)))

    def __str__(self) -> str:
        text = METRICS[self.metric].text
        head = f"{len(self.rows)} ranges changed: {self.metric} {text(self.before)} -> "
        lines = [head + text(self.after)]
        for row in self.rows:
            ends = " -> ".join(f"[{low:.4g}, {high:.4g}]" for low, high in (row.before, row.after))
            lines.append(f"  {row.site}: {ends}, alone {row.gain:.3g}")
        return "\n".join(lines)


def output_ranges(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    sites: Sequence[str] | None = None,
    factors: Sequence[float] = FACTORS,
    rounds: int = 1,
    metric: str = "mse",
    progress: Progress = silent,
) -> OutputRanges:
    """Try other ends for the ranges of activations.

    Args:
        model: calibrated; it is left as it was.
        data: a few batches, which are kept.
        sites: of the quantizers to look at; all of activations by default. One costs, for each
            factor and end, the part of a forward pass behind it.
        factors: what the ends are multiplied by.
        rounds: how often all sites are gone through.
        metric: a name in ``search.metrics``.
        progress: wraps the batches.

    Raises:
        DataError: no batch, or one that does not fit the model or the metric.
        UnknownNameError: of the metric, or of a site.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    known = model.activation_sites()
    for site in sites or ():
        if site not in known:
            raise unknown_name("quantizer of an activation", site, known)
    search = _Search(model, kept(model, data), metric, factors, progress)
    found: Grids = {}
    before = after = search.value({})
    gains: dict[str, float] = {}
    for _ in range(rounds):
        better, value, alone = search.round(found, after, known if sites is None else sites)
        if not better:
            break
        found, after = {**found, **better}, value
        gains |= {site: gains.get(site, 0.0) + alone[site] for site in better}
    rows = [
        FoundRange(site, _ends(model.quantizer(site).grid()), _ends(grid), gains[site])
        for site, grid in found.items()
    ]
    rows.sort(key=lambda row: -row.gain)
    return OutputRanges(found, metric, before, after, tuple(rows))


def _ends(grid: Affine) -> tuple[float, float]:
    return float(grid.low), float(grid.high)


class _Search:
    """Measures variants of a model that differ in the grids of some quantizers."""

    def __init__(
        self,
        model: QuantizedModel,
        batches: Sequence[Batch],
        metric: str,
        factors: Sequence[float],
        progress: Progress,
    ) -> None:
        self.model, self.batches, self.factors = model, batches, factors
        self.metric, self.progress = METRICS[metric], progress

    def value(self, grids: Grids) -> float:
        """The metric with these grids in the place of the model's own."""
        meter = Meter(self.metric)
        with torch.inference_mode(), applied(self.model, grids):
            for batch in self.batches:
                meter.add(self.model.module(*batch.inputs)[0], batch.reference, batch.labels)
        return meter.value

    def round(
        self, base: Grids, value: float, sites: Sequence[str]
    ) -> tuple[Grids, float, dict[str, float]]:
        """The grids that are better, the metric with them, and what each gains alone."""
        variants = {
            (site, index): {site: grid}
            for site in sites
            for index, grid in enumerate(self._candidates(site, base))
        }
        meters = {key: Meter(self.metric) for key in variants}
        branches = Branches(self.model, variants, base)
        for batch in self.progress(self.batches, "ranges"):
            branches.run(
                batch.inputs,
                lambda key, out, b=batch: meters[key].add(out, b.reference, b.labels),  # type: ignore[misc]
            )
        best: Grids = {}
        gains: dict[str, float] = {}
        sign = 1 if self.metric.higher_is_better else -1
        for (site, index), meter in meters.items():
            gain = sign * (meter.value - value)
            if gain > gains.get(site, 0.0):
                best[site], gains[site] = variants[site, index][site], gain
        return self._together(base, value, best, gains)

    def _together(
        self, base: Grids, value: float, best: Grids, gains: dict[str, float]
    ) -> tuple[Grids, float, dict[str, float]]:
        """All of ``best``, or the one that gains the most, if that is better."""
        if not best:
            return {}, value, {}
        first = max(gains, key=lambda site: gains[site])
        alone = value + gains[first] * (1 if self.metric.higher_is_better else -1)
        joint = self.value({**base, **best})
        if self.metric.worse(joint, alone):
            return {first: best[first]}, alone, {first: gains[first]}
        return best, joint, gains

    def _candidates(self, site: str, base: Grids) -> list[Affine]:
        """The grid of a site with one of its ends moved, each other grid once."""
        quantizer = self.model.quantizer(site)
        if quantizer.spec.dictated:
            return []
        grid, spec = base.get(site) or quantizer.grid(), quantizer.spec
        low, high = _ends(grid)
        pairs = [(low, high * f) for f in self.factors] + [(low * f, high) for f in self.factors]
        found: list[Affine] = []
        for first, last in pairs:
            new = Affine.from_range(
                np.asarray(first), np.asarray(last), spec.qtype, symmetric=spec.symmetric,
                pow2=spec.pow2,
            )  # fmt: skip
            if not any(new.same_as(other) for other in (grid, *found)):
                found.append(new)
        return found
