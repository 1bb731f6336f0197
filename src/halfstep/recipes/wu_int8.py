"""Wu's workflow: int8 scale quantization, four calibrators side by side, and layers left in float.

Reference: H. Wu et al., "Integer quantization for deep learning inference: principles and empirical
evaluation", arXiv 2004.09602, 2020, sections 3 to 6 and the workflow of section 7. Symbols:
``alpha`` is the largest magnitude to represent, ``s = 127 / alpha``, and codes are
``clip(round(s x), -127, 127)`` with zero point 0 (equations 5 to 7).

- Weights: one scale an output channel, ``alpha`` the largest magnitude.
- Activations: one scale a tensor; ``alpha`` by max, by entropy, and by the 99.99 and the 99.999
  percentile. The one with the best metric is kept.
- If that is not within 1 % of the float model, the most sensitive layers are left in float, one by
  one (``search.partial``).

Deviations: the target's activations are uint8, so a code is the paper's plus 128: the same numbers
on the same grid. A value that is never negative has zero point 0 and all 255 steps instead, twice
as fine as the paper's; so has its entropy twice as many levels. A softmax keeps the grid that its
kernel dictates. The paper judges on the validation set; here it is the first samples of the
calibration data, which are kept for it. What the paper does next, training, is another recipe.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halfstep.catalog import find
from halfstep.core.grid import SMALLEST_SCALE, Affine
from halfstep.core.qtype import QType
from halfstep.graph.calibrate import (
    Watched,
    calibrate_weights,
    grid_of,
    keep_biases_small,
    observe,
)
from halfstep.graph.capture import Example, capture
from halfstep.graph.insert import QuantizedModel, prepare
from halfstep.graph.plan import Plan
from halfstep.graph.planner import make_plan
from halfstep.journal import Journal
from halfstep.progress import Progress
from halfstep.quant.calibrators.base import Calibrator
from halfstep.recipes.published import Published
from halfstep.search.metrics import METRICS, Meter
from halfstep.search.partial import partially_quantize, share_metric
from halfstep.search.samples import Batch, keeping, kept

PAPER = Published(
    "wu_int8",
    {
        "weights": ("int8_narrow",),
        "activations": ("uint8",),
        "per_channel": (True,),
        "calibrator": ("percentile",),
        "weight_calibrator": ("minmax",),
        "first_last": (None,),
        "pow2": (False,),
        "group_size": (None,),
    },
)

CALIBRATORS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "max": ("minmax", {}),
    "entropy": ("entropy", {}),
    "99.99 %": ("percentile", {"percentile": 99.99}),
    "99.999 %": ("percentile", {"percentile": 99.999}),
}
"""What is compared: calibrators of the catalog with their options."""


def wu_int8(  # noqa: PLR0913 (one parameter an option)
    model: nn.Module,
    example: Example,
    data: Iterable[Any],
    *,
    target: str,
    journal: Journal,
    progress: Progress,
    judged: int = 256,
    metric: str | None = None,
    share: float = 0.01,
    **choices: Any,
) -> QuantizedModel:
    """A calibrated model, ready to be lowered, perhaps with operations in float.

    Args:
        model: the float model.
        example: inputs to capture it with.
        data: batches to calibrate on, with labels to judge by accuracy. Read once; the first
            ``judged`` samples are kept.
        target: where it will run.
        journal: where the steps are recorded, with the metric of each calibrator.
        progress: shows how far each step is.
        judged: samples that calibrators and layers are compared on.
        metric: "accuracy", "agreement" or "cosine"; by default accuracy where there are labels, or
            else agreement with the float model; cosine where the output is no scores of classes.
        share: how much of the float model's metric may be lost.
        **choices: of ``make_plan``; the paper leaves none open.

    Raises:
        PlanError: a choice that contradicts the paper.
    """
    settled = PAPER.settle(choices)
    with journal.step("capture"):
        graph = capture(model, example)
    with journal.step("plan", target=target):
        plan = make_plan(graph, target, **settled)
    quantized = prepare(graph, plan)
    held: list[tuple[Tensor, ...]] = []
    with journal.step("calibrate") as record:
        watched = observe(quantized, keeping(data, graph.inputs, judged, held), progress=progress)
        record.facts["samples"] = watched.samples
    with journal.step("compare", samples=judged) as record:
        judges = kept(quantized, held)
        name = share_metric(metric, judges)
        values = _compared(quantized, watched, judges, name, progress)
        record.facts |= {key: METRICS[name].text(value) for key, value in values.items()}
    best = max(values, key=lambda key: values[key])
    quantized = prepare(graph, _with_calibrator(plan, *CALIBRATORS[best]))
    _set_grids(quantized, watched, best)
    with journal.step("partial", calibrator=best) as record:
        found = partially_quantize(quantized, held, metric=name, share=share, progress=progress)
        record.facts |= {name: METRICS[name].text(found.value), "in float": len(found.skipped)}
    if not found.skipped:
        return quantized
    smaller = prepare(graph, found.plan)
    for quantizer in smaller.quantizers():
        quantizer.set_grid(quantized.quantizer(quantizer.site).grid())
    return smaller


def scale_grid(low: float, high: float, qtype: QType) -> Affine:
    """The paper's grid in unsigned codes: zero point in the middle, or 0 if nothing is negative."""
    middle = 1 << (qtype.bits - 1) if low < 0 else 0
    alpha = max(-low, high)
    scale = np.float32(alpha / (qtype.qmax - middle)) if alpha else np.float32(1)
    return Affine(qtype, np.maximum(scale, SMALLEST_SCALE), np.asarray(middle, np.int32))


def _compared(
    model: QuantizedModel,
    watched: Watched,
    judges: tuple[Batch, ...],
    metric: str,
    progress: Progress,
) -> dict[str, float]:
    """The metric of the quantized model with each calibrator."""
    values = {}
    for name in progress(CALIBRATORS, "calibrators"):
        _set_grids(model, watched, name)
        meter = Meter(METRICS[metric])
        with torch.inference_mode():
            for batch in judges:
                meter.add(model.module(*batch.inputs)[0], batch.reference, batch.labels)
        values[name] = meter.value
    return values


def _set_grids(model: QuantizedModel, watched: Watched, name: str) -> None:
    """Give every quantizer the grid that one of the calibrators finds."""
    calibrate_weights(model)
    for site, seen in watched.calibrators.items():
        quantizer = model.quantizer(site)
        spec = quantizer.spec
        if spec.dictated:
            quantizer.set_grid(grid_of(seen, spec, site))
        else:
            low, high = _reader(name, seen).range()
            quantizer.set_grid(scale_grid(float(low), float(high), spec.qtype))
    keep_biases_small(model)


def _reader(name: str, seen: Calibrator) -> Calibrator:
    """A calibrator of the comparison with what was seen; magnitudes where values are signed."""
    method, options = CALIBRATORS[name]
    reader: Calibrator = find("calibrator", method)(
        seen.qtype, symmetric=bool(seen.low < 0), **options
    )
    return reader.adopt(seen)


def _with_calibrator(plan: Plan, calibrator: str, options: Mapping[str, float]) -> Plan:
    """The plan that names the calibrator that was chosen."""
    for site, spec in plan.specs.items():
        if not site.endswith(":weight") and not spec.dictated:
            plan = plan.edit(site, calibrator=calibrator, options=options)
    return plan
