"""Bias correction from data: measure the shift of every layer's output, and take it back.

Reference: Nagel et al. 2019 (arXiv 1906.04721), appendix D, and Nagel et al. 2021 (arXiv
2106.08295), section 3.4, "empirical bias correction". Layer by layer in the order of execution,
with the weights and activations of everything in front quantized and corrected already, and its
own weight quantized, a layer ``l`` gives ``yh_l`` where the float model gives ``y_l``, in front of
the activation function. Then ``b_l -= mean(yh_l - y_l)`` over samples and positions.

Deviations: none. The outputs are not computed from the start for every layer but from the last
place in the graph where few values are live (``streams.py``), which gives the same means.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from halfstep.graph.calibrate import keep_biases_small
from halfstep.graph.insert import QuantizedModel
from halfstep.graph.inserter import module_name
from halfstep.graph.match import Unit
from halfstep.progress import Progress, silent
from halfstep.ptq.correct_bias import (
    Correction,
    CorrectionReport,
    bias_refused,
    shift_bias,
)
from halfstep.ptq.pairs import Refusal
from halfstep.ptq.streams import LIVE_BYTES, Layer, Streams
from halfstep.quant.bias import BiasQuantizer
from halfstep.quant.quantizer import Quantizer


def correct_bias_from_data(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    live_bytes: float = LIVE_BYTES,
    progress: Progress = silent,
) -> CorrectionReport:
    """Shift the biases of ``model``, in place, so that the means of all layers are the float ones.

    Args:
        model: calibrated; every layer to correct has a bias (``graph.edit.with_biases``).
        data: batches; read once.
        live_bytes: how much to keep of the values at a cut; see ``streams.py``.
        progress: wraps the layers.

    Raises:
        DataError: an empty loader, or a batch of a wrong shape, dtype or value.
        CalibrationError: a site has no grid yet.
    """
    layers: list[Correction] = []
    skipped: list[Refusal] = []
    for layer in Streams(model, data, live_bytes=live_bytes, progress=progress).layers():
        reason = bias_refused(layer.unit)
        if reason:
            skipped.append(Refusal(layer.unit.name, reason))
            continue
        with switched_off(_rounding_of_bias(model, layer.unit)):
            shift = mean_difference(layer)
        shift_bias(model, layer.unit, -shift)
        layers.append(Correction(layer.unit.name, shift))
    keep_biases_small(model)
    return CorrectionReport(tuple(layers), tuple(skipped))


def mean_difference(layer: Layer) -> Tensor:
    """``mean(yh - y)`` of each output channel over samples and positions, float64."""
    axis = 1 if layer.unit.kind in ("conv", "conv_transpose") else -1
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for index, (exact, quantized) in enumerate(layer.outputs()):
        rows = (quantized - exact).double().movedim(axis, 0).flatten(1)
        counts = torch.ones_like(rows[0])
        if layer.importance is not None:
            counts = layer.importance[index].flatten().to(rows)
        total = total + rows @ counts
        count += float(counts.sum())
    return total / count


@contextmanager
def switched_off(*roundings: Quantizer | BiasQuantizer) -> Iterator[None]:
    """While the body runs; the rounding of a bias will be another one when the bias is."""
    changed = [rounding for rounding in roundings if rounding.enabled]
    for rounding in changed:
        rounding.enabled = False
    try:
        yield
    finally:
        for rounding in changed:
            rounding.enabled = True


def _rounding_of_bias(model: QuantizedModel, unit: Unit) -> BiasQuantizer:
    rounding = model.module.get_submodule(module_name(f"{unit.name}:bias"))
    assert isinstance(rounding, BiasQuantizer)
    return rounding
