"""Layer normalization of codes, on integers alone.

A row is centred and divided by its standard deviation in fixed point, with an integer square root
as in I-BERT (Kim et al. 2021, arXiv 2101.01321, algorithm 4; any exact floor of the root gives the
same). What is left is a sum like any other, ``t * (gamma - zg) + beta``, on scale ``2^-10 * sg``,
which one of the formulas for accumulators takes to codes:

    c = n d - D,  D = sum of d,  d = x - zx
    R = floor(sqrt(floor(2^16 V / n) + E)),  V = sum of c^2,  E = rint(2^16 eps n^2 / sx^2)
    t = the nearest of 2^18 c / R, ties away from zero

so that ``t`` is the normalized value times 2^10. Everything but ``V`` and the dividend fits 32
bits, and these two 63, for rows of at most ``LONGEST_ROW`` codes of 8 bits.

Worked example, codes 1 and 3 of scale 1 without eps: c is -2 and 2, V is 8, R is 512, t -1024 and
1024, which are -1 and 1.

>>> import numpy as np
>>> normalized(np.asarray([[1, 3]]), 1, np.float32(1), 0.0).tolist()
[[-1024, 1024]]
"""

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from halfstep.core.requant import Array, Scale

LONGEST_ROW = 1024
# Of a normalized value: so many bits behind the point.
FRACTION = 10
_ROOT = 8


def normalized(steps: Array, n_axes: int, scale: Scale, eps: float) -> Array:
    """``(x - mean) / sqrt(variance + eps)`` times 2^10, over the last ``n_axes`` axes.

    Args:
        steps: codes less their zero point, int64.
        n_axes: how many axes make a row.
        scale: of the codes, shape ().
        eps: added to the variance of real values.
    """
    xp, axes = array_namespace(steps), tuple(range(-n_axes, 0))
    n = math.prod(steps.shape[-n_axes:])
    centred = steps * n - xp.sum(steps, axis=axes, keepdims=True)
    squares = xp.sum(centred * centred, axis=axes, keepdims=True)
    root = square_root((squares << (2 * _ROOT)) // n + eps_term(n, scale, eps))
    root = xp.clip(root, 1, None)
    size = ((xp.abs(centred) << (FRACTION + _ROOT)) + root // 2) // root
    return xp.where(centred < 0, -size, size)


def eps_term(n: int, scale: Scale, eps: float) -> int:
    """``eps`` in the units of the sum of squares; at most 2^61."""
    return min(round(2.0 ** (2 * _ROOT) * eps * n**2 / float(scale) ** 2), 1 << 61)


def square_root(values: Array) -> Array:
    """The floor of the square root of int64 values below 2^62, exactly."""
    xp = array_namespace(values)
    near = xp.astype(xp.sqrt(xp.astype(values, xp.float64)), xp.int64)
    near = near - xp.astype(near * near > values, xp.int64)
    return near + xp.astype((near + 1) * (near + 1) <= values, xp.int64)


def affine_terms(
    gamma: tuple[NDArray[Any], Scale] | None, beta: tuple[NDArray[Any], Scale] | None
) -> tuple[NDArray[Any], Scale, NDArray[Any]]:
    """What normalized values are multiplied by, its scale, and what is added to the products.

    Args:
        gamma: codes less their zero point, and their scale; ``None`` is 1.
        beta: the same of what is added; ``None`` is 0.

    Returns:
        Steps of gamma, its scale, and beta on ``2^-10`` times that scale, within 2^30.
    """
    steps, scale = gamma or (np.ones((), np.int64), np.asarray(1, np.float32))
    if beta is None:
        return steps, scale, np.zeros((), np.int64)
    real = beta[0].astype(np.float64) * np.float64(beta[1])
    added = np.rint(real * 2.0**FRACTION / np.float64(scale))
    return steps, scale, np.clip(added, -(2**30), 2**30).astype(np.int64)
