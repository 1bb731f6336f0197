"""What to try, from what was measured: the decisions of the white paper's debugging flow.

Reference: M. Nagel et al., "A white paper on neural network quantization", arXiv 2106.08295, 2021,
section 3.7, figure 3.4. The limits that turn measurements into advice are ours and stand below.
"""

from collections.abc import Sequence

from halfstep.search.metrics import METRICS
from halfstep.search.ranges import LARGEST_SPREAD, RangeHealth
from halfstep.search.sensitivity import SensitivityReport

SMALL_LOSS = {"accuracy": 0.01, "agreement": 0.01, "cosine": 0.002, "kl": 0.01, "mse": 1e-3}
"""A loss that needs no cure; of a ratio, as a share of the float model's value."""

DOMINANT = 2.0
"""How many times as much one side must lose as the other to be called the cause."""

FEW_LAYERS = 0.5
"""The share of what all layers lose alone that makes a few of them worth naming."""

MOST_NAMED = 4


def advice(
    report: SensitivityReport, ranges: Sequence[RangeHealth], simulation_holds: bool
) -> tuple[str, ...]:
    """What to try, the most promising first.

    Args:
        report: totals, and each layer alone.
        ranges: of each site.
        simulation_holds: whether nothing is lost while nothing is quantized.
    """
    if not simulation_holds:
        return (_BROKEN,)
    whole = loss(report, report.quantized)
    if whole <= _small(report):
        return ("The loss is small: nothing needs a cure.",)
    weights, activations = loss(report, report.weights), loss(report, report.activations)
    lines: list[str] = []
    if weights * DOMINANT >= activations:
        lines += _for_weights([site for site in ranges if site.site.endswith(":weight")])
    if activations * DOMINANT >= weights:
        lines += _for_activations([s for s in ranges if not s.site.endswith(":weight")])
    return (*_causes(weights, activations), *lines, *_layers(report), _LAST)


def loss(report: SensitivityReport, value: float) -> float:
    """How much worse than the float model, never negative; of SQNR, the noise-to-signal ratio."""
    if report.metric == "sqnr":
        return float(10 ** (-value / 10))
    sign = 1 if METRICS[report.metric].higher_is_better else -1
    return float(max(sign * (report.real - value), 0.0))


def _small(report: SensitivityReport) -> float:
    if report.metric == "sqnr":
        return SMALL_LOSS["mse"]
    if METRICS[report.metric].higher_is_better:
        return SMALL_LOSS[report.metric] * report.real
    return SMALL_LOSS[report.metric]


def _causes(weights: float, activations: float) -> tuple[str, ...]:
    if weights > DOMINANT * activations:
        return ("Weights are the cause: alone they lose more than all activations.",)
    if activations > DOMINANT * weights:
        return ("Activations are the cause: alone they lose more than all weights.",)
    return ("Weights and activations both lose.",)


def _for_weights(ranges: Sequence[RangeHealth]) -> list[str]:
    lines = []
    shared = [site for site in ranges if not site.per_channel]
    spread = [site.site for site in shared if site.spread > LARGEST_SPREAD]
    if spread:
        lines.append(
            f"Weights: channels of {_named(spread)} differ widely and share a scale. Take one "
            "scale a channel (per_channel=True), or equalize the layers first (ptq.equalize)."
        )
    elif shared:
        lines.append("Weights: take one scale a channel (per_channel=True).")
    if any(site.bits < 8 for site in ranges):
        lines.append(
            "Weights of few bits: find their ranges by weight_calibrator='mse', and round them "
            "together (ptq.round_weights) instead of each to its nearest."
        )
    else:
        lines.append("Weights: correct the shift of the means (bias correction).")
    return lines


def _for_activations(ranges: Sequence[RangeHealth]) -> list[str]:
    clipped = [site.site for site in ranges if any("clipped" in p for p in site.problems)]
    far = [site.site for site in ranges if any("outliers" in p for p in site.problems)]
    apart = [site.site for site in ranges if any("channels" in p for p in site.problems)]
    lines = []
    if far:
        lines.append(
            f"Activations: {_named(far)} have far outliers. Try calibrator='percentile' or 'mse', "
            "or move the outliers into the weights (ptq.smooth)."
        )
    if clipped:
        lines.append(
            f"Activations: much of {_named(clipped)} is clipped. Calibrate on data like that of "
            "the deployment, or with calibrator='minmax'."
        )
    if apart:
        lines.append(
            f"Activations: channels of {_named(apart)} differ widely. Equalize with activations "
            "taken into account (ptq.equalize, ptq.smooth)."
        )
    if not lines:
        lines.append("Activations: compare calibrators (minmax, percentile, entropy, mse).")
    return lines


def _layers(report: SensitivityReport) -> list[str]:
    """The few layers that lose most of what all lose alone, if there are such."""
    ranked = report.ranked()
    losses = [loss(report, row.alone) for row in ranked]
    total = sum(losses)
    few = max(1, len(ranked) // 10)
    if not total or sum(losses[:few]) < FEW_LAYERS * total:
        return []
    share = f"{sum(losses[:few]) / total:.0%} of what all lose alone"
    named = _named([row.name for row in ranked[:few]])
    cure = (
        "Give them more bits (plan.edit, search.allocate), or leave them in float "
        "(plan.keep_float, search.partially_quantize)."
    )
    return [f"{named}: {few} of {len(ranked)} layers make {share}. {cure}"]


def _named(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


_BROKEN = (
    "The simulation differs from the float model while nothing is quantized: no choice of bits or "
    "ranges can mend that. Were its weights changed? Report it if not."
)
_LAST = "If none of this is enough: train with quantizers on."
