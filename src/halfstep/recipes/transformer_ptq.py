"""An encoder in static int8: every product on codes, ranges by what they do to the output.

What it does, in order: equalize the channels of what linear layers read (SmoothQuant, with its
strength searched); leave in float what is no product, and the sums that float operations read;
find ranges of activations by the influence of their errors on the output (PTQ4ViT's metric);
round the weights together, each layer on the inputs that it will get; find the ranges once more,
for what the rounded weights make, and, if asked to, move the worst of them by the error of the
output itself (LAPQ); take the means behind each layer norm back to those of the float model, in
its bias. If a largest loss is given, as few products are left in float as it takes.

References: Xiao et al. 2022 (arXiv 2211.10438) for ``ptq.smooth``; Yuan et al. 2022 (arXiv
2111.12293) for ``ptq.guide_ranges``; Nahshan et al. 2019 (arXiv 1911.07190) for
``search.output_ranges``; Li et al. 2023 (arXiv 2309.02784) for ``ptq.correct_layer_norms``; Wu et
al. 2020 (arXiv 2004.09602) for what is left in float.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from halfstep.catalog import find
from halfstep.core.target import Target
from halfstep.graph.calibrate import calibrate, keep_biases_small
from halfstep.graph.capture import Example, Graph, capture
from halfstep.graph.edit import with_biases
from halfstep.graph.insert import QuantizedModel, prepare
from halfstep.graph.plan import Plan
from halfstep.graph.planner import make_plan
from halfstep.graph.real_sums import keep_elementwise_float, leave_sums_real
from halfstep.journal import Journal
from halfstep.progress import Progress
from halfstep.ptq.correct_layer_norms import correct_layer_norms
from halfstep.ptq.guide_ranges import guide_ranges
from halfstep.ptq.round_weights import round_weights
from halfstep.ptq.smooth import smooth
from halfstep.search.float_price import float_prices, left_float
from halfstep.search.output_ranges import output_ranges
from halfstep.search.samples import keeping

Batches = list[tuple[Tensor, ...]]


def transformer_ptq(  # noqa: PLR0913 (one parameter an option)
    model: nn.Module,
    example: Example,
    data: Iterable[Any],
    *,
    target: str,
    journal: Journal,
    progress: Progress,
    samples: int = 256,
    alpha: float | None = None,
    insert: bool = True,
    searched: int = 0,
    rounding: bool = True,
    correction: bool = True,
    max_loss: float | None = None,
    **choices: Any,
) -> QuantizedModel:
    """A calibrated model, ready to be lowered.

    Args:
        model: the float model.
        example: inputs to capture it with.
        data: batches to calibrate on; the first ``samples`` are kept, for every step goes through
            them, and no more are read. One batch takes the memory of a training step.
        target: where it will run.
        journal: where the steps are recorded.
        progress: shows how far each step is.
        samples: how many samples are used.
        alpha: of SmoothQuant, 0 to 1; ``None`` searches it for each value.
        insert: where a factor cannot disappear into the operation in front, multiply by it.
        searched: how many ranges, the worst first, are moved by the error of the output.
        rounding: round weights together; otherwise each to the nearest.
        correction: correct the biases of layer norms.
        max_loss: the largest loss of cosine to the float output; ``None``: no product is float.
        **choices: of ``make_plan``.

    Raises:
        PlanError: the loss cannot be reached.
    """
    with journal.step("capture"):
        graph = with_biases(capture(model, example))
    held = _held(data, graph, samples)
    with journal.step("smooth", samples=sum(len(batch[0]) for batch in held)) as record:
        graph, smoothed = smooth(graph, held, alpha=alpha, insert=insert, progress=progress)
        record.facts |= {"groups": len(smoothed.groups), "refused": len(smoothed.refused)}
    with journal.step("plan", target=target):
        plan = _plan(graph, target, choices)
    quantized = _calibrated(graph, plan, held, journal, progress)
    if max_loss is not None:
        quantized = _left_float(graph, quantized, max_loss, held, journal, progress)
    if rounding:
        with journal.step("round") as record:
            rounded = round_weights(quantized, held, asymmetric=False, progress=progress)
            record.facts |= {"layers": len(rounded.layers), "skipped": len(rounded.skipped)}
    _fit_ranges(quantized, held, searched, journal, progress)
    if correction:
        with journal.step("correct layer norms") as record:
            corrected = correct_layer_norms(quantized, held, progress=progress)
            record.facts["corrected"] = len(corrected.layers)
    return quantized


def _held(data: Iterable[Any], graph: Graph, samples: int) -> Batches:
    """The first samples; no more are read."""
    held: Batches = []
    for _ in keeping(data, graph.inputs, samples, held):
        if sum(len(batch[0]) for batch in held) >= samples:
            break
    return held


def _plan(graph: Graph, target: str, choices: dict[str, Any]) -> Plan:
    plan = make_plan(graph, target, **choices)
    table: Target = find("target", target)
    if not table.integer_only:
        plan = leave_sums_real(graph, keep_elementwise_float(graph, plan))
    return plan


def _calibrated(
    graph: Graph, plan: Plan, held: Batches, journal: Journal, progress: Progress
) -> QuantizedModel:
    """The model of a plan, with ranges by their influence on the output of the float model."""
    quantized = prepare(graph, plan)
    with journal.step("calibrate"):
        calibrate(quantized, held, progress=progress)
    with journal.step("guide ranges") as record:
        guided = guide_ranges(quantized, held, progress=progress)
        record.facts["predicted error"] = f"{guided.before:.3g} -> {guided.after:.3g}"
    return quantized


def _left_float(
    graph: Graph,
    quantized: QuantizedModel,
    max_loss: float,
    held: Batches,
    journal: Journal,
    progress: Progress,
) -> QuantizedModel:
    """The model with as few products in float as the loss takes."""
    with journal.step("left float") as record:
        prices = float_prices(quantized, held, progress=progress)
        found = left_float(quantized, held, prices, share=max_loss, progress=progress)
        record.facts |= {"cosine": f"{found.value:.5f}", "operations": len(found.skipped)}
    return _calibrated(graph, found.plan, held, journal, progress) if found.skipped else quantized


def _fit_ranges(
    quantized: QuantizedModel, held: Batches, searched: int, journal: Journal, progress: Progress
) -> None:
    """Ranges by their influence on the output of the quantized model, and by that output itself."""
    with journal.step("guide ranges") as record:
        guided = guide_ranges(quantized, held, rounds=1, progress=progress)
        record.facts["predicted error"] = f"{guided.before:.3g} -> {guided.after:.3g}"
    worst = [found.site for found in guided.ranked()[:searched]]
    if worst:
        with journal.step("search ranges") as record:
            moved = output_ranges(quantized, held, sites=worst, progress=progress)
            for site, grid in moved.grids.items():
                quantized.quantizer(site).set_grid(grid)
            keep_biases_small(quantized)
            record.facts["error"] = f"{moved.before:.3g} -> {moved.after:.3g}"
