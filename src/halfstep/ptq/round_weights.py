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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfstep.core.grid import Affine
from halfstep.core.spec import QuantSpec
from halfstep.graph.insert import QuantizedModel
from halfstep.graph.match import Unit
from halfstep.progress import Progress, silent
from halfstep.ptq.moments import Moments, moments
from halfstep.ptq.streams import Layer, Streams
from halfstep.quant.bias import widen_for_bias
from halfstep.quant.rounding import lattice


@dataclass(frozen=True)
class RoundedLayer:
    """What became of one layer.

    Attributes:
        name: of the unit.
        nearest: squared error of the output with nearest rounding on the calibrated grid, relative
            to the variance of the output.
        error: the same after the codes were chosen.
    """

    name: str
    nearest: float
    error: float


@dataclass(frozen=True)
class RoundingReport:
    """All layers in order, and those that were left as they were, with the reason."""

    layers: tuple[RoundedLayer, ...]
    skipped: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} layers rounded, {len(self.skipped)} left to nearest rounding"]
        lines += [
            f"  {layer.name}: relative error {layer.nearest:.3g} -> {layer.error:.3g}"
            for layer in self.layers
        ]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.skipped])


def round_weights(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    rounds: int = 3,
    progress: Progress = silent,
) -> RoundingReport:
    """Put every weight of ``model`` on its grid, and fit grids and biases, in place.

    Args:
        model: calibrated. Layers without a bias (``graph.edit.with_biases`` gives them one) keep
            the shift of their means.
        data: a few hundred samples, without labels; read once.
        rounds: how often codes and scales are fitted in turn.
        progress: wraps the layers.

    Returns:
        The error of each layer before and after.
    """
    streams = Streams(model, data, progress=progress)
    done: dict[str, str] = {}
    layers, skipped = [], []
    for layer in streams.layers():
        unit = layer.unit
        reason = _refusal(model, unit, done)
        if reason:
            skipped.append((unit.name, reason))
            continue
        assert unit.weight is not None
        done[str(unit.weight.target)] = unit.name
        layers.append(_round(model, layer, streams.samples, rounds))
    return RoundingReport(tuple(layers), tuple(skipped))


def _refusal(model: QuantizedModel, unit: Unit, done: dict[str, str]) -> str:
    assert unit.weight is not None
    if unit.kind == "conv_transpose":
        return "a transposed convolution has no inputs of its own for each output"
    if str(unit.weight.target) in done:
        return f"it shares its weight with {done[str(unit.weight.target)]}, rounded before"
    return ""


def _round(model: QuantizedModel, layer: Layer, samples: int, rounds: int) -> RoundedLayer:
    unit = layer.unit
    assert unit.weight is not None
    quantizer = model.quantizer(model.units.sites[unit.weight])
    weight = model.parameter_of(unit.weight)
    found = moments(unit, layer.inputs(), samples)
    groups = found.gram.shape[0]
    original = weight.detach().double().reshape(groups, weight.shape[0] // groups, -1)
    target = found.target(original)
    grid, spec = quantizer.grid(), quantizer.spec
    before = torch.tensor(grid.dequantize(grid.quantize(weight.detach().cpu().numpy())))
    before = before.to(target).reshape(target.shape)
    values, new_grid = fit(target, found, grid, spec, rounds)
    with torch.no_grad():
        weight.copy_(values.reshape(weight.shape))
        if unit.bias is not None:
            bias = model.parameter_of(unit.bias)
            shift = found.shift(original, values.double().reshape(original.shape))
            bias += shift.reshape(bias.shape).to(bias.dtype)
            source = model.quantizer(model.units.sites[unit.inputs[0]]).grid()
            new_grid = widen_for_bias(new_grid, bias.detach().cpu().numpy(), source)
    quantizer.set_grid(new_grid)
    power = float((target @ found.gram * target).sum())
    errors = [
        float(lattice.squared_error(target, v, found.gram).sum()) / max(power, 1e-30)
        for v in (before, values.double().reshape(target.shape))
    ]
    return RoundedLayer(unit.name, *errors)


def fit(
    target: Tensor, found: Moments, grid: Affine, spec: QuantSpec, rounds: int
) -> tuple[Tensor, Affine]:
    """Weights on a grid, float32 and of the shape of ``target``, and the grid."""
    codes = lattice.Codes(spec.qtype.qmin, spec.qtype.qmax)
    per_row = spec.axis is not None
    if spec.pow2:
        scale = torch.tensor(grid.scale).double().reshape(-1, 1)
        scale = scale.expand(target.shape[0] * target.shape[1], 1).reshape(*target.shape[:2], 1)
    else:
        scale = lattice.searched_scale(target, found.gram, codes, per_row)
    chosen, scale = lattice.solve(
        target, found.gram, codes, scale=scale, fit_scale=not spec.pow2, rounds=rounds
    )
    found_scale = scale.expand(*target.shape[:2], 1).reshape(-1)
    found_scale = found_scale if per_row else found_scale[0]
    new = Affine(grid.qtype, found_scale.numpy().astype(np.float32), grid.zero_point, grid.axis)
    steps = torch.tensor(new.scale).reshape(-1, 1).expand(target.shape[0] * target.shape[1], 1)
    return chosen.float() * steps.reshape(*target.shape[:2], 1), new
