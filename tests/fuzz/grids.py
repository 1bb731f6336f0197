"""Grids that calibration would hardly find: ties, equal scales, zero points at the ends."""

from dataclasses import replace

import numpy as np

import halfstep as hs
from halfstep.core.grid import Affine, power_of_two_above
from halfstep.graph.calibrate import keep_biases_small
from halfstep.quant.quantizer import Quantizer
from tests.fuzz.networks import GRIDS

_LARGEST_EXPONENT = 12


def disturb(model: hs.QuantizedModel, how: str, seed: int) -> None:
    """Change the grids that calibration found, but for those that kernels dictate.

    Args:
        model: calibrated.
        how: one of ``GRIDS``; "mixed" draws another for each site.
        seed: of all that is drawn.
    """
    if how == "found":
        return
    rng = np.random.default_rng(seed)
    weights = set(model.weight_sites())
    for quantizer in model.quantizers():
        if quantizer.spec.dictated:
            continue
        mine = str(rng.choice(GRIDS[:-1])) if how == "mixed" else how
        change = _weight if quantizer.site in weights else _activation
        quantizer.set_grid(change(quantizer, mine, rng))
    keep_biases_small(model)


def _activation(quantizer: Quantizer, how: str, rng: np.random.Generator) -> Affine:
    grid = quantizer.grid()
    qtype = grid.qtype
    if how == "ties":
        return replace(grid, scale=power_of_two_above(grid.scale))
    if how == "equal":
        zero = rng.integers(qtype.qmin, qtype.qmax + 1)
        return replace(grid, scale=np.float32(2.0**-6), zero_point=np.int32(zero))
    if how == "ends":
        return replace(grid, zero_point=np.int32(rng.choice((qtype.qmin, qtype.qmax))))
    if how == "ratios":
        exponent = int(rng.integers(-_LARGEST_EXPONENT, _LARGEST_EXPONENT + 1))
        return replace(grid, scale=np.ldexp(grid.scale, exponent).astype(np.float32))
    return grid


def _weight(quantizer: Quantizer, how: str, rng: np.random.Generator) -> Affine:
    grid = quantizer.grid()
    if how == "ties":
        return replace(grid, scale=power_of_two_above(grid.scale))
    if how == "equal":
        return replace(grid, scale=np.full_like(grid.scale, 2.0**-6))
    if how == "ratios":
        exponents = rng.integers(-4, 5, grid.scale.shape)
        return replace(grid, scale=np.ldexp(grid.scale, exponents).astype(np.float32))
    return grid
