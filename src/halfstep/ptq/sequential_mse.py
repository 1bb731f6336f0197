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

import torch

from halfstep.core.grid import Affine
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.ptq.layerwise import RoundedLayer, RoundingReport, layer_by_layer
from halfstep.ptq.moments import Problem, columns_first, moments
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
    quantizer = model.quantizer(model.weight_site(unit))
    if quantizer.spec.pow2:
        return "its scale is a power of two"
    weight = model.parameter_of(unit.weight).detach().cpu()
    problem = Problem.of(
        weight, moments(unit, layer.inputs(), samples, layer.importance).with_means()
    )
    old = quantizer.grid()
    codes = lattice.Codes(old.qtype.qmin, old.qtype.qmax)
    per_row = quantizer.spec.axis is not None
    scale = lattice.searched_scale(problem.target, problem.gram, codes, per_row)
    new = Affine(old.qtype, scale.reshape(old.scale.shape), old.zero_point, old.axis)
    before, after = (
        problem.error(columns_first(torch.from_numpy(g.nearest(weight.numpy())), problem.groups))
        for g in (old, new)
    )
    if after < before:
        quantizer.set_grid(new)
    return RoundedLayer(unit.name, before, min(before, after))
