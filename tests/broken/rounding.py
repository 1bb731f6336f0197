"""Solvers of the rounding problem that are wrong: the laws of ``tests/quant/test_lattice`` reject
each of them.
"""

import numpy as np

from halfstep.quant.rounding import lattice
from halfstep.quant.rounding.lattice import Array, Codes


def uphill(target: Array, gram: Array, scale: Array, codes: Codes, start: Array) -> Array:
    """Coordinate descent with the sign of the pull reversed."""
    return lattice.descend(2 * start * scale - target, gram, scale, codes, start)


def unsaturated(target: Array, gram: Array, scale: Array, codes: Codes, start: Array) -> Array:
    """Descent over codes that its type does not have."""
    wide = Codes(2 * codes.low, 2 * codes.high)
    return lattice.descend(3 * target, gram, scale, wide, start)


def halfway(target: Array, gram: Array, scale: Array, codes: Codes, start: Array) -> Array:
    """Codes that are no integers."""
    return (lattice.descend(target, gram, scale, codes, start) + start + np.float32(0.5)) / 2
