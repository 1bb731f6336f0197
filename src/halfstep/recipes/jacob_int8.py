"""Integer-arithmetic-only inference, without its training: per-layer weights, averaged ranges.

Reference: B. Jacob et al., "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", CVPR 2018 (arXiv 1712.05877), sections 2 and 3. Symbols:
``S, Z`` are scale and zero point, ``a = min w`` and ``b = max w`` the range of a weight.

- Weights: one ``S`` an array; the smallest and the largest value; codes in [-127, 127], so that
  the sum of two products fits an int16 (appendix B).
- Activations: uint8, one ``S, Z`` an array; moving averages of the extremes of each batch, with a
  smoothing parameter close to 1 (section 3.1).
- Biases: int32, ``S_bias = S1 S2``, ``Z_bias = 0`` (section 2.4).
- Batch norms are folded first; arrays that are concatenated share their grid (appendix A.3).

It differs from ``krishnamoorthi_ptq`` in the granularity of the weights, and from ``ptq`` in the
ranges of the activations as well.

Deviations: the paper trains the network with these quantizers in it, and calibrates while it does;
this is what can be had without training. Its weights have a zero point; no target runs such
weights, and here it is 0. Accumulators are requantized by the formula of the target: the paper's
own, with a 31-bit multiplier and two roundings, is ``halfstep.core.requant.double_rounding``.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from halfstep.graph.calibrate import calibrate
from halfstep.graph.capture import Example, capture
from halfstep.graph.insert import QuantizedModel, prepare
from halfstep.graph.planner import make_plan
from halfstep.journal import Journal
from halfstep.progress import Progress
from halfstep.recipes.published import Published

BITS = range(8, 3, -1)
PAPER = Published(
    "jacob_int8",
    {
        "weights": tuple(f"int{bits}_narrow" for bits in BITS),
        "activations": tuple(f"uint{bits}" for bits in BITS),
        "per_channel": (False,),
        "calibrator": ("ema",),
        "weight_calibrator": ("minmax",),
        "first_last": (None,),
        "pow2": (False,),
        "group_size": (None,),
    },
)
"""The paper's experiments: 8 bits, and down to 4 for weights and activations (section 4.2.4)."""


def jacob_int8(
    model: nn.Module,
    example: Example,
    data: Iterable[Any],
    *,
    target: str,
    journal: Journal,
    progress: Progress,
    momentum: float = 0.9,
    **choices: Any,
) -> QuantizedModel:
    """A calibrated model, ready to be lowered.

    Args:
        model: the float model.
        example: inputs to capture it with.
        data: batches to calibrate on.
        target: where it will run.
        journal: where the steps are recorded.
        progress: shows how far the calibration is.
        momentum: the smoothing parameter of the averages. The paper, with thousands of batches,
            has one closer to 1 than the default, which is meant for tens.
        **choices: of ``make_plan``, those that the paper leaves open: weights, activations.

    Raises:
        PlanError: a choice that contradicts the paper.
        CalibrationError: a momentum that is no share.
    """
    settled = PAPER.settle(choices)
    with journal.step("capture"):
        graph = capture(model, example)
    with journal.step("plan", target=target, momentum=momentum):
        plan = make_plan(graph, target, **settled)
        averaged = {
            site: spec.with_(options={"momentum": momentum})
            for site, spec in plan.specs.items()
            if spec.calibrator == "ema"
        }
        plan = replace(plan, specs={**plan.specs, **averaged})
    with journal.step("prepare"):
        quantized = prepare(graph, plan)
    with journal.step("calibrate") as record:
        record.facts["samples"] = calibrate(quantized, data, progress=progress)
    return quantized
