"""Bias correction without data: take back the shift that rounding the weights makes.

Reference: Nagel et al. 2019 (arXiv 1906.04721), section 4.2 and appendix C, equations 16 to 19.
With ``eps = Q(W) - W`` the mean of a layer's output moves by ``eps E[x]``, the same at every
position, so the bias can take it back:

    b -= (sum over the taps of eps) E[x]

``E[x]`` of each input channel follows from the batch norm in front and what lies between
(``channel_statistics.py``): behind a ReLU, ``E[x] = |gamma| p(beta / |gamma|) + beta P(beta /
|gamma|)``. Symbols: ``p`` and ``P`` are the normal density and its integral.

Deviations: ``|gamma|`` where the paper's text has ``gamma``, which may be negative. Taps on padding
count like all others. What the quantized inputs are off by is not corrected: that needs data
(``correct_bias_from_data.py``).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from halfstep.graph.batchnorm import value_of
from halfstep.graph.calibrate import keep_biases_small
from halfstep.graph.capture import Graph
from halfstep.graph.edit import is_shared, set_value
from halfstep.graph.insert import QuantizedModel
from halfstep.graph.match import Unit
from halfstep.ptq.blocks import blocks, of_constant
from halfstep.ptq.channel_statistics import channel_statistics
from halfstep.ptq.pairs import Refusal


@dataclass(frozen=True, eq=False)
class Correction:
    """One layer and what was taken from its bias, (outputs,) float64."""

    layer: str
    shift: Tensor

    def __str__(self) -> str:
        return f"{self.layer}: at most {float(self.shift.abs().max()):.3g}"


@dataclass(frozen=True, eq=False)
class CorrectionReport:
    """What bias correction did.

    Attributes:
        layers: in order of execution.
        skipped: layers whose bias stays, with the reason.
    """

    layers: tuple[Correction, ...]
    skipped: tuple[Refusal, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} biases corrected", *(f"  {layer}" for layer in self.layers)]
        return "\n".join([*lines, *(f"  not corrected: {refusal}" for refusal in self.skipped)])


def correct_bias(model: QuantizedModel, *, reference: Graph | None = None) -> CorrectionReport:
    """Shift the biases of ``model``, in place, by what its batch norms say about the means.

    Once is enough: a second call takes the same shift away again.

    Args:
        model: calibrated; every layer to correct has a bias (``graph.edit.with_biases``).
        reference: the graph with the weights to be true to; the model's own if ``None``. Another
            one has the same nodes, such as that before ``clip_weights``.

    Raises:
        CalibrationError: a weight has no grid yet.
    """
    source = reference or model.graph
    statistics = channel_statistics(source)
    means = {node.name: found.mean for node, found in statistics.items()}
    layers: list[Correction] = []
    skipped: list[Refusal] = []
    for unit in model.weighted_units():
        mean = means.get(unit.inputs[0].name)
        reason = bias_refused(unit)
        if not reason and mean is None:
            reason = "no batch norm says what the mean of its input is"
        if reason or mean is None:
            skipped.append(Refusal(unit.name, reason))
            continue
        error = blocks(unit.kind, unit.attrs, weight_error(model, unit, source))
        shift = of_constant(error, mean)
        shift_bias(model, unit, -shift)
        layers.append(Correction(unit.name, shift))
    keep_biases_small(model)
    return CorrectionReport(tuple(layers), tuple(skipped))


def bias_refused(unit: Unit) -> str:
    """Why the bias of a layer cannot be shifted; "" if it can."""
    if unit.bias is None:
        return "it has no bias; prepare it from halfstep.graph.edit.with_biases(graph)"
    return "its bias is shared with another layer" if is_shared(unit.bias) else ""


def weight_error(model: QuantizedModel, unit: Unit, reference: Graph) -> Tensor:
    """``Q(W) - W`` with the present weight of the model and that of ``reference``, float64."""
    assert unit.weight is not None, "a weighted unit"
    grid = model.quantizer(model.weight_site(unit)).grid()
    rounded = grid.nearest(model.parameter_of(unit.weight).detach().cpu().numpy())
    exact = value_of(reference.module, unit.weight).detach().cpu()
    return torch.from_numpy(rounded).double() - exact.double()


def shift_bias(model: QuantizedModel, unit: Unit, by: Tensor) -> None:
    """Add to the bias of a unit, in place."""
    bias: fx.Node | None = unit.bias
    assert bias is not None, "bias_refused said so"
    set_value(model.module, bias, model.parameter_of(bias).detach().double() + by)
