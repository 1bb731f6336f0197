"""Plain post-training quantization: fold, plan, calibrate.

Reference: Krishnamoorthi 2018 (arXiv 1806.08342), section 3.1: symmetric per-channel weights,
per-tensor asymmetric activations, ranges from a small calibration set, batch norms folded.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from halfstep.errors import PlanError
from halfstep.graph.calibrate import calibrate
from halfstep.graph.capture import Example, capture
from halfstep.graph.insert import QuantizedModel, prepare
from halfstep.graph.plan import Plan
from halfstep.graph.planner import make_plan
from halfstep.journal import Journal
from halfstep.progress import Progress


def ptq(
    model: nn.Module,
    example: Example,
    data: Iterable[Any],
    *,
    target: str,
    journal: Journal,
    progress: Progress,
    plan: Plan | None = None,
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
        plan: what to do with every site; made from the choices if there is none.
        **choices: of ``make_plan``: weights, activations, calibrator, ...

    Raises:
        PlanError: the plan is of another target or graph, or choices were given as well.
    """
    if plan is not None and choices:
        raise PlanError(f"a plan leaves no choice of {', '.join(choices)}; change the plan instead")
    if plan is not None and plan.target != target:
        raise PlanError(f"the plan is for target '{plan.target}', asked for was '{target}'")
    with journal.step("capture"):
        graph = capture(model, example)
    with journal.step("plan", target=target):
        plan = plan or make_plan(graph, target, **choices)
    with journal.step("prepare"):
        quantized = prepare(graph, plan)
    with journal.step("calibrate") as record:
        record.facts["samples"] = calibrate(quantized, data, progress=progress)
    return quantized
