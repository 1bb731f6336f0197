"""The signal-to-quantization-noise ratio of every site, in dB.

Reference: M. Nagel et al., "A white paper on neural network quantization", arXiv 2106.08295, 2021,
section 3.7 (debugging by layer).

Equation: ``SQNR(x, y) = 10 log10(sum x^2 / sum (x - y)^2)``, over all values of all samples. For
each activation twice: ``own`` with ``y = Q(x)``, the noise that its quantizer makes of the float
model's values, and ``total`` with ``y`` the value of the quantized model, the noise of all in front
of it as well. Weights have no other noise than their own.

The float and the quantized model are run side by side, node by node: of a batch, only the values
that are live in both are kept.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.quant.quantizer import Quantizer
from halfstep.search.metrics import decibels
from halfstep.search.samples import stream
from halfstep.search.states import applied
from halfstep.search.walk import Inputs, Walk


@dataclass(frozen=True)
class SiteNoise:
    """The noise of one site.

    Attributes:
        site: its name.
        own: SQNR of its own quantizer, in dB; infinite without any noise.
        total: SQNR beside the float model, all noise in front of it included.
    """

    site: str
    own: float
    total: float


@dataclass(frozen=True)
class SqnrReport:
    """Weights first, then activations in order of execution."""

    weights: tuple[SiteNoise, ...]
    activations: tuple[SiteNoise, ...]

    def __str__(self) -> str:
        rows = (*self.weights, *self.activations)
        width = max((len(row.site) for row in rows), default=0)
        return "\n".join(
            f"{row.site:<{width}}  own {row.own:6.1f} dB  total {row.total:6.1f} dB" for row in rows
        )


@dataclass(frozen=True, eq=False)
class Seen:
    """One value on its way through both models.

    Attributes:
        site: its name.
        quantizer: the quantizer of it.
        real: the value in the float model.
        quantized: the float model's value, quantized.
        total: the value in the quantized model.
    """

    site: str
    quantizer: Quantizer
    real: Tensor
    quantized: Tensor
    total: Tensor


def sqnr(model: QuantizedModel, data: Iterable[Any], *, progress: Progress = silent) -> SqnrReport:
    """Measure every site of a calibrated model.

    Args:
        model: calibrated; its weights are still those of the float model.
        data: batches; read once, one at a time.
        progress: wraps the batches.

    Raises:
        DataError: no batch, or one that does not fit the model.
    """
    noises, walk = Noises(), Walk(model)
    for batch in stream(model, data, progress, "signal to noise"):
        side_by_side(walk, batch.inputs, noises.add)
    return SqnrReport(weight_noise(model), noises.rows())


def weight_noise(model: QuantizedModel) -> tuple[SiteNoise, ...]:
    """The noise of every quantized weight, in order of execution."""
    rows = {}
    for unit in model.weighted_units():
        site = model.weight_site(unit)
        assert unit.weight is not None
        weight = model.parameter_of(unit.weight).detach()
        with torch.no_grad():
            moved = model.quantizer(site).fake_quantize(weight)
        own = decibels(_squares(weight), _squares(weight - moved))
        rows[site] = SiteNoise(site, own, own)
    return tuple(rows.values())


def side_by_side(walk: Walk, inputs: Inputs, *visitors: Callable[[Seen], None]) -> None:
    """Take a batch through both models; show every activation and constant to ``visitors``."""
    weights = set(walk.model.weight_sites())
    everything = {quantizer.site: True for quantizer in walk.quantizers.values()}
    with torch.inference_mode(), applied(walk.model, everything):
        real, total = walk.begin(inputs), walk.begin(inputs)
        for node in walk.nodes:
            quantizer = walk.quantizers.get(node)
            value = None if quantizer is None else real[walk.source(node)]
            walk.step(node, real, real=True)
            walk.step(node, total)
            if quantizer is not None and value is not None and quantizer.site not in weights:
                moved = quantizer.fake_quantize(value)
                seen = Seen(walk.site(node), quantizer, value, moved, total[node])
                for visit in visitors:
                    visit(seen)


class Noises:
    """Sums of squares of every activation that was seen on its way through the model."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float, float]] = {}

    def add(self, seen: Seen) -> None:
        """Count one batch of one site."""
        new = (seen.real, seen.real - seen.quantized, seen.real - seen.total)
        old = self._sums.get(seen.site, (0.0, 0.0, 0.0))
        signal, own, total = (a + _squares(b) for a, b in zip(old, new, strict=True))
        self._sums[seen.site] = (signal, own, total)

    def rows(self) -> tuple[SiteNoise, ...]:
        """Every site, in order of execution."""
        return tuple(
            SiteNoise(site, decibels(signal, own), decibels(signal, total))
            for site, (signal, own, total) in self._sums.items()
        )


def _squares(values: Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))
