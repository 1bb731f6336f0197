"""What each operation costs quantized, and what it would cost in float.

Two errors say what an operation does to the output: that of the model in which it *alone* is
quantized, and what the quantized model *gains* when it alone is float. Its price in float is its
share of the multiply-accumulates, which then run in float32, or of the time, where that was
measured (``halfstep.search.sensitivity`` measures the errors; nothing here runs anything twice).

``left_float`` leaves as few operations in float as reach a wanted metric (or as cheap ones), by
the partial quantization of Wu et al. 2020 (``halfstep.search.partial``) in the order of the gains
(or of gain over price), and writes the price of each into the plan as the reason.

Reference: H. Wu et al., arXiv 2004.09602, 2020, section 6.1. Deviation: the paper ranks by the
metric with a layer alone quantized and gives the number of layers; it has no prices.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from halfstep.errors import unknown_name
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.search.metrics import METRICS
from halfstep.search.partial import SHARES, PartialQuantization, partially_quantize
from halfstep.search.sensitivity import Sensitivity, sensitivity
from halfstep.search.states import quantized_units

CHEAPEST = 1e-4
"""The price, as a share, below which an operation counts as free beside others that are."""


@dataclass(frozen=True)
class FloatPrice:
    """One operation that computes on codes.

    Attributes:
        name: of the operation.
        kind: its kind.
        loss: how much worse the metric is than the float model's, with it alone quantized.
        gain: how much better it is than the quantized model's, with it alone in float.
        macs: its share of the multiply-accumulates, 0 to 1.
        time: its share of the time, where that was measured.
    """

    name: str
    kind: str
    loss: float
    gain: float
    macs: float
    time: float | None = None

    @property
    def price(self) -> float:
        """Its share of the time, or else of the multiply-accumulates."""
        return self.macs if self.time is None else self.time

    def reason(self, metric: str) -> str:
        """Why it was left in float, for a plan."""
        what = "MACs" if self.time is None else "time"
        return f"left float: costs {self.loss:.2g} {metric}; price {self.price:.2%} of {what}"


@dataclass(frozen=True)
class FloatPrices:
    """All operations that compute on codes, in order of execution.

    Attributes:
        metric: name of the metric.
        samples: how many it was measured on.
        real: the metric of the float model.
        quantized: the metric with everything quantized.
        rows: in order of execution.
    """

    metric: str
    samples: int
    real: float
    quantized: float
    rows: tuple[FloatPrice, ...]

    def ranked(self, by: Literal["gain", "price"] = "gain") -> tuple[FloatPrice, ...]:
        """The largest gain first, or the largest gain for its price."""
        if by == "gain":
            return tuple(sorted(self.rows, key=lambda row: -row.gain))
        return tuple(sorted(self.rows, key=lambda row: -row.gain / max(row.price, CHEAPEST)))

    def __str__(self) -> str:
        text = METRICS[self.metric].text
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [
            f"{self.metric} on {self.samples} samples: float {text(self.real)}, quantized "
            + text(self.quantized)
        ]
        for row in self.ranked():
            gain = f"alone costs {row.loss:.2g}, in float gains {row.gain:.2g}"
            lines.append(f"  {row.name:<{width}}  {gain}, price {row.price:.2%}")
        return "\n".join(lines)


def float_prices(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    metric: str = "cosine",
    seconds: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> FloatPrices:
    """Measure every operation on codes.

    Args:
        model: calibrated; it is left as it was.
        data: a few batches; read once, one at a time.
        metric: a name in ``search.metrics``.
        seconds: for operations by name, the time that each takes; others count as free.
        progress: wraps the batches.

    Raises:
        DataError: no batch, or one that does not fit the model or the metric.
        UnknownNameError: of the metric, or of an operation in ``seconds``.
    """
    units = {unit.name: unit for unit in quantized_units(model)}
    for name in seconds or ():
        if name not in {unit.name for unit in model.units.units}:
            raise unknown_name("operation", name, [unit.name for unit in model.units.units])
    found = sensitivity(model, data, metric=metric, progress=progress)
    total = sum(unit.macs for unit in model.units.units) or 1
    whole = sum((seconds or {}).values())
    sign = 1 if METRICS[metric].higher_is_better else -1

    def priced(row: Sensitivity) -> FloatPrice:
        assert row.without is not None, "measured with the complement"
        loss, gain = sign * (found.real - row.alone), sign * (row.without - found.quantized)
        time = (seconds or {}).get(row.name, 0.0) / whole if whole else None
        return FloatPrice(row.name, row.kind, loss, gain, units[row.name].macs / total, time)

    rows = tuple(priced(row) for row in found.rows)
    return FloatPrices(found.metric, found.samples, found.real, found.quantized, rows)


def left_float(
    model: QuantizedModel,
    data: Iterable[Any],
    prices: FloatPrices,
    *,
    share: float,
    by: Literal["gain", "price"] = "gain",
    progress: Progress = silent,
) -> PartialQuantization:
    """Leave operations in float until the metric is within ``share`` of the float model's.

    Args:
        model: calibrated, the one that ``prices`` are of; it is left as it was.
        data: a few batches, which are kept.
        prices: from ``float_prices``, by a metric of which shares mean something.
        share: how much of the float model's metric may be lost.
        by: "gain" leaves few operations in float, "price" cheap ones.
        progress: wraps the choices.

    Returns:
        The plan with these operations in float, each with its loss and its price as the reason.

    Raises:
        UnknownNameError: the metric has no shares.
        PlanError: all operations in float are not enough.
    """
    if prices.metric not in SHARES:
        raise unknown_name("metric with shares", prices.metric, SHARES)
    order = {row.name: row.reason(prices.metric) for row in prices.ranked(by)}
    return partially_quantize(
        model, data, metric=prices.metric, share=share, order=order, progress=progress
    )
