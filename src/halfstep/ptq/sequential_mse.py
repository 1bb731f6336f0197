"""Ranges of weights by the error of the layer's output, layer by layer.

Reference: "sequential MSE" of AIMET; the range setting of Nagel et al. 2021 (arXiv 2106.08295,
section 3.1) with the output of the layer in place of the weight: the scale of each output channel
is ``argmin over s of || W x - Q(W; s) z ||^2``, with ``x`` the layer's inputs in the float model
and ``z`` those in the quantized one. On the moments of the inputs (``ptq.moments``) the error of a
candidate is a product of matrices, so that no candidate needs a pass over the data.

Candidates are shares of the range of a row, 0.3 to 1 in steps of 0.05; AIMET has 20.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfstep.core.grid import Affine
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.ptq.layerwise import RoundedLayer, RoundingReport, layer_by_layer
from halfstep.ptq.moments import moments
from halfstep.ptq.round_weights import columns_first
from halfstep.ptq.streams import Layer
from halfstep.quant.rounding import lattice


def sequential_mse(
    model: QuantizedModel, data: Iterable[Any], *, progress: Progress = silent
) -> RoundingReport:
    """Set the grids of all weights of ``model`` in place; weights and biases stay.

    Args:
        model: calibrated.
        data: a few hundred samples, without labels; read once.
        progress: wraps the layers.

    Returns:
        The error of each layer on its old and on its new grid, with nearest rounding.
    """
    return layer_by_layer(
        model, data, lambda layer, samples: _search(model, layer, samples), progress
    )


def _search(model: QuantizedModel, layer: Layer, samples: int) -> RoundedLayer | str:
    unit = layer.unit
    assert unit.weight is not None
    quantizer = model.quantizer(model.units.sites[unit.weight])
    if quantizer.spec.pow2:
        return "its scale is a power of two"
    found = moments(unit, layer.inputs(), samples).with_means()
    weight = model.parameter_of(unit.weight).detach().cpu()
    groups = len(found.gram)
    by_group = weight.double().reshape(groups, len(weight) // groups, -1)
    target, gram = columns_first(found.target(by_group)), found.gram.numpy().astype(np.float32)
    old = quantizer.grid()
    codes = lattice.Codes(old.qtype.qmin, old.qtype.qmax)
    scale = lattice.searched_scale(target, gram, codes, quantizer.spec.axis is not None)
    new = Affine(old.qtype, scale.reshape(old.scale.shape), old.zero_point, old.axis)
    power = float(lattice.squared_error(target, np.zeros_like(target), gram).sum())
    before, after = (
        float(lattice.squared_error(target, columns_first(values, len(gram)), gram).sum())
        for values in (_rounded(weight, old), _rounded(weight, new))
    )
    if after < before:
        quantizer.set_grid(new)
    power = max(power, float(np.finfo(np.float32).tiny))
    return RoundedLayer(unit.name, before / power, min(before, after) / power)


def _rounded(weight: Tensor, grid: Affine) -> Tensor:
    return torch.from_numpy(grid.dequantize(grid.quantize(weight.numpy())))
