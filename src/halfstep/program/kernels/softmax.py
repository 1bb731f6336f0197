"""Softmax of codes, and of real values."""

from typing import Any

from halfstep.program.formulas import FORMULAS
from halfstep.program.kernels.setup import Array, Setup, Step


def softmax(setup: Setup) -> Step:
    """Along one axis, by the operation's formula."""
    formula, axis = FORMULAS[setup.op.kind][setup.op.formula or ""], setup.attrs["axis"]
    grid, out = setup.grid(0), setup.out_grid
    n_codes = max(256, grid.qtype.qmax - grid.qtype.qmin + 1)
    zero = int(out.zero_point)
    return lambda x: setup.saturate(formula(x, axis, n_codes, grid.scale, out.scale, zero))


def float_softmax(xp: Any, x: Array, axis: int) -> Array:
    """Softmax along ``axis``, shifted by the maximum."""
    powers = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    return powers / xp.sum(powers, axis=axis, keepdims=True)
