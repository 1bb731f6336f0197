"""AdaRound: each weight rounded up or down as a layer's output error wants it, learned by Adam.

Reference: M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos, T. Blankevoort, "Up or Down? Adaptive
Rounding for Post-Training Quantization", ICML 2020, arXiv 2004.10568. Per layer, equation 25:

    argmin over V  || f(W x) - f(Wt z) ||^2 + lambda sum (1 - |2 h(V) - 1|^beta)
    Wt = s clip(floor(W / s) + h(V), n, p)

with ``x`` the inputs in the float model, ``z`` those in the quantized one ("asymmetric
reconstruction"), ``f`` the activation function fused behind the layer, and ``h`` and the
regularizer of ``quant.rounding.soft``. Symbols: ``s`` is the grid's scale, which stays; ``n`` and
``p`` are ``qmin`` and ``qmax``; ``lambda = REGULARIZATION = 0.01``; ``beta`` goes from 20 to 2 by
a cosine behind the first 20 % of the iterations, which have no regularizer.

Deviations: a batch is a number of output positions, drawn from all samples, not of whole images.

``ptq.round_weights`` minimizes the same error without gradients, in a small part of the time.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from halfstep.graph.insert import QuantizedModel
from halfstep.graph.match import Unit
from halfstep.progress import Progress, silent
from halfstep.ptq.layerwise import RoundedLayer, RoundingReport, layer_by_layer
from halfstep.ptq.moments import patches, positions
from halfstep.ptq.streams import Layer
from halfstep.quant.functional import along
from halfstep.quant.rounding import soft

REGULARIZATION = 0.01
LEARNING_RATE = 1e-3
HELD_BYTES = 256 << 20
"""How much of a layer's inputs, float and quantized, is held while it is learned."""


def adaround(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    iterations: int = 10_000,
    batch: int = 2048,
    seed: int = 0,
    progress: Progress = silent,
) -> RoundingReport:
    """Round every weight of ``model`` up or down, in place; grids and biases stay.

    Args:
        model: calibrated.
        data: about a thousand samples, without labels; read once.
        iterations: of Adam, for each layer; the paper takes 10,000.
        batch: output positions in an iteration.
        seed: of the order in which positions are drawn.
        progress: wraps the layers.

    Returns:
        The error of each layer with nearest rounding and with the learned one.
    """

    def learn(layer: Layer, samples: int) -> RoundedLayer:
        x, z = _held(layer, samples)
        generator = torch.Generator().manual_seed(seed)
        return _Learning(model, layer.unit, x, z).run(iterations, batch, generator)

    return layer_by_layer(model, data, learn, progress)


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Tiny numbers are zero meanwhile.

    What Adam remembers of a weight that is decided decays to denormal numbers, on which a CPU takes
    a hundred times as long.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _held(layer: Layer, samples: int) -> tuple[Tensor, Tensor]:
    """What evenly spread output positions read in both models: (groups, positions, columns)."""
    rows: list[tuple[Tensor, Tensor]] = []
    every = 1
    for index, (x, z) in enumerate(layer.inputs()):
        if not rows:
            size = 2 * 4 * patches(layer.unit, x[:1])[:, :1].numel()
            every = max(1, -(-positions(layer.unit) * samples * size // HELD_BYTES))
        first = index % every
        rows.append((patches(layer.unit, x, first, every), patches(layer.unit, z, first, every)))
    return torch.cat([x for x, _ in rows], 1), torch.cat([z for _, z in rows], 1)


class _Learning:
    """The rounding of one layer while it is learned."""

    def __init__(self, model: QuantizedModel, unit: Unit, x: Tensor, z: Tensor) -> None:
        assert unit.weight is not None
        self.unit, self.z = unit, z
        self.weight = model.parameter_of(unit.weight)
        bias = None if unit.bias is None else model.parameter_of(unit.bias).detach()
        groups = len(x)
        self.bias = 0.0 if bias is None else bias.reshape(groups, 1, -1)
        self.shape = (groups, len(self.weight) // groups, -1)
        grid = model.quantizer(model.weight_site(unit)).grid()
        self.qtype = grid.qtype
        scale = torch.tensor(grid.scale, device=self.weight.device)
        self.scale = along(scale, grid.axis, self.weight.ndim)
        steps = self.weight.detach() / self.scale
        self.floor = torch.floor(steps)
        self.nearest = torch.round(steps)
        self.logits = soft.logits_of(steps - self.floor).requires_grad_()
        self.wanted = self._output(x, self.weight.detach())

    def run(self, iterations: int, batch: int, generator: torch.Generator) -> RoundedLayer:
        optimizer = torch.optim.Adam([self.logits], LEARNING_RATE)
        n_rows = self.z.shape[1]
        with _without_denormals(), torch.enable_grad():
            for iteration in range(iterations):
                chosen = torch.randint(n_rows, (min(batch, n_rows),), generator=generator)
                optimizer.zero_grad()
                self._loss(chosen, soft.annealed_beta(iteration / iterations)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        learned = self.floor + (soft.rectified_sigmoid(self.logits.detach()) >= 0.5)
        before, after = (self._error(codes) for codes in (self.nearest, learned))
        with torch.no_grad():
            self.weight.copy_(self._on_grid(learned))
        return RoundedLayer(self.unit.name, before, after)

    def _loss(self, rows: Tensor, beta: float) -> Tensor:
        rounding = soft.rectified_sigmoid(self.logits)
        found = self._output(self.z[:, rows], self._on_grid(self.floor + rounding))
        error = (found - self.wanted[:, rows]).square().sum() / len(rows)
        if beta == float("inf"):
            return error
        return error + REGULARIZATION * soft.undecided(rounding, beta)

    def _on_grid(self, codes: Tensor) -> Tensor:
        return codes.clamp(self.qtype.qmin, self.qtype.qmax) * self.scale

    def _output(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """(groups, positions, rows), behind the activation function."""
        out = inputs @ weight.reshape(self.shape).mT + self.bias
        low, high = self.unit.limits
        return out if low is None and high is None else out.clamp(low, high)

    def _error(self, codes: Tensor) -> float:
        """The squared error relative to the variance of the output."""
        with torch.no_grad():
            error = self._output(self.z, self._on_grid(codes)) - self.wanted
            power = (self.wanted - self.wanted.mean(1, keepdim=True)).square().sum()
            return float(error.square().sum() / power.clamp(min=1e-30))
