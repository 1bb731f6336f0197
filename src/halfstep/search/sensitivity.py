"""What each layer costs: it alone quantized, and all but it.

References: H. Wu et al., "Integer quantization for deep learning inference: principles and
empirical evaluation", arXiv 2004.09602, 2020, section 5 (the metric with a single layer quantized);
M. Nagel et al., "A white paper on neural network quantization", arXiv 2106.08295, 2021, section 3.7
(each quantizer alone, and the complement).

A layer that is "quantized alone" is what the target would run if the plan kept all others in float:
its weight, its inputs and its output are on their grids. In the complement every quantizer is on
that the plan would still need without it. Its weight and its activations are measured apart, too.

Deviations: the data is gone through once; each variant is run from the layer on where it begins to
differ (``search.walk``). Equal metrics, which few samples make likely, are ranked by the
signal-to-noise ratio of the output.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.search.metrics import METRICS
from halfstep.search.samples import Scores, stream
from halfstep.search.states import (
    only,
    quantized_units,
    sites_of,
)
from halfstep.search.walk import Branches

ALONE, WITHOUT, WEIGHT, ACTIVATIONS = "alone", "without", "weight", "activations"
Key = tuple[str, str]


@dataclass(frozen=True)
class Sensitivity:
    """One layer, or one quantizer.

    Attributes:
        name: of the unit, or the site of the quantizer.
        kind: of the unit; "weight" or "activation" for a quantizer.
        alone: the metric with nothing else quantized.
        sqnr: signal-to-noise ratio of the output, in dB, with nothing else quantized.
        without: the metric with everything quantized but this; ``None`` if it was not asked for.
        weight: the metric with its weight alone; ``None`` without one, or if not asked for.
        activations: the metric with its inputs and its output alone; ``None`` for a quantizer, or
            if not asked for.
    """

    name: str
    kind: str
    alone: float
    sqnr: float
    without: float | None = None
    weight: float | None = None
    activations: float | None = None


@dataclass(frozen=True)
class SensitivityReport:
    """Every layer or quantizer, in order of execution.

    Attributes:
        metric: name of the metric.
        samples: how many it was measured on.
        real: the metric of the float model.
        quantized: the metric with everything quantized.
        weights: the metric with all weights quantized, and nothing else.
        activations: the metric with all activations quantized, and nothing else.
        rows: in order of execution.
    """

    metric: str
    samples: int
    real: float
    quantized: float
    weights: float
    activations: float
    rows: tuple[Sensitivity, ...]

    def ranked(self) -> tuple[Sensitivity, ...]:
        """The most sensitive first: the worst metric alone, then the most noise."""
        sign = 1 if METRICS[self.metric].higher_is_better else -1
        return tuple(sorted(self.rows, key=lambda row: (sign * row.alone, row.sqnr)))

    def __str__(self) -> str:
        text = METRICS[self.metric].text
        width = max((len(row.name) for row in self.rows), default=0)
        totals = {"float": self.real, "quantized": self.quantized, "weights alone": self.weights}
        totals["activations alone"] = self.activations
        listed = ", ".join(f"{name} {text(value)}" for name, value in totals.items())
        lines = [f"{self.metric} on {self.samples} samples: {listed}"]
        for row in self.ranked():
            more = "" if row.without is None else f"  all but it {text(row.without)}"
            lines.append(
                f"  {row.name:<{width}}  alone {text(row.alone)} ({row.sqnr:.1f} dB){more}"
            )
        return "\n".join(lines)


def sensitivity(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    metric: str | None = None,
    parts: bool = True,
    complement: bool = True,
    progress: Progress = silent,
) -> SensitivityReport:
    """Measure each layer of a calibrated model, which is left as it was.

    Args:
        model: calibrated; its weights are still those of the float model.
        data: a few batches, with labels for ``accuracy``; read once, one batch at a time.
        metric: a name in ``search.metrics``; by default accuracy where there are labels, or else
            the signal-to-noise ratio of the output.
        parts: measure its weight and its activations apart as well.
        complement: measure all but each layer as well, which is the slower half.
        progress: wraps the batches.

    Raises:
        DataError: no batch, or one that does not fit the model or the metric.
        UnknownNameError: of the metric.
    """
    names = {unit.name: unit.kind for unit in quantized_units(model)}
    weights = {unit.name: {model.weight_site(unit)} for unit in model.weighted_units()}
    alone = {name: sites_of(model, {name}) for name in names}
    variants = {(ALONE, name): sites for name, sites in alone.items()}
    if parts:
        variants |= {(WEIGHT, name): frozenset(sites) for name, sites in weights.items()}
        variants |= {(ACTIVATIONS, n): s - weights.get(n, set()) for n, s in alone.items()}
    if complement:
        variants |= {(WITHOUT, n): sites_of(model, names.keys() - {n}) for n in names}
    return _measured(model, data, names, variants, metric, progress)


def quantizer_sensitivity(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    metric: str | None = None,
    complement: bool = True,
    progress: Progress = silent,
) -> SensitivityReport:
    """The same for each quantizer: of a weight, or of an activation and all that share its grid."""
    weights = set(model.weight_sites())
    names = {q.site: "weight" if q.site in weights else "activation" for q in model.quantizers()}
    variants = {(ALONE, site): frozenset({site}) for site in names}
    if complement:
        variants |= {(WITHOUT, site): frozenset(names.keys() - {site}) for site in names}
    return _measured(model, data, names, variants, metric, progress)


def _measured(
    model: QuantizedModel,
    data: Iterable[Any],
    kinds: Mapping[str, str],
    variants: Mapping[Key, frozenset[str]],
    metric: str | None,
    progress: Progress,
) -> SensitivityReport:
    """Run every variant, a set of sites whose quantizers are on, and collect the rows."""
    weights, activations = model.weight_sites(), model.activation_sites()
    totals = {(WEIGHT, ""): weights, (ACTIVATIONS, ""): activations}
    totals[ALONE, ""] = (*weights, *activations)
    from_float = {k: dict.fromkeys(v, True) for k, v in totals.items()}
    from_float |= {k: dict.fromkeys(v, True) for k, v in variants.items() if k[0] != WITHOUT}
    from_quantized = {
        key: dict.fromkeys(set(totals[ALONE, ""]) - sites, False)
        for key, sites in variants.items()
        if key[0] == WITHOUT
    }
    scores: Scores[Key] = Scores(metric)
    sweeps = [
        Branches(model, from_float, only(model, ())),
        Branches(model, from_quantized, only(model, totals[ALONE, ""])),
    ]
    for batch in stream(model, data, progress, "sensitivity"):
        scores.begin(batch)
        for sweep in sweeps:
            if sweep.variants:
                sweep.run(batch.inputs, scores.add)
    rows = tuple(
        Sensitivity(
            name,
            kind,
            scores.value((ALONE, name)),
            scores.sqnr((ALONE, name)),
            *(scores.find((part, name)) for part in (WITHOUT, WEIGHT, ACTIVATIONS)),
        )
        for name, kind in kinds.items()
    )
    return SensitivityReport(
        scores.metric.name,
        scores.samples,
        scores.real.value,
        quantized=scores.value((ALONE, "")),
        weights=scores.value((WEIGHT, "")),
        activations=scores.value((ACTIVATIONS, "")),
        rows=rows,
    )
