"""Layer normalization of codes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core.normalize import FRACTION, affine_terms, normalized
from halfstep.core.requant import Scale
from halfstep.program.formulas import FORMULAS
from halfstep.program.ir import IntProgram, Op
from halfstep.program.kernels.setup import Array, Setup, Step


def layer_norm(setup: Setup) -> Step:
    """Over the last axes, then an affine function of each position of a row."""
    formula, out, xp = FORMULAS[setup.op.kind][setup.op.formula or ""], setup.out_grid, setup.xp
    gamma, scale, beta = affine_of(setup.program, setup.op)
    factor, added = setup.constant(gamma, "int64"), setup.constant(beta, "int64")
    first, zero = setup.grid(0), setup.zero(0)
    scales = np.asarray(2.0**-FRACTION, np.float32), scale, out.scale

    def run(x: Array, *_: Array) -> Array:
        steps = xp.astype(x, xp.int64) - zero
        values = normalized(steps, setup.attrs["n_axes"], first.scale, setup.attrs["eps"])
        return setup.saturate(formula(values * factor + added, *scales, int(out.zero_point)))

    return run


def affine_of(program: IntProgram, op: Op) -> tuple[NDArray[Any], Scale, NDArray[Any]]:
    """``affine_terms`` of the constants that the operation reads behind its input."""
    constants: list[tuple[NDArray[Any], Scale]] = []
    for name in op.inputs[1:]:
        grid = program.grid(name)
        constants.append((program.constant(name).astype(np.int64) - grid.zero_point, grid.scale))
    return affine_terms(*(*constants, None, None)[:2])
