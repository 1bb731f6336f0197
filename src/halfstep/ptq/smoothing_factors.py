"""The factors of SmoothQuant for one value: equation 4, and the search for its strength.

See ``halfstep.ptq.smooth`` for the reference.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from halfstep.core.grid import Affine
from halfstep.core.qtype import QType
from halfstep.ptq.influence import Influence
from halfstep.quant.functional import fake_quantize
from halfstep.quant.quantizer import as_tensor

STEPS = (0.1, 0.05)
"""How finely ``alpha`` is searched: over all of 0 to 1, then around the best."""

ROWS = 512
"""Rows of each input that the search looks at."""

SMALLEST_WEIGHT = 1e-5
"""Stands for ``max|W_j|`` of a column that no layer reads."""


@dataclass(eq=False)
class Inputs:
    """What is remembered of a value (..., channels): the ends of its channels, and some rows."""

    low: Tensor = field(default_factory=lambda: torch.zeros(()))
    high: Tensor = field(default_factory=lambda: torch.zeros(()))
    rows: list[Tensor] = field(default_factory=list)

    def add(self, found: Influence, columns: Tensor | None = None) -> None:
        """Look at some columns, or all, of the rows that the output depends on."""
        counts = found.weight.reshape(-1, found.weight.shape[-1]).amax(1) > 0
        rows = found.value.reshape(-1, found.value.shape[-1])[counts]
        rows = rows if columns is None else rows[:, columns]
        if not len(rows):
            return
        self.low = torch.minimum(self.low, rows.amin(0))
        self.high = torch.maximum(self.high, rows.amax(0))
        missing = ROWS - sum(map(len, self.rows))
        if missing > 0:
            # Spread over the batch, a quarter of what is missing at a time: not all of one batch.
            wanted = min(len(rows), max(missing // 4, 1))
            self.rows.append(rows[:: len(rows) // wanted][:wanted].clone())

    @property
    def largest(self) -> Tensor:
        """``max|X_j|`` of each channel."""
        return torch.maximum(-self.low, self.high)


@dataclass(frozen=True, eq=False)
class Trial:
    """One way to divide a value.

    Attributes:
        alpha: of equation 4; ``None`` for no change.
        factors: ``s``.
        error: squared error of the layers' outputs as a share of their power.
    """

    alpha: float | None
    factors: Tensor
    error: float


def factors(largest: Tensor, largest_weight: Tensor, alpha: float) -> Tensor:
    """Equation 4 for the ``max|X_j|`` and ``max|W_j|`` of all channels; 1 for a dead channel."""
    weight = largest_weight.clamp(min=SMALLEST_WEIGHT)
    found = largest.clamp(min=torch.finfo(largest.dtype).tiny) ** alpha / weight ** (1 - alpha)
    return torch.where(largest > 0, found, torch.ones_like(found))


class Search:
    """The error of any division of a value, on the remembered rows.

    Args:
        inputs: what was seen.
        weight: of all layers that read the value, (rows, channels).
        activation: the type of the inputs, with one range, from the smallest to the largest value.
        weight_type: the type of the weights, with a symmetric range a row.
    """

    def __init__(
        self, inputs: Inputs, weight: Tensor, activation: QType, weight_type: QType
    ) -> None:
        self.inputs, self.weight = inputs, weight
        self.activation, self.weight_type = activation, weight_type
        self.rows = torch.cat(inputs.rows)
        self.wanted = self.rows @ weight.T
        self.power = float(self.wanted.double().square().sum()) or 1.0

    def trial(self, alpha: float | None) -> Trial:
        """With the factors of equation 4, or as it is."""
        s = torch.ones_like(self.inputs.largest)
        if alpha is not None:
            s = factors(self.inputs.largest, self.weight.abs().amax(0), alpha)
        low, high = (self.inputs.low / s).min(), (self.inputs.high / s).max()
        x = _on_grid(self.rows / s, low, high, self.activation)
        largest = (self.weight * s).abs().amax(1)
        w = _on_grid(self.weight * s, -largest, largest, self.weight_type, axis=0)
        error = float((x @ w.T - self.wanted).double().square().sum())
        return Trial(alpha, s, error / self.power)

    def best(self) -> tuple[Trial, Trial]:
        """No change, and what has the smallest error; no change among the candidates."""
        before = self.trial(None)
        coarse, fine = STEPS
        tried = [before] + [self.trial(i * coarse) for i in range(round(1 / coarse) + 1)]
        found = min(tried, key=lambda trial: trial.error)
        if found.alpha is not None:
            around = (found.alpha - fine, found.alpha + fine)
            tried = [found] + [self.trial(a) for a in around if 0 <= a <= 1]
        return before, min(tried, key=lambda trial: trial.error)


def _on_grid(x: Tensor, low: Tensor, high: Tensor, qtype: QType, axis: int | None = None) -> Tensor:
    """Values on the grid of a range; with an axis, of one symmetric range for each index."""
    ends = low.numpy(), high.numpy()
    grid = Affine.from_range(*ends, qtype, axis=axis, symmetric=axis is not None)
    return fake_quantize(x, *as_tensor(grid, x), qtype.qmin, qtype.qmax, axis)
