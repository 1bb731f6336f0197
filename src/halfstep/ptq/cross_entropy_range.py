"""The range of the logits by what the quantized logits decide.

Reference: Nagel et al. 2021 (arXiv 2106.08295), section 3.1, equation 6: for the last layer of a
classifier the order of its outputs matters more than their values, so that its range is

    argmin over the range of  H(softmax(v), softmax(Q(v)))

with ``v`` the logits of the float model and ``H`` the cross entropy, averaged over the samples.
Labels are not needed.

The paper leaves the search open. Here the ends are shares of the observed ends, from 1 down to
0.3; among equal ones the wider range wins, so that the result is never worse than min-max.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from halfstep.core.grid import Affine
from halfstep.core.spec import QuantSpec
from halfstep.data import batches
from halfstep.errors import CalibrationError
from halfstep.graph.insert import QuantizedModel, check_batch
from halfstep.graph.match import see_through
from halfstep.quant.functional import fake_quantize
from halfstep.quant.quantizer import as_tensor

FACTORS = tuple(share / 40 for share in range(40, 11, -1))
"""Shares of the smallest and of the largest logit that are tried as ends."""


@dataclass(frozen=True)
class LogitRange:
    """What was found for the logits.

    Attributes:
        site: their site.
        before: mean cross entropy on the calibrated grid, in nats.
        after: on the new one.
        entropy: of the float model's own decisions, which no grid goes below.
    """

    site: str
    before: float
    after: float
    entropy: float

    def __str__(self) -> str:
        return (
            f"{self.site}: cross entropy {self.before:.5f} -> {self.after:.5f} "
            f"(the entropy itself is {self.entropy:.5f})"
        )


def cross_entropy_range(model: QuantizedModel, data: Iterable[Any]) -> LogitRange:
    """Set the grid of the logits, the model's only output, (N, classes), in place.

    Args:
        model: calibrated.
        data: batches, without labels; of each, the logits are kept.

    Raises:
        CalibrationError: the model has another output than logits, or one that is not quantized.
    """
    site = _logits_site(model)
    quantizer = model.quantizer(site)
    found = []
    with torch.inference_mode():
        for index, (inputs, _) in enumerate(batches(data, model.graph.inputs, torch.as_tensor)):
            check_batch(model.graph, inputs, index)
            found.append(model.graph.module(*inputs)[0])
    logits = torch.cat(found)
    decisions = torch.softmax(logits.double(), -1)

    def loss(grid: Affine) -> float:
        scale, zero_point = as_tensor(grid, logits)
        rounded = fake_quantize(logits, scale, zero_point, grid.qtype.qmin, grid.qtype.qmax, None)
        return float(F.cross_entropy(rounded.double(), decisions))

    before = loss(quantizer.grid())
    tried = {grid: loss(grid) for grid in _candidates(logits, quantizer.spec)}
    best = min(tried, key=lambda grid: tried[grid])
    if tried[best] < before:
        quantizer.set_grid(best)
    entropy = float(-(decisions * torch.log_softmax(logits.double(), -1)).sum(-1).mean())
    return LogitRange(site, before, min(before, tried[best]), entropy)


def _logits_site(model: QuantizedModel) -> str:
    output = next(node for node in model.graph.module.graph.nodes if node.op == "output")
    nodes = [see_through(node) for node in output.all_input_nodes]
    if len(nodes) != 1 or nodes[0].meta["val"].ndim != 2:
        raise CalibrationError(
            f"output: asked for logits, (N, classes), found {len(nodes)} outputs of ranks "
            f"{[node.meta['val'].ndim for node in nodes]}; leave cross_entropy_range out"
        )
    site = model.units.sites[nodes[0]]
    if site not in model.site_quantizer:
        raise CalibrationError(f"{site}: it is not quantized; leave cross_entropy_range out")
    return site


def _candidates(logits: Tensor, spec: QuantSpec) -> list[Affine]:
    least, most = float(logits.min()), float(logits.max())
    ends = [(np.asarray(least * a), np.asarray(most * b)) for a in FACTORS for b in FACTORS]
    return [
        Affine.from_range(low, high, spec.qtype, symmetric=spec.symmetric, pow2=spec.pow2)
        for low, high in ends
    ]
