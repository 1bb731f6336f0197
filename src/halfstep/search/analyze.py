"""Where a quantized model loses, and what to try: the debugging flow of the white paper.

Reference: M. Nagel et al., "A white paper on neural network quantization", arXiv 2106.08295, 2021,
section 3.7, figure 3.4:

1. the float model against the simulation with quantizers off, and with 32 bits: no difference;
2. weights alone, and activations alone, on their grids;
3. each layer alone, and all but each;
4. noise and ranges of each site;
5. what follows for weights, for activations, and for single layers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from halfstep.core.grid import Affine
from halfstep.core.qtype import INT32
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.search.advice import advice
from halfstep.search.metrics import METRICS, Meter
from halfstep.search.ranges import RangeHealth, Ranges, weight_health
from halfstep.search.samples import Batch, kept
from halfstep.search.sensitivity import SensitivityReport, sensitivity
from halfstep.search.sqnr import Noises, SqnrReport, side_by_side, weight_noise
from halfstep.search.states import State, applied, only, real_biases
from halfstep.search.walk import Walk


@dataclass(frozen=True)
class Sanity:
    """Step 1: whether the simulation is the float model while nothing is quantized.

    Attributes:
        real: the metric of the float model.
        bypassed: the metric with all quantizers off.
        wide: the metric with 32 bits everywhere, on ranges that clip nothing.
        difference: the largest difference of an output with all quantizers off.
        wide_difference: the same with 32 bits, relative to the largest output.
    """

    real: float
    bypassed: float
    wide: float
    difference: float
    wide_difference: float

    @property
    def holds(self) -> bool:
        """Whether nothing is lost: any loss would be one of the simulation, not of the bits."""
        return self.difference == 0 and self.wide_difference < LARGEST_DIFFERENCE


# Of float32 sums in another order; 32 bits round far below that.
LARGEST_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Analysis:
    """What ``analyze`` found.

    Attributes:
        sanity: float against the simulation without quantization.
        layers: totals, and each layer alone and left out.
        noise: signal-to-noise ratio of each site.
        ranges: of each site, weights first.
        advice: what to try, the most promising first.
    """

    sanity: Sanity
    layers: SensitivityReport
    noise: SqnrReport
    ranges: tuple[RangeHealth, ...]
    advice: tuple[str, ...]

    @property
    def unhealthy(self) -> tuple[RangeHealth, ...]:
        """The sites whose ranges have problems."""
        return tuple(site for site in self.ranges if site.problems)

    def __str__(self) -> str:
        text = METRICS[self.layers.metric].text
        checked = {
            "float": self.sanity.real,
            "quantizers off": self.sanity.bypassed,
            "32 bits": self.sanity.wide,
        }
        lines = [", ".join(f"{name} {text(value)}" for name, value in checked.items())]
        lines += [str(self.layers), str(self.noise)]
        lines += [f"{site.site}: {'; '.join(site.problems)}" for site in self.unhealthy]
        return "\n".join([*lines, *(f"- {line}" for line in self.advice)])


def analyze(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    metric: str | None = None,
    progress: Progress = silent,
) -> Analysis:
    """Find out what a calibrated model loses where, and what to try about it.

    Args:
        model: calibrated; its weights are still those of the float model. It is left as it was.
        data: a few batches, best with labels; they are kept, and run once for each of about three
            variants a layer, from that layer on.
        metric: a name in ``search.metrics``; by default accuracy where there are labels, or else
            the signal-to-noise ratio of the output.
        progress: wraps the batches of each step.

    Raises:
        DataError: no batch, or one that does not fit the model or the metric.
        UnknownNameError: of the metric.
    """
    batches = kept(model, data)
    given = [batch.given for batch in batches]
    layers = sensitivity(model, given, metric=metric, progress=progress)
    walk, noises, ranges = Walk(model), Noises(), Ranges()
    for batch in progress(batches, "sites"):
        side_by_side(walk, batch.inputs, noises.add, ranges.add)
    health = (*weight_health(model), *ranges.health())
    noise = SqnrReport(weight_noise(model), noises.rows())
    sanity = _sanity(model, batches, layers.metric, _wide(model, health))
    return Analysis(sanity, layers, noise, health, advice(layers, health, sanity.holds))


def _wide(model: QuantizedModel, ranges: Sequence[RangeHealth]) -> dict[str, Affine]:
    """For each quantizer, a symmetric grid of 32 bits over all that was seen of its sites."""
    ends: dict[str, float] = {}
    for site in ranges:
        name = model.site_quantizer[site.site]
        ends[name] = max(ends.get(name, 0.0), -site.low, site.high)
    return {
        name: _wide_grid(model.quantizer(name).grid(), largest) for name, largest in ends.items()
    }


def _wide_grid(grid: Affine, largest: float) -> Affine:
    """A grid for the same tensor; one scale fits all channels, with so many steps."""
    scale = np.full(grid.scale.shape, largest / INT32.qmax or 1.0, np.float32)
    return replace(grid, qtype=INT32, scale=scale, zero_point=np.zeros(scale.shape, np.int32))


def _sanity(model: QuantizedModel, batches: Sequence[Batch], metric: str, wide: State) -> Sanity:
    real, bypassed, fine_meter = (Meter(METRICS[metric]) for _ in range(3))
    difference = wide_difference = 0.0
    for batch in batches:
        with torch.inference_mode(), real_biases(model):
            with applied(model, only(model, ())):
                off = model.module(*batch.inputs)[0]
            with applied(model, wide):
                fine = model.module(*batch.inputs)[0]
        for meter, output in ((real, batch.reference), (bypassed, off), (fine_meter, fine)):
            meter.add(output, batch.reference, batch.labels)
        largest = float(batch.reference.abs().max())
        difference = max(difference, float((off - batch.reference).abs().max()))
        distance = float((fine - batch.reference).abs().max())
        wide_difference = max(wide_difference, distance / largest if largest else distance)
    return Sanity(real.value, bypassed.value, fine_meter.value, difference, wide_difference)
