"""Addition, subtraction, multiplication and tables of codes."""

from collections.abc import Callable

import numpy as np

from halfstep.core.elementwise import fused_swaps
from halfstep.core.qtype import QType
from halfstep.core.requant import look_up
from halfstep.program.formulas import FORMULAS, Formulas
from halfstep.program.kernels.setup import Array, Kernel, Setup, Step

Pair = Callable[[Array, Array], Array]

# Two types of 8 bits have so many pairs of codes: then a table is faster than any formula.
_MOST_PAIRS = 2**16


def _binary(table: Formulas) -> Kernel:
    def kernel(setup: Setup) -> Step:
        formula = table[setup.op.formula or ""]
        a, b, y = setup.grid(0), setup.grid(1), setup.out_grid
        za, zb, zy = (int(grid.zero_point) for grid in (a, b, y))
        in_order = _prepared(
            setup, lambda i, j: formula(i, j, a.scale, b.scale, y.scale, za, zb, zy)
        )
        if setup.op.formula != "fused":
            return in_order
        swapped = _prepared(
            setup, lambda i, j: formula(j, i, b.scale, a.scale, y.scale, zb, za, zy)
        )
        return lambda i, j: (swapped if fused_swaps(i.shape, j.shape) else in_order)(i, j)

    kernel.__doc__ = f"Two arrays of codes, broadcast; formulas: {', '.join(table)}."
    return kernel


def _prepared(setup: Setup, codes_of: Pair) -> Pair:
    """``codes_of``, saturated; from a table of all pairs of codes if there are not too many."""
    xp, first, second = setup.xp, setup.grid(0).qtype, setup.grid(1).qtype
    n_second = second.qmax - second.qmin + 1
    if (first.qmax - first.qmin + 1) * n_second > _MOST_PAIRS:
        return lambda a, b: setup.saturate(codes_of(xp.astype(a, xp.int32), xp.astype(b, xp.int32)))
    pairs = codes_of(_every_code(first)[:, None], _every_code(second)[None, :])
    table = setup.backend.asarray(_saturated(setup, pairs).reshape(-1))
    origin = first.qmin * n_second + second.qmin

    def look_up_pair(a: Array, b: Array) -> Array:
        index = xp.astype(a, xp.int32) * n_second + xp.astype(b, xp.int32)
        return look_up(table, index - origin if origin else index)

    return look_up_pair


def _every_code(qtype: QType) -> Array:
    return np.arange(qtype.qmin, qtype.qmax + 1, dtype=np.int32)


def _saturated(setup: Setup, codes: Array) -> Array:
    low, high = setup.op.clamp or (setup.out_grid.qtype.qmin, setup.out_grid.qtype.qmax)
    return np.clip(codes, low, high).astype(setup.out.dtype)


add = _binary(FORMULAS["add"])
sub = _binary(FORMULAS["sub"])
mul = _binary(FORMULAS["mul"])


def lookup(setup: Setup) -> Step:
    """A function of one code: the table (second input) holds the output code of each input code."""
    xp, first = setup.xp, setup.grid(0).qtype.qmin
    table = setup.backend.asarray(_saturated(setup, setup.program.constant(setup.op.inputs[1])))

    def run(codes: Array, *_: Array) -> Array:
        index = xp.astype(codes, xp.int32)
        return look_up(table, index - first if first else index)

    return run
