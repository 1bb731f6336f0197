"""Rounding of the weights of one layer as a lattice problem on the Gram matrix of its inputs.

A layer ``y = W x`` whose weights become ``V = scale * codes`` makes the squared error

    E |W x - V x|^2 = sum over rows of (w - v) H (w - v)^T,    H = E[x x^T]

so that inputs are needed for ``H`` alone (Nagel et al. 2020, arXiv 2004.10568, equation 10: the
objective of AdaRound, per row). What is searched are the codes, and the scale of each row:

- ``nearest_plane``: one sweep over the columns; the error that rounding a column makes is divided
  among the columns that are still free, by the Cholesky factor of the inverse of ``H`` (Frantar et
  al. 2022, arXiv 2210.17323, algorithm 1, which is Babai's nearest plane);
- ``descend``: coordinate descent over the codes, each set to its best value given all others;
- ``fitted_scale``: for fixed codes the best scale, ``(q H w) / (q H q)``.

None of the last two can raise the error. Deviation from AdaRound: codes are not limited to the two
neighbours of a weight, and there is neither a relaxation nor a regularizer.

Shapes: ``target``, ``codes``: (groups, columns, rows), so that a column of all rows is contiguous;
``gram``: (groups, columns, columns); ``scale``: broadcasts to ``target``. All are numpy float32:
thousands of small steps follow each other, on the CPU whatever device the model is on.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

BLOCK = 64
"""Columns whose changes are collected before they reach the rest by one matrix product."""

FACTORS = tuple(share / 20 for share in range(6, 21))
"""Shares of the range of a row that are tried as the range of its grid."""

SWEEPS = 4
"""Most sweeps of ``descend``."""

SETTLED = 1e-3
"""``descend`` stops after a sweep that changed at most this share of the codes."""


@dataclass(frozen=True)
class Codes:
    """The range of integer codes, both ends included."""

    low: int
    high: int

    def nearest(self, steps: Array) -> Array:
        """Round half to even, and saturate."""
        rounded: Array = np.rint(steps)
        return np.clip(rounded, self.low, self.high, out=rounded)


def squared_error(target: Array, values: Array, gram: Array) -> NDArray[np.float64]:
    """The error of each row: (groups, rows)."""
    distance = target - values
    error: NDArray[np.float64] = np.einsum(
        "gkr,gkr->gr", gram @ distance, distance, dtype=np.float64
    )
    return error


def nearest_plane(target: Array, gram: Array, scale: Array, codes: Codes) -> Array:
    """Codes by one sweep, columns with the largest inputs first."""
    order = np.argsort(-np.einsum("gkk->k", gram), kind="stable")
    free = target[:, order]
    steps = np.broadcast_to(scale, target.shape)[:, order]
    factor = _inverse_factor(gram[:, order[:, None], order])
    found = np.empty_like(free)
    n_columns = free.shape[1]
    for start in range(0, n_columns, BLOCK):
        stop = min(start + BLOCK, n_columns)
        errors = np.empty_like(free[:, start:stop])
        for k in range(start, stop):
            found[:, k] = codes.nearest(free[:, k] / steps[:, k])
            error = (free[:, k] - found[:, k] * steps[:, k]) / factor[:, k, k, None]
            errors[:, k - start] = error
            free[:, k + 1 : stop] -= factor[:, k, k + 1 : stop, None] * error[:, None]
        free[:, stop:] -= factor[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    result = np.empty_like(found)
    result[:, order] = found
    return result


def _inverse_factor(gram: Array) -> Array:
    """The upper Cholesky factor ``U`` of the inverse, ``U^T U = H^-1``, computed in float64.

    With the order of rows and columns reversed, ``H = L L^T``; then ``U`` is the inverse of ``L``,
    reversed again. The inverse of ``H`` itself, which may be indefinite, is not formed.
    """
    lower = _cholesky(gram[:, ::-1, ::-1].astype(np.float64))
    return np.ascontiguousarray(np.linalg.inv(lower)[:, ::-1, ::-1], np.float32)


def _cholesky(gram: Array) -> Array:
    """The lower Cholesky factor; of a slightly larger matrix where rounding left ``gram`` none.

    Entries rounded to float32 may take the smallest eigenvalues of a matrix below zero, by about
    its largest entry times the float32 epsilon: as much is added to the diagonal, and more if that
    is not enough.
    """
    largest = np.abs(np.diagonal(gram, axis1=1, axis2=2)).max()
    added = 0.0
    while True:
        try:
            return np.linalg.cholesky(gram + added * np.eye(gram.shape[-1]))
        except np.linalg.LinAlgError:
            added = max(10 * added, float(largest) * float(np.finfo(np.float32).eps))
            if not np.isfinite(added) or added > largest:
                raise


def descend(
    target: Array, gram: Array, scale: Array, codes: Codes, start: Array, sweeps: int = SWEEPS
) -> Array:
    """Codes by coordinate descent from ``start``; the error of no row rises."""
    found = start.copy()
    steps = np.broadcast_to(scale, target.shape)
    pull = gram @ (target - found * steps)
    weight = np.einsum("gkk->gk", gram)[..., None] * steps
    for _ in range(sweeps):
        changed = 0
        for first in range(0, found.shape[1], BLOCK):
            part = slice(first, first + BLOCK)
            moves = _descend_block(found, pull, gram, steps, weight, codes, part)
            changed += int(np.count_nonzero(moves))
            pull -= gram[:, :, part] @ moves
        if changed <= SETTLED * found.size:
            break
    return found


def _descend_block(
    found: Array,
    pull: Array,
    gram: Array,
    steps: Array,
    weight: Array,
    codes: Codes,
    part: slice,
) -> Array:
    """Set the codes of some columns, one after the other; the moves of their values."""
    near = pull[:, part].copy()
    moves = np.empty_like(near)
    for k in range(near.shape[1]):
        column = part.start + k
        best = codes.nearest(found[:, column] + near[:, k] / weight[:, column])
        moves[:, k] = (best - found[:, column]) * steps[:, column]
        found[:, column] = best
        later = gram[:, column, column + 1 : part.start + near.shape[1], None]
        near[:, k + 1 :] -= later * moves[:, None, k]
    return moves


def searched_scale(target: Array, gram: Array, codes: Codes, per_row: bool) -> Array:
    """The scale with the least error if every weight goes to its nearest code.

    Returns:
        (groups, 1, rows), or (1, 1, 1) if ``per_row`` is false.
    """
    axes = (1,) if per_row else (0, 1, 2)
    ends = np.maximum(
        target.max(axes, keepdims=True) / max(codes.high, 1),
        target.min(axes, keepdims=True) / min(codes.low, -1),
    )
    widest = np.where(ends > 0, ends, np.float32(1))
    best, least = widest, np.full(widest.shape, np.inf)
    for factor in FACTORS:
        scale = (widest * factor).astype(np.float32)
        error = squared_error(target, codes.nearest(target / scale) * scale, gram)[:, None]
        error = error if per_row else error.sum().reshape(1, 1, 1)
        best = np.where(error <= least, scale, best)
        least = np.minimum(error, least)
    return best


def fitted_scale(target: Array, gram: Array, codes: Array, scale: Array) -> Array:
    """The scale with the least error for these codes; the old one where they are all zero."""
    projected = gram @ codes
    above, below = (
        np.sum(projected * other, 1, np.float64, keepdims=True) for other in (target, codes)
    )
    if scale.shape != above.shape:  # one scale for all rows
        above, below = (part.sum().reshape(1, 1, 1) for part in (above, below))
    fitted = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return np.where(fitted > 0, fitted, scale).astype(np.float32)


def solve(
    target: Array,
    gram: Array,
    codes: Codes,
    *,
    scale: Array,
    fit_scale: bool = True,
    rounds: int = 3,
) -> tuple[Array, Array]:
    """Codes and scale with a small error: a sweep, then descent and scale in turns.

    Args:
        target: the real weights to be represented.
        gram: of the inputs; positive definite.
        codes: the range of codes.
        scale: where to start.
        fit_scale: whether the scale may change.
        rounds: how often codes and scale are fitted in turn.

    Returns:
        Codes and scale.
    """
    found = nearest_plane(target, gram, scale, codes)
    for turn in range(rounds):
        found = descend(target, gram, scale, codes, found)
        if not fit_scale or turn + 1 == rounds:
            break
        scale = fitted_scale(target, gram, found, scale)
    return found, scale
