"""The cheapest sequence of methods whose drop in accuracy is small enough, found by trying.

Trials go from cheap to expensive, and each builds on what is known to help most:

| trial | what it does | forward passes |
|---|---|---|
| `minmax` | ranges from the extremes | 2 |
| `mse` | ranges by the least squared error | 3 |
| `corrected` | the same, biases corrected from data | 8 |
| `rounded` | the same, weights rounded together | 20 |
| `partial` | the same, the most sensitive layers left in float | 60 |

Half of the samples calibrate, the other half judges, by the decisions of the integer program on the
engine, sample by sample (``search.paired``): a drop may be *shown* to be below ``max_drop``,
*missed*, or *open*, where what was measured is below and the samples are too few to be sure. The
first trial that is shown is taken (`partial` chooses its layers on the samples that judge it, so
that its figure flatters); without one the open trial with the smallest drop; without any
the one with the smallest drop of all, and the journal says so.

Before the first trial the time of all is estimated from one forward pass; a trial that would exceed
the budget is left out. Outcomes are kept in a folder and found again by the next run.

Source: none. The order is that of the white papers' flow charts (arXiv 2106.08295, figure 9; arXiv
2004.09602, section 7), with a stopping rule.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halfstep.data import batches
from halfstep.errors import DataError, PlanError
from halfstep.graph.calibrate import calibrate
from halfstep.graph.capture import Example, Graph, capture
from halfstep.graph.edit import with_biases
from halfstep.graph.insert import QuantizedModel, prepare
from halfstep.graph.planner import make_plan
from halfstep.journal import Journal
from halfstep.progress import Progress
from halfstep.ptq.correct_bias_from_data import correct_bias_from_data
from halfstep.ptq.round_weights import round_weights
from halfstep.recipes.trials import Batch, Judge, Outcome, Trial, Trials
from halfstep.search.partial import partially_quantize


def best(  # noqa: PLR0913 (one parameter an option)
    model: nn.Module,
    example: Example,
    data: Iterable[Any],
    *,
    target: str,
    journal: Journal,
    progress: Progress,
    max_drop: float = 0.01,
    budget: float = 600.0,
    samples: int = 512,
    confidence: float = 0.95,
    cache: str | None = None,
    **choices: Any,
) -> QuantizedModel:
    """The quantized model of the first trial that is good enough.

    Args:
        model: the float model, a classifier.
        example: inputs to capture it with.
        data: batches, with labels to judge accuracy, or without to judge by the float model's
            decisions. The first ``samples`` are kept, half to calibrate and half to judge.
        target: where it will run.
        journal: where the estimate, every trial and its drop are recorded.
        progress: shows how far each step is.
        max_drop: the largest drop, as a share: 0.01 is one point.
        budget: seconds that trials may take.
        samples: how many to use.
        confidence: with which a drop has to be below ``max_drop``.
        cache: a folder for outcomes, to go on from after an interruption.
        **choices: of ``make_plan``, but for the calibrators, which the trials choose.

    Raises:
        DataError: fewer than two batches, or a model that gives no class scores.
        PlanError: a calibrator was chosen.
    """
    if taken := choices.keys() & {"calibrator", "weight_calibrator"}:
        raise PlanError(f"{', '.join(sorted(taken))}: the trials of 'best' choose it; leave it out")
    with journal.step("capture"):
        graph = with_biases(capture(model, example))
    calibration, judged = _halves(data, graph, samples)
    with journal.step("judge", samples=sum(len(b[0]) for b in judged)) as record:
        judge = Judge(graph, judged, confidence)
        record.facts["by"] = "the float model" if judge.labels is None else "labels"
    trials = _trials(calibration, judged, target, max_drop, choices, progress)
    forward = _seconds(graph, calibration)
    with journal.step("estimate", budget=f"{budget:.0f} s") as record:
        record.facts |= {t.name: f"{t.cost * forward:.0f} s" for t in trials}
    described = [sorted(choices.items()), target, *(v for b in (*calibration, *judged) for v in b)]
    runner = Trials(graph, judge, Path(cache) if cache else None, described)
    found = _first_good(trials, runner, journal, max_drop, budget, forward)
    return found.model


def _first_good(
    trials: list[Trial],
    runner: Trials,
    journal: Journal,
    max_drop: float,
    budget: float,
    forward: float,
) -> Outcome:
    """Run trials until one is shown to be good enough; record why the one that is taken is."""
    begin = time.perf_counter()
    outcomes: list[tuple[str, Outcome]] = []
    for trial in trials:
        left = budget - (time.perf_counter() - begin)
        with journal.step(trial.name) as record:
            if outcomes and trial.cost * forward > left:
                record.facts["left out"] = f"about {trial.cost * forward:.0f} s, {left:.0f} s left"
                continue
            outcome = runner.run(trial)
            verdict = outcome.drop.judge(max_drop)
            record.facts |= {"drop": str(outcome.drop), "verdict": verdict}
            record.facts |= {"from": "the cache"} if outcome.cached else {}
        outcomes.append((verdict, outcome))
        if verdict == "shown":
            break
    order = {"shown": 0, "open": 1, "missed": 2}
    verdict, taken = min(outcomes, key=lambda pair: (order[pair[0]], pair[1].drop.drop))
    with journal.step("take", trial=taken.name, max_drop=f"{100 * max_drop:g} points") as record:
        record.facts["because"] = {
            "shown": "its drop is shown to be below",
            "open": "its drop is below, and the samples are too few to be sure",
            "missed": "no trial stays below, and its drop is the smallest",
        }[verdict]
    return taken


def _trials(
    calibration: list[Batch],
    judged: list[Batch],
    target: str,
    max_drop: float,
    choices: dict[str, Any],
    progress: Progress,
) -> list[Trial]:
    """From cheap to expensive."""

    def plan(calibrator: str) -> Any:
        made = {**choices, "calibrator": calibrator, "weight_calibrator": calibrator}
        return lambda graph: make_plan(graph, target, **made)

    def ranges(model: QuantizedModel) -> None:
        calibrate(model, calibration, progress=progress)

    def corrected(model: QuantizedModel) -> None:
        ranges(model)
        correct_bias_from_data(model, calibration)

    def rounded(model: QuantizedModel) -> None:
        ranges(model)
        round_weights(model, calibration, progress=progress)

    def partial(graph: Graph) -> Any:
        fitted = prepare(graph, plan("mse")(graph))
        ranges(fitted)  # without rounding: what is left in float has its own weights
        found = partially_quantize(fitted, judged, share=max_drop, progress=progress)
        return found.plan

    return [
        Trial("minmax", 2, plan("minmax"), ranges),
        Trial("mse", 3, plan("mse"), ranges),
        Trial("corrected", 8, plan("mse"), corrected),
        Trial("rounded", 20, plan("mse"), rounded),
        Trial("partial", 60, partial, rounded, depends_on=(max_drop,)),
    ]


def _halves(data: Iterable[Any], graph: Graph, samples: int) -> tuple[list[Batch], list[Batch]]:
    """Batches to calibrate on and to judge by, in turns; the first ``samples`` alone."""
    kept: list[Batch] = []
    for values, labels in batches(data, graph.inputs, torch.as_tensor):
        kept.append(values if labels is None else (*values, labels))
        if sum(len(batch[0]) for batch in kept) >= samples:
            break
    if len(kept) < 2:
        raise DataError(
            f"{len(kept)} batch: 'best' calibrates on one half of the batches and judges on the "
            "other; give the data in two or more"
        )
    return kept[::2], kept[1::2]


def _seconds(graph: Graph, calibration: list[Batch]) -> float:
    """The time of the float model over the calibration samples, from its first batch."""
    inputs = calibration[0][: len(graph.inputs)]
    begin = time.perf_counter()
    with torch.inference_mode():
        graph.module(*inputs)
    each = (time.perf_counter() - begin) / len(inputs[0])
    return each * sum(len(batch[0]) for batch in calibration)
