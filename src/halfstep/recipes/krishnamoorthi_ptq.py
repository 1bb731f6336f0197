"""Krishnamoorthi's post-training baseline: per-channel weights, averaged ranges of activations.

Reference: R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: a
whitepaper", 2018 (arXiv 1806.08342), sections 2 and 3.1.

- Weights: symmetric, one scale an output channel, the smallest and the largest value.
- Activations: asymmetric, one scale a tensor; moving averages of the extremes of each batch.
- Batch norms are folded first, biases have 32 bits, and nothing is quantized between an addition
  and its ReLU.

It differs from ``ptq`` in how activation ranges are found: averages, not the least squared error.

Deviations: the paper has a second granularity of weights, per layer and asymmetric, and asymmetric
weights per channel. No target runs weights with a zero point, so ``per_channel=False`` is symmetric
here, and the third is left out. The codes of weights are narrow, as integer kernels like them.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from halfstep.graph.capture import Example
from halfstep.graph.insert import QuantizedModel
from halfstep.journal import Journal
from halfstep.progress import Progress
from halfstep.recipes.ptq import ptq
from halfstep.recipes.published import Published

PAPER = Published(
    "krishnamoorthi_ptq",
    {
        "weights": ("int8_narrow", "int4_narrow"),
        "activations": ("uint8", "uint4"),
        "per_channel": (True, False),
        "calibrator": ("ema",),
        "weight_calibrator": ("minmax",),
        "first_last": (None,),
        "pow2": (False,),
        "group_size": (None,),
    },
)
"""The paper's experiments: 8 bits, and 4 bits for weights or activations."""


def krishnamoorthi_ptq(
    model: nn.Module,
    example: Example,
    data: Iterable[Any],
    *,
    target: str,
    journal: Journal,
    progress: Progress,
    **choices: Any,
) -> QuantizedModel:
    """A calibrated model, ready to be lowered.

    Args:
        model: the float model.
        example: inputs to capture it with.
        data: batches to calibrate on; about 100 in the paper. The averages weigh the last ones
            most.
        target: where it will run.
        journal: where the steps are recorded.
        progress: shows how far the calibration is.
        **choices: of ``make_plan``, those that the paper leaves open: weights, activations,
            per_channel.

    Raises:
        PlanError: a choice that contradicts the paper.
    """
    settled = PAPER.settle(choices)
    return ptq(model, example, data, target=target, journal=journal, progress=progress, **settled)
