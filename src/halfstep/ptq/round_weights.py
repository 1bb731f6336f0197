"""Weights rounded together, layer by layer, so that each layer's output stays what it was.

Reference: the objective is that of AdaRound (Nagel et al. 2020, arXiv 2004.10568), equation 25
without the activation function: ``argmin || W x - V z ||^2`` over weights ``V`` on the grid, with
``x`` the inputs of the layer in the float model and ``z`` those that the quantized layers in front
of it make. The error depends on the inputs through their second moments alone (``ptq.moments``),
so it is minimized on these, without gradients, by the methods of ``quant.rounding.lattice``.

Deviations from AdaRound: codes are not limited to the two neighbours of a weight; the scale of
each row is fitted too; biases are corrected for the means (so that empirical bias correction,
methods 2.1c of Nagel et al. 2019, arXiv 1906.04721, is part of it); the activation function behind
the layer is left out of the error.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfstep.core.grid import Affine
from halfstep.core.spec import QuantSpec
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.ptq.layerwise import RoundedLayer, RoundingReport, layer_by_layer
from halfstep.ptq.moments import moments
from halfstep.ptq.streams import Layer
from halfstep.quant.bias import widen_for_bias
from halfstep.quant.rounding import lattice

_TINY = 1e-30


def round_weights(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    rounds: int = 3,
    progress: Progress = silent,
) -> RoundingReport:
    """Put every weight of ``model`` on its grid, and fit grids and biases, in place.

    Args:
        model: calibrated. Layers without a bias (``graph.edit.with_biases`` gives them one) have
            their means in the error that is minimized.
        data: a few hundred samples, without labels; read once.
        rounds: how often codes and scales are fitted in turn.
        progress: wraps the layers.

    Returns:
        The error of each layer before and after.
    """
    return layer_by_layer(
        model, data, lambda layer, samples: _round(model, layer, samples, rounds), progress
    )


def _round(model: QuantizedModel, layer: Layer, samples: int, rounds: int) -> RoundedLayer:
    unit = layer.unit
    assert unit.weight is not None
    quantizer = model.quantizer(model.units.sites[unit.weight])
    weight = model.parameter_of(unit.weight)
    found = moments(unit, layer.inputs(), samples)
    found = found if unit.bias is not None else found.with_means()
    groups = len(found.gram)
    original = weight.detach().cpu().double().reshape(groups, len(weight) // groups, -1)
    target, gram = columns_first(found.target(original)), found.gram.numpy().astype(np.float32)
    grid, spec = quantizer.grid(), quantizer.spec
    before = grid.dequantize(grid.quantize(weight.detach().cpu().numpy()))
    values, new_grid = fit(target, gram, grid, spec, rounds)
    rows = torch.from_numpy(np.ascontiguousarray(values.transpose(0, 2, 1)))
    with torch.no_grad():
        weight.copy_(rows.reshape(weight.shape))
        if unit.bias is not None:
            bias = model.parameter_of(unit.bias)
            bias += found.shift(original, rows.double()).reshape(bias.shape).to(bias)
            source = model.quantizer(model.units.sites[unit.inputs[0]]).grid()
            new_grid = widen_for_bias(
                new_grid, bias.detach().cpu().numpy(), source, model.bias_type(unit), spec.pow2
            )
    quantizer.set_grid(new_grid)
    tried = (np.zeros_like(target), columns_first(torch.from_numpy(before), groups), values)
    power, nearest, error = (
        float(lattice.squared_error(target, value, gram).sum()) for value in tried
    )
    return RoundedLayer(unit.name, nearest / max(power, _TINY), error / max(power, _TINY))


def columns_first(weight: Tensor, groups: int | None = None) -> lattice.Array:
    """(groups, rows, columns), or a weight as the layer has it, as (groups, columns, rows)."""
    if groups is not None:
        weight = weight.reshape(groups, len(weight) // groups, -1)
    return np.ascontiguousarray(weight.mT.numpy(), np.float32)


def fit(
    target: lattice.Array, gram: lattice.Array, grid: Affine, spec: QuantSpec, rounds: int
) -> tuple[lattice.Array, Affine]:
    """Weights on a grid, of the shape of ``target``, and the grid."""
    codes = lattice.Codes(spec.qtype.qmin, spec.qtype.qmax)
    shape = (len(target), 1, target.shape[2])
    if spec.pow2:
        scale = np.broadcast_to(grid.scale, shape[0] * shape[2]).reshape(shape)
    else:
        scale = lattice.searched_scale(target, gram, codes, spec.axis is not None)
    chosen, scale = lattice.solve(
        target, gram, codes, scale=scale, fit_scale=not spec.pow2, rounds=rounds
    )
    scales = scale.reshape(grid.scale.shape) if not spec.pow2 else grid.scale
    return chosen * scale, Affine(grid.qtype, scales, grid.zero_point, grid.axis)
