"""Data-free quantization: what a trained network needs to survive one scale for each weight.

Reference: Nagel et al. 2019 (arXiv 1906.04721), figure 4 and section 5: fold the batch norms,
replace ReLU6 by ReLU, equalize to convergence, absorb high biases, quantize the weights, correct
the biases by what the batch norms say, set activation ranges by the same statistics. No data and
no training; 3 deviations for absorption and 6 for ranges are the only numbers. Where channels
cannot be equalized, the paper clips weights instead.

Deviations: weights are symmetric, as the kernels want them (asymmetric in the paper). The bound of
ReLU6 becomes one bound a channel, which is exact, where the paper drops it: that is "replace", and
costs a network that was trained with the bound its accuracy. Scales are held where they would blow
up an activation (``headroom`` in ``ptq.equalize``). Biases beside padding are not absorbed, unless
asked for, because that changes the function.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from halfstep.errors import DataError
from halfstep.graph.calibrate import calibrate
from halfstep.graph.capture import Example, Graph, capture
from halfstep.graph.edit import with_biases
from halfstep.graph.insert import QuantizedModel, prepare
from halfstep.graph.planner import make_plan
from halfstep.journal import Journal
from halfstep.progress import Progress
from halfstep.ptq.absorb_bias import Borders, absorb_bias
from halfstep.ptq.batchnorm_ranges import set_batchnorm_ranges
from halfstep.ptq.clip_weights import clip_weights
from halfstep.ptq.correct_bias import correct_bias
from halfstep.ptq.distill_data import distill_data
from halfstep.ptq.equalize import Relu6, equalize

# Images that are distilled together: enough to speak of their mean and deviation.
_BATCH = 32


def dfq(  # noqa: PLR0913 (one parameter an option)
    model: nn.Module,
    example: Example,
    data: Iterable[Any],
    *,
    target: str,
    journal: Journal,
    progress: Progress,
    equalization: Relu6 | None = "caps",
    headroom: float | None = 4.0,
    absorption: Borders | None = "refuse",
    clip: float | None = None,
    correction: bool = True,
    input_range: tuple[float, float] = (-6.0, 6.0),
    distilled: int = 0,
    **choices: Any,
) -> QuantizedModel:
    """A quantized model, made without any data but an example.

    Args:
        model: the float model, with its batch norms.
        example: inputs to capture it with; their values only have to lie in ``input_range``.
        data: not looked at.
        target: where it will run.
        journal: where the steps are recorded.
        progress: shows how far distillation is.
        equalization: what becomes of ReLU6 there (``ptq.equalize``); ``None`` equalizes nothing.
        headroom: how far an activation may stick out of the others there; ``None`` for any.
        absorption: what becomes of padding there (``ptq.absorb_bias``); ``None`` absorbs nothing.
        clip: a level to clip weights at, such as the paper's 15 where nothing is equalized.
        correction: whether the shift of rounded weights is taken back.
        input_range: the range of the model's real-valued inputs.
        distilled: calibrate on so many images made from the batch norms instead.
        **choices: of ``make_plan``; ``per_channel`` is False unless given.

    Raises:
        CalibrationError: a value that no batch norm knows anything of; ask for ``distilled``.
        DataError: the example is outside of ``input_range``; or images are to be distilled, and
            there is no batch norm or more than one input.
    """
    del data
    with journal.step("capture"):
        graph = with_biases(capture(model, example))
    exact = _transformed(graph, equalization, headroom, absorption, journal)
    clipped = exact if clip is None else _clipped(exact, clip, journal)
    with journal.step("plan", target=target):
        plan = make_plan(clipped, target, **{"per_channel": False} | choices)
    quantized = prepare(clipped, plan)
    with journal.step("ranges") as record:
        record.facts |= _set_ranges(model, quantized, distilled, input_range, progress)
    if correction:
        with journal.step("correct") as record:
            record.facts["layers"] = len(correct_bias(quantized, reference=exact).layers)
    return quantized


def _transformed(
    graph: Graph,
    equalization: Relu6 | None,
    headroom: float | None,
    absorption: Borders | None,
    journal: Journal,
) -> Graph:
    """What keeps the float function, but for bounds that are dropped."""
    if equalization is not None:
        with journal.step("equalize") as record:
            graph, equalized = equalize(graph, relu6=equalization, headroom=headroom)
            record.facts |= {"pairs": len(equalized.pairs), "sweeps": equalized.sweeps}
    if absorption is not None:
        with journal.step("absorb") as record:
            graph, absorbed = absorb_bias(graph, borders=absorption)
            record.facts |= {"pairs": len(absorbed.pairs), "refused": len(absorbed.refused)}
    return graph


def _clipped(graph: Graph, level: float, journal: Journal) -> Graph:
    with journal.step("clip", level=level) as record:
        graph, report = clip_weights(graph, level)
        record.facts["layers"] = len(report.layers)
    return graph


def _set_ranges(
    model: nn.Module,
    quantized: QuantizedModel,
    distilled: int,
    input_range: tuple[float, float],
    progress: Progress,
) -> dict[str, Any]:
    """Give every activation its range; what of that is worth a record."""
    if not distilled:
        ranges = set_batchnorm_ranges(quantized, input_range=input_range)
        return {"known": len(ranges.known), "estimated": len(ranges.estimated)}
    example = quantized.graph.example
    if len(example) != 1 or not example[0].is_floating_point():
        raise DataError(
            f"{', '.join(quantized.graph.inputs)}: asked for {distilled} distilled images, and "
            "they are made for models of one real-valued input; leave out distilled"
        )
    size = min(distilled, _BATCH)
    shape = (size, *example[0].shape[1:])
    images = distill_data(model, shape, batches=-(-distilled // size), progress=progress)
    return {"samples": calibrate(quantized, images, progress=progress)}
