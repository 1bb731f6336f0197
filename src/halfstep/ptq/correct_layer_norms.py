"""Bias correction at the layer norms: the means of their outputs, taken back to the float ones.

Reference: "Norm tweaking" (Li et al. 2023, arXiv 2309.02784): only the parameters of layer norms
are touched, so that each channel behind a layer norm is distributed as in the float model. Here
the means are made equal, which has a solution in closed form, the empirical bias correction of
Nagel et al. 2021 (arXiv 2106.08295, section 3.4) with a layer norm as the layer: in the order of
execution, with everything in front quantized and corrected already,

    beta <- beta - mean(yh - y)

over samples and positions, each position counted by its influence on the output
(``ptq.importance``). On integers ``beta`` is on a grid, which is then fitted to it again.

Why there, and not at the linear layers: in an encoder a few tokens have outputs a hundred times as
large as the others', and what clipping takes from them is most of the mean of a linear layer's
error; taken back, it moves all other tokens. Behind a layer norm no token is larger than others.

Deviation: norm tweaking also moves ``gamma``, by gradient steps on generated text.
"""

from collections.abc import Iterable
from typing import Any

from torch import fx

from halfstep.graph.calibrate import fit_grid
from halfstep.graph.edit import is_shared, set_value
from halfstep.graph.insert import QuantizedModel
from halfstep.graph.match import Unit
from halfstep.graph.readers import arguments
from halfstep.progress import Progress, silent
from halfstep.ptq.correct_bias import Correction, CorrectionReport
from halfstep.ptq.correct_bias_from_data import mean_difference, switched_off
from halfstep.ptq.pairs import Refusal
from halfstep.ptq.streams import LIVE_BYTES, Streams
from halfstep.quant.quantizer import Quantizer


def correct_layer_norms(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    live_bytes: float = LIVE_BYTES,
    progress: Progress = silent,
) -> CorrectionReport:
    """Shift the biases of the layer norms of ``model``, in place, to the means of the float model.

    Args:
        model: calibrated.
        data: batches; read once.
        live_bytes: how much to keep of the values at a cut; see ``streams.py``.
        progress: wraps the layer norms.

    Raises:
        DataError: an empty loader, or a batch of a wrong shape, dtype or value.
        CalibrationError: a site has no grid yet.
    """
    units = [unit for unit in model.units.units if unit.kind == "layer_norm"]
    if not units:
        return CorrectionReport((), ())
    layers: list[Correction] = []
    skipped: list[Refusal] = []
    streams = Streams(model, data, live_bytes=live_bytes, progress=progress)
    for layer in streams.layers(units):
        bias: fx.Node | None = arguments(layer.unit.head)["bias"]
        reason = _refused(layer.unit, bias)
        if reason or bias is None:
            skipped.append(Refusal(layer.unit.name, reason))
            continue
        quantizers = _quantizers(model, bias)
        with switched_off(*quantizers):
            shift = mean_difference(layer)
        set_value(model.module, bias, model.parameter_of(bias).detach().double() - shift)
        for quantizer in quantizers:
            fit_grid(quantizer, model.parameter_of(bias))
        layers.append(Correction(layer.unit.name, shift))
    return CorrectionReport(tuple(layers), tuple(skipped))


def _quantizers(model: QuantizedModel, bias: fx.Node) -> list[Quantizer]:
    """That of a bias, where the layer norm runs on integers; a float one reads no codes."""
    site = model.units.sites[bias]
    return [model.quantizer(site)] if site in model.site_quantizer else []


def _refused(unit: Unit, bias: fx.Node | None) -> str:
    if bias is None:
        return "it has no bias"
    if unit.attrs["n_axes"] != 1:
        return f"it normalizes over {unit.attrs['n_axes']} axes together, so it has no channels"
    return "its bias is shared with another layer" if is_shared(bias) else ""
