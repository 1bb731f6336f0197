"""Weights rounded so that two neighbouring codes of one sign do not exceed a limit together.

The limit is what the largest input code may be multiplied by before the sum of the two products
leaves its type: ``32767 // 255 = 128`` for uint8 inputs and int16 sums. Of two weights ``u`` and
``v``, in steps and both positive, whose nearest codes exceed the limit ``L``, the nearest that do
not are ``a`` and ``L - a`` with ``a = rint((L + u - v) / 2)``: what is too much is divided between
the two. Raising the scale of the channel is the other remedy: it clips less and rounds all weights
more coarsely. ``fit`` takes the scale with the least squared error, per channel.
"""

import numpy as np
from numpy.typing import NDArray

from halfstep.quant.rounding.lattice import Codes

Array = NDArray[np.float32]

CANDIDATES = 33
"""Scales that are tried, evenly spaced up to the one on which no pair exceeds the limit."""


def limited(steps: Array, codes: Codes, limit: int) -> Array:
    """The nearest codes of pairs, (..., 2) in steps, that keep the limit."""
    found = codes.nearest(steps)
    over = exceeds(found, limit)
    largest = min(codes.high, -codes.low)
    first, second = np.abs(np.moveaxis(steps[over], -1, 0))
    kept = np.clip(np.rint((limit + first - second) / 2), limit - largest, largest)
    found[over] = np.sign(found[over]) * np.stack([kept, limit - kept], axis=-1)
    return found


def exceeds(codes: Array, limit: int) -> NDArray[np.bool_]:
    """For each pair, whether its codes have one sign and more than the limit together."""
    first, second = np.moveaxis(codes, -1, 0)
    over: NDArray[np.bool_] = (first * second > 0) & (np.abs(first + second) > limit)
    return over


def fit(
    pairs: Array, scale: Array, codes: Codes, limit: int, pow2: bool = False
) -> tuple[Array, Array, NDArray[np.float64]]:
    """Codes that keep the limit, on the scale of the least squared error.

    Args:
        pairs: real weights, (rows, pairs, 2).
        scale: of each row, (rows,): the smallest that is tried.
        codes: the range of the codes.
        limit: of two codes of one sign.
        pow2: try twice the scale, and nothing in between.

    Returns:
        Codes, the shape of ``pairs``; the scale of each row; its squared error.
    """
    both = pairs.sum(axis=-1) / scale[:, None]
    same_sign = pairs[..., 0] * pairs[..., 1] > 0
    widest = np.maximum(np.max(np.abs(both) * same_sign, axis=1) / limit, 1)
    shares = np.linspace(0, 1, CANDIDATES)
    tried = [1 + (widest - 1) * share for share in shares]
    if pow2:
        tried = [np.ones_like(widest), np.full_like(widest, 2)]
    best, chosen = np.zeros_like(pairs), scale.copy()
    least = np.full(len(pairs), np.inf)
    for factor in tried:
        candidate = (scale * factor).astype(np.float32)
        found = limited(pairs / candidate[:, None, None], codes, limit)
        error = squared_error(pairs, found, candidate)
        better = error < least
        best[better], chosen[better], least[better] = (
            found[better],
            candidate[better],
            error[better],
        )
    return best, chosen, least


def squared_error(pairs: Array, codes: Array, scale: Array) -> NDArray[np.float64]:
    """Of each row, what codes and scale make of its weights."""
    distance = pairs - codes * scale[:, None, None]
    error: NDArray[np.float64] = np.square(distance, dtype=np.float64).sum(axis=(1, 2))
    return error
