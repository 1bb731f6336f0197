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

from halfstep.core.grid import Affine
from halfstep.core.spec import QuantSpec
from halfstep.graph.edit import set_value
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.ptq.layerwise import RoundedLayer, RoundingReport, layer_by_layer
from halfstep.ptq.moments import Moments, Problem, by_groups, columns_first, moments
from halfstep.ptq.streams import Layer
from halfstep.quant.bias import widen_for_bias
from halfstep.quant.rounding import lattice


def round_weights(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    rounds: int = 3,
    asymmetric: bool = True,
    progress: Progress = silent,
) -> RoundingReport:
    """Put every weight of ``model`` on its grid, and fit grids and biases, in place.

    Args:
        model: calibrated. Layers without a bias (``graph.edit.with_biases`` gives them one) have
            their means in the error that is minimized.
        data: a few hundred samples, without labels; read once.
        rounds: how often codes and scales are fitted in turn.
        asymmetric: make up for what quantization in front of a layer did to its inputs (AdaRound's
            "asymmetric reconstruction"). Where it clips outliers that the next layer norm divides
            out again, as in encoders, the error of a layer does not tell what matters, and making
            up for it does harm; without, ``x`` is ``z``, and only the rounding of the layer counts.
        progress: wraps the layers.

    Returns:
        The error of each layer before and after.
    """

    def fitted(layer: Layer, samples: int) -> RoundedLayer:
        pairs = layer.inputs() if asymmetric else ((z, z) for _, z in layer.inputs())
        return _round(model, layer, moments(layer.unit, pairs, samples, layer.importance), rounds)

    return layer_by_layer(model, data, fitted, progress)


def _round(model: QuantizedModel, layer: Layer, found: Moments, rounds: int) -> RoundedLayer:
    unit = layer.unit
    assert unit.weight is not None
    quantizer = model.quantizer(model.weight_site(unit))
    weight = model.parameter_of(unit.weight).detach().cpu().clone()
    found = found if unit.bias is not None else found.with_means()
    problem = Problem.of(weight, found)
    old = quantizer.grid()
    values, grid = fit(problem, old, quantizer.spec, rounds)
    rounded = torch.from_numpy(np.ascontiguousarray(values.transpose(0, 2, 1)))
    set_value(model.module, unit.weight, rounded.reshape(weight.shape))
    if unit.bias is not None:
        bias = model.parameter_of(unit.bias).detach()
        shift = found.shift(by_groups(weight.double(), problem.groups), rounded.double())
        set_value(model.module, unit.bias, bias + shift.reshape(bias.shape).to(bias))
        source = model.quantizer(model.units.sites[unit.inputs[0]]).grid()
        shifted = model.parameter_of(unit.bias).detach().cpu().numpy()
        grid = widen_for_bias(grid, shifted, source, model.bias_type(unit), quantizer.spec.pow2)
    quantizer.set_grid(grid)
    nearest = columns_first(torch.from_numpy(old.nearest(weight.numpy())), problem.groups)
    return RoundedLayer(unit.name, problem.error(nearest), problem.error(values))


def fit(
    problem: Problem, grid: Affine, spec: QuantSpec, rounds: int
) -> tuple[lattice.Array, Affine]:
    """Weights on a grid, (groups, columns, rows), and the grid."""
    target, gram = problem.target, problem.gram
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
