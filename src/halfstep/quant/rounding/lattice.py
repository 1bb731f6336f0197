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

Shapes: ``target``, ``codes``: (groups, rows, columns); ``gram``: (groups, columns, columns);
``scale``: broadcasts to ``target``. All of one floating dtype; codes hold integers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64
"""Columns whose changes are collected before they reach the rest by one matrix product."""

FACTORS = torch.linspace(0.3, 1.0, 29, dtype=torch.float64)
"""Shares of the range of a row that are tried as the range of its grid."""

SWEEPS = 20
"""Most sweeps of ``descend``; it stops earlier, when no code changes."""


@dataclass(frozen=True)
class Codes:
    """The range of integer codes, both ends included."""

    low: int
    high: int

    def nearest(self, steps: Tensor) -> Tensor:
        """Round half to even, and saturate."""
        return steps.round().clamp_(self.low, self.high)


def squared_error(target: Tensor, values: Tensor, gram: Tensor) -> Tensor:
    """The error of each row: (groups, rows)."""
    distance = target - values
    return (distance @ gram * distance).sum(-1)


def nearest_plane(target: Tensor, gram: Tensor, scale: Tensor, codes: Codes) -> Tensor:
    """Codes by one sweep, columns with the largest inputs first."""
    order = gram.diagonal(dim1=-2, dim2=-1).mean(0).argsort(descending=True)
    free = target[..., order].clone()
    steps = scale.expand_as(target)[..., order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram[:, order][:, :, order]))
    factor = torch.linalg.cholesky(inverse, upper=True)
    found = torch.empty_like(free)
    n_columns = free.shape[-1]
    for start in range(0, n_columns, BLOCK):
        stop = min(start + BLOCK, n_columns)
        errors = torch.empty_like(free[..., start:stop])
        for k in range(start, stop):
            found[..., k] = codes.nearest(free[..., k] / steps[..., k])
            rounded = found[..., k] * steps[..., k]
            error = (free[..., k] - rounded) / factor[:, k, k, None]
            errors[..., k - start] = error
            free[..., k:stop] -= error[..., None] * factor[:, None, k, k:stop]
        free[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return found[..., order.argsort()]


def descend(
    target: Tensor, gram: Tensor, scale: Tensor, codes: Codes, start: Tensor, sweeps: int = SWEEPS
) -> Tensor:
    """Codes by coordinate descent from ``start``; the error of no row rises."""
    found = start.clone()
    steps = scale.expand_as(target)
    pull = (target - found * steps) @ gram
    weight = gram.diagonal(dim1=-2, dim2=-1)[:, None] * steps
    for _ in range(sweeps):
        changed = False
        for first in range(0, found.shape[-1], BLOCK):
            part = slice(first, first + BLOCK)
            moves = _descend_block(found, pull, gram, steps, weight, codes, part)
            if bool(moves.any()):
                changed = True
                pull -= moves @ gram[:, part]
        if not changed:
            break
    return found


def _descend_block(
    found: Tensor,
    pull: Tensor,
    gram: Tensor,
    steps: Tensor,
    weight: Tensor,
    codes: Codes,
    part: slice,
) -> Tensor:
    """Set the codes of some columns, one after the other; the moves of their values."""
    near = pull[..., part].clone()
    own = gram[:, part, part]
    moves = torch.zeros_like(near)
    for k in range(near.shape[-1]):
        column = part.start + k
        best = codes.nearest(found[..., column] + near[..., k] / weight[..., column])
        move = (best - found[..., column]) * steps[..., column]
        found[..., column] = best
        moves[..., k] = move
        near -= move[..., None] * own[:, None, k]
    return moves


def searched_scale(target: Tensor, gram: Tensor, codes: Codes, per_row: bool) -> Tensor:
    """The scale with the least error if every weight goes to its nearest code.

    Returns:
        (groups, rows, 1), or (1, 1, 1) if ``per_row`` is false.
    """
    axes = (-1,) if per_row else (0, 1, 2)
    ends = torch.maximum(
        target.amax(axes, keepdim=True) / max(codes.high, 1),
        target.amin(axes, keepdim=True) / min(codes.low, -1),
    )
    widest = torch.where(ends > 0, ends, torch.ones_like(ends))
    best, least = widest, torch.full_like(widest, torch.inf)
    for factor in FACTORS.to(target):
        scale = widest * factor
        error = squared_error(target, codes.nearest(target / scale) * scale, gram)[..., None]
        error = error if per_row else error.sum().reshape(1, 1, 1)
        best = torch.where(error <= least, scale, best)
        least = torch.minimum(error, least)
    return best


def fitted_scale(target: Tensor, gram: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """The scale with the least error for these codes; the old one where they are all zero."""
    projected = codes @ gram
    above, below = (projected * target).sum(-1, True), (projected * codes).sum(-1, True)
    if scale.shape[1] == 1 and target.shape[:2] != scale.shape[:2]:
        above, below = above.sum().reshape(1, 1, 1), below.sum().reshape(1, 1, 1)
    fitted = above / below
    return torch.where(torch.isfinite(fitted) & (fitted > 0), fitted, scale)


def solve(
    target: Tensor,
    gram: Tensor,
    codes: Codes,
    *,
    scale: Tensor,
    start: Tensor | None = None,
    fit_scale: bool = True,
    rounds: int = 3,
) -> tuple[Tensor, Tensor]:
    """Codes and scale with a small error: a sweep, then descent and scale in turns.

    Args:
        target: the real weights to be represented.
        gram: of the inputs; positive definite.
        codes: the range of codes.
        scale: where to start.
        start: codes to start from besides those of ``nearest_plane``; the better ones are taken.
        fit_scale: whether the scale may change.
        rounds: how often codes and scale are fitted in turn.

    Returns:
        Codes and scale, float64 or float32 as the inputs.
    """
    found = nearest_plane(target, gram, scale, codes)
    if start is not None:
        mine, other = (squared_error(target, c * scale, gram) for c in (found, start))
        found = torch.where((other < mine)[..., None], start, found)
    for turn in range(rounds):
        found = descend(target, gram, scale, codes, found)
        if not fit_scale or turn + 1 == rounds:
            break
        scale = fitted_scale(target, gram, found, scale)
    return found, scale
