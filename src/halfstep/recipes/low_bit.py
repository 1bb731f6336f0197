"""Few bits without training: ranges by squared error, and weights rounded together.

What it does, in order: fold the batch norms; find ranges by the least squared error; then, layer by
layer on the inputs that the quantized layers in front really give, choose the codes of the weights
together, fit their scales, and take the shift of the means back (``ptq.round_weights``). The data
is needed without labels.

Reference: the range setting of Nagel et al. 2021 (arXiv 2106.08295), section 3.1, and the objective
of AdaRound (arXiv 2004.10568), minimized on the Gram matrix of a layer's inputs as GPTQ does (arXiv
2210.17323), with coordinate descent behind it.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from halfstep.graph.calibrate import calibrate
from halfstep.graph.capture import Example, capture
from halfstep.graph.edit import with_biases
from halfstep.graph.insert import QuantizedModel, prepare
from halfstep.graph.planner import make_plan
from halfstep.journal import Journal
from halfstep.progress import Progress
from halfstep.ptq.round_weights import round_weights
from halfstep.search.samples import keeping


def low_bit(
    model: nn.Module,
    example: Example,
    data: Iterable[Any],
    *,
    target: str,
    journal: Journal,
    progress: Progress,
    samples: int = 256,
    rounds: int = 3,
    **choices: Any,
) -> QuantizedModel:
    """A calibrated model with rounded weights, ready to be lowered.

    Args:
        model: the float model.
        example: inputs to capture it with.
        data: batches to calibrate on, read once; the first ``samples`` are kept for rounding.
        target: where it will run.
        journal: where the steps are recorded.
        progress: shows how far each step is.
        samples: how many samples weights are rounded on.
        rounds: how often codes and scales are fitted in turn.
        **choices: of ``make_plan``: weights, activations, ...; ``weight_calibrator`` is "mse"
            unless given.
    """
    with journal.step("capture"):
        graph = with_biases(capture(model, example))
    with journal.step("plan", target=target):
        plan = make_plan(graph, target, **{"weight_calibrator": "mse"} | choices)
    with journal.step("prepare"):
        quantized = prepare(graph, plan)
    held: list[tuple[Tensor, ...]] = []
    with journal.step("calibrate") as record:
        stream = keeping(data, graph.inputs, samples, held)
        record.facts["samples"] = calibrate(quantized, stream, progress=progress)
    with journal.step("round", samples=sum(len(batch[0]) for batch in held)) as record:
        report = round_weights(quantized, held, rounds=rounds, progress=progress)
        record.facts |= {"layers": len(report.layers), "skipped": len(report.skipped)}
    return quantized
