"""How good an output is: with labels, or beside that of the float model.

Each metric is a ratio of two sums over samples, so that batches of any size give the same value:

| metric | value | where no quantizer is on |
|---|---|---|
| `accuracy` | share of samples whose largest output is the label | that of the float model |
| `agreement` | share of samples whose largest output is the float model's | 1 |
| `cosine` | mean cosine between an output and the float model's | 1 |
| `kl` | mean of KL(float, quantized) over the softmax of the outputs, in nats | 0 |
| `mse` | squared error relative to the squares of the float model's outputs | 0 |
| `sqnr` | the same as a signal-to-noise ratio in dB: ``-10 log10(mse)`` | infinity |

KL over the float model's own distribution is the sensitivity of Cai et al. 2020 (ZeroQ, arXiv
2001.00281), equation 3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from halfstep.data import check_classes, judges_classes
from halfstep.errors import DataError, unknown_name

Terms = tuple[Tensor, float]


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else 0.0


def decibels(signal: float, noise: float) -> float:
    """A ratio of squares in dB; infinite without noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


@dataclass(frozen=True)
class Metric:
    """One way to judge outputs.

    Attributes:
        name: as users write it.
        terms: numerator and denominator of a batch, from the output, the float model's output, and
            labels.
        value: the metric, from the sums of both.
        higher_is_better: the direction.
        needs_labels: whether labels are read.
        form: how a value is printed.
    """

    name: str
    terms: Callable[[Tensor, Tensor, Tensor | None], Terms]
    value: Callable[[float, float], float] = _ratio
    higher_is_better: bool = True
    needs_labels: bool = False
    form: str = "{:.2%}"

    def worse(self, a: float, b: float) -> bool:
        """Whether ``a`` is worse than ``b``."""
        return a < b if self.higher_is_better else a > b

    def text(self, value: float) -> str:
        """A value for people."""
        return self.form.format(value)


@dataclass
class Meter:
    """A metric over the batches that were added."""

    metric: Metric
    top: float = 0.0
    bottom: float = 0.0

    def add(self, output: Tensor, reference: Tensor, labels: Tensor | None) -> None:
        """Count one batch.

        Raises:
            DataError: the outputs or the labels are not of a form that the metric can judge.
        """
        top, bottom = self.metric.terms(output, reference, labels)
        self.top += float(top)
        self.bottom += bottom

    @property
    def value(self) -> float:
        """The metric so far."""
        return self.metric.value(self.top, self.bottom)


def find_metric(name: str | None, labelled: bool, output: Tensor) -> Metric:
    """The metric called ``name``; by default accuracy where there are labels, or else SQNR.

    Raises:
        UnknownNameError: with the nearest names.
        DataError: it needs labels, and there are none.
    """
    if name is None:
        name = "accuracy" if labelled and judges_classes(output.shape) else "sqnr"
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    if METRICS[name].needs_labels and not labelled:
        raise DataError(f"{name}: it needs labels, and the data has none; use 'kl' or 'sqnr'")
    return METRICS[name]


def _classes(name: str, output: Tensor) -> Tensor:
    if not judges_classes(output.shape):
        raise DataError(
            f"{name}: asked for outputs of shape (samples, classes), found {tuple(output.shape)}; "
            "use 'mse', 'sqnr' or 'cosine'"
        )
    return output


def _accuracy(output: Tensor, reference: Tensor, labels: Tensor | None) -> Terms:
    del reference
    decisions = _classes("accuracy", output).argmax(dim=-1)
    if labels is None or labels.shape != decisions.shape:
        found = "none" if labels is None else f"labels of shape {tuple(labels.shape)}"
        raise DataError(f"accuracy: asked for one class index a sample, found {found}")
    check_classes(labels, output.shape)
    return (decisions == labels).sum(), len(labels)


def _agreement(output: Tensor, reference: Tensor, labels: Tensor | None) -> Terms:
    del labels
    mine, other = (_classes("agreement", value).argmax(dim=-1) for value in (output, reference))
    return (mine == other).sum(), len(mine)


def _cosine(output: Tensor, reference: Tensor, labels: Tensor | None) -> Terms:
    del labels
    mine, other = (value.double().flatten(1) for value in (output, reference))
    return F.cosine_similarity(mine, other).sum(), len(output)


def _kl(output: Tensor, reference: Tensor, labels: Tensor | None) -> Terms:
    del labels
    mine, other = (
        F.log_softmax(_classes("kl", value).double(), dim=-1) for value in (output, reference)
    )
    return F.kl_div(mine, other, reduction="sum", log_target=True).clamp(min=0), len(output)


def _squared_error(output: Tensor, reference: Tensor, labels: Tensor | None) -> Terms:
    del labels
    wanted = reference.double()
    return (output.double() - wanted).square().sum(), float(wanted.square().sum())


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _accuracy, needs_labels=True),
        Metric("agreement", _agreement),
        Metric("cosine", _cosine, form="{:.5f}"),
        Metric("kl", _kl, higher_is_better=False, form="{:.4g}"),
        Metric("mse", _squared_error, higher_is_better=False, form="{:.4g}"),
        Metric("sqnr", _squared_error, lambda n, s: decibels(s, n), form="{:.1f} dB"),
    )
}
"""Every metric by name."""
