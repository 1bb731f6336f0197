"""Cross-layer equalization: give the channels of a weight ranges that fit one scale.

Reference: Nagel et al. 2019 (arXiv 1906.04721), section 4.1, equations 7 to 11. For a pair of
layers (``pairs.py``) with weights ``W1, W2``, ranges ``r1_i = max |W1_i|`` of output channel ``i``
and ``r2_i = max |W2_:i|`` of input channel ``i``, the scales that maximize the precision of all
channels together are

    s_i = sqrt(r1_i r2_i) / r2_i,   W1_i /= s_i,   b1_i /= s_i,   W2_:i *= s_i

and leave both ranges at ``sqrt(r1_i r2_i)``. Pairs share layers, so all are swept in order until no
scale moves any more (``max |log s| < tolerance``).

Deviations: a channel without weights on one of the two sides keeps its scale (the equation divides
0 by 0). ReLU6 is replaced by ReLU in the paper; here it may also stay exact, as the minimum of a
ReLU and ``6 / s_i`` ("caps"). The statistics of batch norms are divided by ``s`` as well, because
what comes after equalization in the paper reads them.

An addition, ``headroom``: a channel with hardly any weights but a bias gets a tiny scale, which
blows up its activations, and with them the step of the whole tensor. With the range ``a_i`` of each
channel's activation (``channel_statistics.py``), scales are kept from getting smaller than
``a_i / (headroom median(a / s))``.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from halfstep.errors import PlanError
from halfstep.graph.batchnorm import value_of
from halfstep.graph.capture import Graph
from halfstep.graph.edit import copied
from halfstep.graph.ops import describe
from halfstep.graph.readers import shape_of
from halfstep.graph.rewriting import buffer, insert_call, replace
from halfstep.ptq.pairs import Pair, Refusal, Step, find_pairs
from halfstep.ptq.sweeps import Sweeper

aten = torch.ops.aten
Relu6 = Literal["caps", "replace", "refuse"]
_RELU6 = ("caps", "replace", "refuse")


@dataclass(frozen=True, eq=False)
class PairReport:
    """What happened to one pair.

    Attributes:
        pair: the names of its layers.
        scales: ``s``, (channels,), float64.
        before: ranges of the first weight's output channels before, (channels,).
        after: the same ranges afterwards.
        dead: how many channels have no weights on one side.
        held: how many scales the headroom kept from getting smaller.
    """

    pair: str
    scales: Tensor
    before: Tensor
    after: Tensor
    dead: int = 0
    held: int = 0

    @property
    def spread(self) -> tuple[float, float]:
        """The largest over the smallest range of channels with weights, before and after."""
        return _spread(self.before), _spread(self.after)

    def __str__(self) -> str:
        before, after = self.spread
        counts = {"dead": self.dead, "held": self.held}
        found = "".join(f", {count} {what}" for what, count in counts.items() if count)
        return (
            f"{self.pair}: {len(self.scales)} channels{found}, "
            f"spread of ranges {before:.3g} -> {after:.3g}"
        )


@dataclass(frozen=True, eq=False)
class EqualizationReport:
    """What equalization did.

    Attributes:
        pairs: in order of execution.
        refused: layers that are first of no pair, with the reason.
        sweeps: how many were made.
        largest: ``max |log s|`` in the last sweep.
        converged: whether that was below the tolerance.
    """

    pairs: tuple[PairReport, ...]
    refused: tuple[Refusal, ...]
    sweeps: int
    largest: float
    converged: bool

    def __str__(self) -> str:
        state = "converged" if self.converged else "not converged"
        head = f"{len(self.pairs)} pairs, {self.sweeps} sweeps, {state} (last {self.largest:.1e})"
        lines = [head, *(f"  {pair}" for pair in self.pairs)]
        return "\n".join([*lines, *(f"  not equalized: {refusal}" for refusal in self.refused)])


def equalize(
    graph: Graph,
    *,
    relu6: Relu6 = "caps",
    headroom: float | None = None,
    tolerance: float = 1e-4,
    max_sweeps: int = 20,
) -> tuple[Graph, EqualizationReport]:
    """Rescale channels between layers; the function stays, but for ``relu6="replace"``.

    Args:
        graph: from ``capture``; left as it is.
        relu6: what becomes of an upper bound between two layers: "caps" makes it one bound a
            channel, which is exact; "replace" drops it, as the paper does; "refuse" leaves these
            pairs alone.
        headroom: how many times the median range of the channels of an activation the largest may
            be, at least 1, where batch norms know these ranges; ``None`` is the paper's: no limit.
        tolerance: sweeps end when no ``|log s|`` is larger.
        max_sweeps: and after so many.

    Raises:
        PlanError: ``relu6`` is none of the three, or ``headroom`` is less than 1.
    """
    if relu6 not in _RELU6:
        raise PlanError(f"relu6: asked for one of {', '.join(_RELU6)}, found {relu6!r}")
    if headroom is not None and headroom < 1:
        raise PlanError(f"headroom: asked for 1 or more, found {headroom}")
    new = copied(graph)
    pairs, refused = find_pairs(new)
    if relu6 == "replace":
        for step in (step for pair in pairs for step in pair.bounds):
            _drop_bound(step)
        pairs, refused = find_pairs(new)
    elif relu6 == "refuse":
        refused += tuple(_bounded(pair) for pair in pairs if pair.bounds)
        pairs = tuple(pair for pair in pairs if not pair.bounds)
    sweeper = Sweeper(new, pairs, headroom)
    before = [sweeper.ranges(pair)[0] for pair in pairs]
    sweeps, largest = 0, math.inf if pairs else 0.0
    while sweeps < max_sweeps and largest >= tolerance:
        largest = max(sweeper.update(pair) for pair in pairs)
        sweeps += 1
    reports = [_report(sweeper, pair, old) for pair, old in zip(pairs, before, strict=True)]
    sweeper.write()
    for pair in pairs:
        for step in pair.bounds:
            _rescale_bound(new, step, sweeper.scales(pair))
    new.module.graph.eliminate_dead_code()
    new.module.graph.lint()
    new.module.recompile()
    return new, EqualizationReport(tuple(reports), refused, sweeps, largest, largest < tolerance)


def _report(sweeper: Sweeper, pair: Pair, before: Tensor) -> PairReport:
    first, second = sweeper.ranges(pair)
    dead = int(((first == 0) | (second == 0)).sum())
    held = int(sweeper.held(pair).sum())
    return PairReport(str(pair), sweeper.scales(pair), before, first, dead, held)


def _bounded(pair: Pair) -> Refusal:
    listed = ", ".join(step.node.name for step in pair.bounds)
    return Refusal(str(pair), f"{listed} has an upper bound, and relu6 is 'refuse'")


def _bound(step: Step) -> tuple[fx.Node | None, fx.Node]:
    """The constant of a minimum, if the bound is one, and the value that is bounded."""
    inputs = describe(step.node).inputs
    constant = next((value for value in inputs if value.op == "get_attr"), None)
    return constant, next(value for value in inputs if value is not constant)


def _drop_bound(step: Step) -> None:
    _, value = _bound(step)
    if step.kind == "clamp":
        value = insert_call(step.node, aten.relu.default, (value,))
    replace(step.node, value)


def _rescale_bound(graph: Graph, step: Step, scales: Tensor) -> None:
    """One bound for each channel, divided by its scale."""
    constant, value = _bound(step)
    if constant is None:
        bound = torch.tensor(describe(step.node).attrs["high"])
        value = insert_call(step.node, aten.relu.default, (value,))
    else:
        bound = value_of(graph.module, constant).detach()
    shape = [-1, *[1] * (len(shape_of(step.node)) - 1 - step.axis)]
    caps = bound.double() / scales.repeat_interleave(step.repeat).reshape(shape)
    name = buffer(step.node, f"{step.node.name}_caps", caps.float())
    replace(step.node, insert_call(step.node, aten.minimum.default, (value, name)))


def _spread(ranges: Tensor) -> float:
    alive = ranges[ranges > 0]
    return float(alive.max() / alive.min()) if len(alive) else 1.0
