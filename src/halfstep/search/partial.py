"""Partial quantization: the least number of layers in float that keeps a metric.

Reference: H. Wu et al., "Integer quantization for deep learning inference: principles and empirical
evaluation", arXiv 2004.09602, 2020, section 6.1.

The layers are ranked by the metric with each of them alone quantized (``search.sensitivity``), the
worst first. One after the other is left in float, until

    metric >= (1 - share) * metric of the float model

Deviations: layers are the operations of the target that compute on codes, additions and averages
among them, so that in the end nothing is quantized and the float model is reached. ``order``
replaces the ranking, for example by what an operation in float costs. Then each skipped layer is
quantized again, the least sensitive first, and stays so if the metric holds without it: what a
layer costs alone is not what it costs beside others.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from halfstep.data import judges_classes
from halfstep.errors import PlanError, unknown_name
from halfstep.graph.insert import QuantizedModel
from halfstep.graph.plan import Plan
from halfstep.progress import Progress, silent
from halfstep.search.metrics import METRICS, Meter
from halfstep.search.samples import Batch, kept
from halfstep.search.sensitivity import sensitivity
from halfstep.search.states import applied, only, quantized_units, sites_of

SHARES = ("accuracy", "agreement", "cosine")
"""The metrics of which a share of the float model's value means something."""


@dataclass(frozen=True)
class Step:
    """One point of the curve: what was left in float, and the metric then."""

    skipped: tuple[str, ...]
    value: float


@dataclass(frozen=True, eq=False)
class PartialQuantization:
    """Which operations to leave in float.

    Attributes:
        plan: the model's plan with these operations in float; prepare and calibrate it anew.
        skipped: the operations, with the reason of each.
        metric: name of the metric.
        real: the metric of the float model.
        wanted: what was to be reached.
        value: what is reached.
        curve: every choice that was measured, in order.
    """

    plan: Plan
    skipped: Mapping[str, str]
    metric: str
    real: float
    wanted: float
    value: float
    curve: tuple[Step, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "skipped", MappingProxyType(dict(self.skipped)))

    def __str__(self) -> str:
        text = METRICS[self.metric].text
        reached = f"{self.metric} {text(self.value)} with {len(self.skipped)} operations in float"
        lines = [f"{reached}; float {text(self.real)}, wanted {text(self.wanted)}"]
        lines += [f"  {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"  {len(step.skipped)} in float: {text(step.value)}" for step in self.curve]
        return "\n".join(lines)


def partially_quantize(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    metric: str | None = None,
    share: float = 0.01,
    order: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> PartialQuantization:
    """Leave as few operations in float as keep the metric within ``share`` of the float model's.

    Args:
        model: calibrated; it is left as it was.
        data: a few batches, which are kept: every choice is measured on all of them.
        metric: "accuracy", "agreement" or "cosine"; by default accuracy where there are labels,
            or else agreement with the float model; cosine where the output is no scores of classes.
        share: how much of the float model's metric may be lost.
        order: operations, the first to be left in float first, each with the reason that the plan
            will give; by default the most sensitive first. Others stay quantized.
        progress: wraps the batches of the ranking, and the choices.

    Raises:
        DataError: no batch, or one that does not fit the model or the metric.
        UnknownNameError: of the metric, or of an operation in ``order``.
        PlanError: all operations of ``order`` in float are not enough.
    """
    batches = kept(model, data)
    metric = share_metric(metric, batches)
    if order is not None:
        _check(model, order)
    trial = _Trial(model, batches, metric)
    wanted = (1 - share) * trial.real
    value = trial.run(())
    reasons: Mapping[str, str] = {}
    if value < wanted:
        reasons = _ranked(model, batches, metric, progress) if order is None else order
    skipped: tuple[str, ...] = ()
    for name in progress(reasons, "left in float"):
        if value >= wanted:
            break
        skipped = (*skipped, name)
        value = trial.run(skipped)
    if value < wanted:
        text = METRICS[metric].text
        raise PlanError(
            f"{metric}: {text(value)} with all {len(skipped)} operations of the order in float, "
            f"asked for {text(wanted)}; name more operations, or allow a larger share"
        )
    skipped, value = _pruned(trial, skipped, value, wanted)
    plan = model.plan
    for name in skipped:
        plan = plan.keep_float(name, reasons[name])
    listed = {name: reasons[name] for name in skipped}
    return PartialQuantization(plan, listed, metric, trial.real, wanted, value, tuple(trial.curve))


def share_metric(name: str | None, batches: Sequence[Batch]) -> str:
    """The metric called ``name``; by default accuracy with labels, or else agreement.

    Where the output is no scores of classes, it is the cosine.

    Raises:
        UnknownNameError: it is none of which a share means something.
    """
    if name is None and not judges_classes(batches[0].reference.shape):
        return "cosine"
    if name is None:
        return "accuracy" if batches[0].labels is not None else "agreement"
    if name not in SHARES:
        raise unknown_name("metric of which a share can be kept", name, SHARES)
    return name


def _check(model: QuantizedModel, order: Iterable[str]) -> None:
    known = [unit.name for unit in quantized_units(model)]
    for name in order:
        if name not in known:
            raise unknown_name("quantized operation", name, known)


def _ranked(
    model: QuantizedModel, batches: Sequence[Batch], metric: str, progress: Progress
) -> dict[str, str]:
    """The operations, the most sensitive first, each with its place."""
    given = [batch.given for batch in batches]
    report = sensitivity(
        model, given, metric=metric, parts=False, complement=False, progress=progress
    )
    text = METRICS[metric].text
    return {
        row.name: f"number {i} in sensitivity: {metric} {text(row.alone)} with it alone quantized"
        for i, row in enumerate(report.ranked(), 1)
    }


def _pruned(
    trial: "_Trial", skipped: tuple[str, ...], value: float, wanted: float
) -> tuple[tuple[str, ...], float]:
    """Without the operations that the metric holds without; the last one is known to be needed."""
    for name in reversed(skipped[:-1]):
        fewer = tuple(other for other in skipped if other != name)
        found = trial.run(fewer)
        if found >= wanted:
            skipped, value = fewer, found
    return skipped, value


class _Trial:
    """Measures the model with some operations in float, and remembers what it found."""

    def __init__(self, model: QuantizedModel, batches: Sequence[Batch], metric: str) -> None:
        self.model = model
        self.batches = batches
        self.metric = METRICS[metric]
        self.units = {unit.name for unit in quantized_units(model)}
        self.curve: list[Step] = []
        real = Meter(self.metric)
        for batch in batches:
            real.add(batch.reference, batch.reference, batch.labels)
        self.real = real.value

    def run(self, skipped: tuple[str, ...]) -> float:
        """The metric with these operations in float."""
        sites = sites_of(self.model, self.units - set(skipped))
        meter = Meter(self.metric)
        with torch.inference_mode(), applied(self.model, only(self.model, sites)):
            for batch in self.batches:
                output = self.model.module(*batch.inputs)[0]
                meter.add(output, batch.reference, batch.labels)
        self.curve.append(Step(skipped, meter.value))
        return meter.value
