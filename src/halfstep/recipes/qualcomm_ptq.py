"""The post-training pipeline of Qualcomm's white paper.

Reference: Nagel et al. 2021 (arXiv 2106.08295), section 3.7, figure 9: equalize across layers; add
quantizers, symmetric for weights and asymmetric for activations; set the ranges of weights by
squared error; with calibration data AdaRound, else correct biases analytically; set the ranges of
activations by squared error, and that of the logits by cross entropy.

Deviations: activation ranges are found on the float model, before the weights are rounded, so that
AdaRound sees quantized inputs (its "asymmetric reconstruction"). ReLU6 is replaced by ReLU only if
asked for: the paper's MobileNets do, here the exact bounds of channels are the default. Layers
have one scale a channel; the paper takes that where the hardware does, and so do the targets here.
``rounding="together"`` takes the fast solver of the same objective, ``ptq.round_weights``.
"""

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn

from halfstep.errors import CalibrationError, PlanError
from halfstep.graph.calibrate import calibrate
from halfstep.graph.capture import Example, capture
from halfstep.graph.edit import with_biases
from halfstep.graph.insert import QuantizedModel, prepare
from halfstep.graph.planner import make_plan
from halfstep.journal import Journal
from halfstep.progress import Progress
from halfstep.ptq.adaround import adaround
from halfstep.ptq.correct_bias import correct_bias
from halfstep.ptq.cross_entropy_range import cross_entropy_range
from halfstep.ptq.equalize import Relu6, equalize
from halfstep.ptq.round_weights import round_weights
from halfstep.search.samples import keeping

Rounding = Literal["adaround", "together", "nearest"]
_ROUNDING = ("adaround", "together", "nearest")


def qualcomm_ptq(  # noqa: PLR0913 (one parameter an option)
    model: nn.Module,
    example: Example,
    data: Iterable[Any],
    *,
    target: str,
    journal: Journal,
    progress: Progress,
    rounding: Rounding = "adaround",
    iterations: int = 10_000,
    samples: int = 1024,
    equalization: Relu6 | None = "caps",
    **choices: Any,
) -> QuantizedModel:
    """A calibrated model, ready to be lowered.

    Args:
        model: the float model.
        example: inputs to capture it with.
        data: batches to calibrate on, read once; the first ``samples`` are kept.
        target: where it will run.
        journal: where the steps are recorded.
        progress: shows how far each step is.
        rounding: "adaround"; "together" for the fast solver; "nearest", which corrects biases
            analytically instead.
        iterations: of AdaRound, for each layer.
        samples: how many samples are kept for rounding and for the range of the logits.
        equalization: what becomes of ReLU6 in equalization; ``None`` equalizes nothing.
        **choices: of ``make_plan``; weights have ``weight_calibrator="mse"`` unless given.

    Raises:
        PlanError: an unknown kind of rounding.
    """
    if rounding not in _ROUNDING:
        raise PlanError(f"rounding: asked for {rounding!r}, known are {', '.join(_ROUNDING)}")
    with journal.step("capture"):
        graph = with_biases(capture(model, example))
    if equalization is not None:
        with journal.step("equalize") as record:
            graph, equalized = equalize(graph, relu6=equalization)
            record.facts |= {"pairs": len(equalized.pairs), "sweeps": equalized.sweeps}
    with journal.step("plan", target=target):
        plan = make_plan(graph, target, **{"weight_calibrator": "mse"} | choices)
    quantized = prepare(graph, plan)
    held: list[tuple[Tensor, ...]] = []
    with journal.step("calibrate") as record:
        stream = keeping(data, graph.inputs, samples, held)
        record.facts["samples"] = calibrate(quantized, stream, progress=progress)
    with journal.step("round", rounding=rounding) as record:
        record.facts["layers"] = _round(quantized, held, rounding, iterations, progress)
    with journal.step("logits") as record:
        try:
            found = cross_entropy_range(quantized, held)
            record.facts["cross entropy"] = f"{found.before:.5f} -> {found.after:.5f}"
        except CalibrationError as reason:
            record.facts["left out"] = str(reason)
    return quantized


def _round(
    model: QuantizedModel,
    held: list[tuple[Tensor, ...]],
    rounding: Rounding,
    iterations: int,
    progress: Progress,
) -> int:
    """Round the weights; how many layers were."""
    if rounding == "nearest":
        return len(correct_bias(model).layers)
    if rounding == "together":
        return len(round_weights(model, held, progress=progress).layers)
    return len(adaround(model, held, iterations=iterations, progress=progress).layers)
