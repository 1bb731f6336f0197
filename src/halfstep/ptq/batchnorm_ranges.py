"""Activation ranges without data, from the statistics of batch norms.

Reference: Nagel et al. 2019 (arXiv 1906.04721), section 5: the range of an activation is
``[min_i (beta_i - n |gamma_i|), max_i (beta_i + n |gamma_i|)]`` with ``n = 6``, and 0 at the lower
end behind a ReLU. How the statistics get past sums, pools and layers without a batch norm is in
``channel_statistics.py``. Symbols: ``deviations`` is ``n``.

Deviations: the range of the model's input is not the paper's subject; it is given, or taken to be
that of values with mean 0 and deviation 1.
"""

from dataclasses import dataclass

import torch
from torch import fx

from halfstep.errors import CalibrationError, DataError
from halfstep.graph.calibrate import (
    calibrate_weights,
    grid_of,
    keep_biases_small,
    make_calibrator,
)
from halfstep.graph.insert import QuantizedModel
from halfstep.ptq.channel_statistics import channel_statistics
from halfstep.ptq.channels import Channels
from halfstep.quant.quantizer import Quantizer

Range = tuple[float, float]


@dataclass(frozen=True)
class RangeReport:
    """Where each activation's range comes from.

    Attributes:
        known: ranges by site, from batch norms and what follows from them.
        estimated: ranges that rest on independence of what meets in a sum or a layer.
    """

    known: dict[str, Range]
    estimated: dict[str, Range]

    def __str__(self) -> str:
        lines = [f"{len(self.known)} ranges from batch norms, {len(self.estimated)} estimated"]
        lines += [f"  {s}: [{low:.4g}, {high:.4g}]" for s, (low, high) in self.known.items()]
        lines += [
            f"  {s}: [{low:.4g}, {high:.4g}], estimated"
            for s, (low, high) in self.estimated.items()
        ]
        return "\n".join(lines)


def set_batchnorm_ranges(
    model: QuantizedModel,
    *,
    deviations: float = 6.0,
    input_range: Range = (-6.0, 6.0),
) -> RangeReport:
    """Give every quantizer of ``model`` its grid without any data; weights from themselves.

    Args:
        model: from ``prepare``.
        deviations: how many of them a range reaches to each side of the mean.
        input_range: the range of the model's real-valued inputs.

    Raises:
        CalibrationError: values that nothing is known of; all of their sites are named.
        DataError: the example that the model was captured with is outside of ``input_range``.
    """
    _check_example(model, input_range)
    calibrate_weights(model)
    known, estimated, unknown = _ranges(model, deviations, input_range)
    if unknown:
        raise CalibrationError(
            f"{unknown[0]}: no batch norm says what its range is, nor those of "
            f"{', '.join(unknown[1:]) or 'any other site'}; calibrate on data, or on images from "
            "halfstep.ptq.distill_data"
        )
    for site, ends in (known | estimated).items():
        quantizer = model.quantizer(site)
        calibrator = make_calibrator(quantizer.spec, "minmax")
        calibrator.update(torch.tensor(ends))
        quantizer.set_grid(grid_of(calibrator, quantizer.spec, site))
    keep_biases_small(model)
    return RangeReport(known, estimated)


def _check_example(model: QuantizedModel, input_range: Range) -> None:
    """An input that was not normalized would saturate without a word."""
    for name, example in zip(model.graph.inputs, model.graph.example, strict=True):
        if not example.is_floating_point():
            continue
        low, high = float(example.min()), float(example.max())
        slack = 1e-5 * (input_range[1] - input_range[0])  # ends that were rounded otherwise
        if low < input_range[0] - slack or high > input_range[1] + slack:
            raise DataError(
                f"{name}:in: asked for the range {input_range}, found values from {low:.4g} to "
                f"{high:.4g} in the example; normalize the inputs as in training, or give "
                "input_range"
            )


def _ranges(
    model: QuantizedModel, deviations: float, input_range: Range
) -> tuple[dict[str, Range], dict[str, Range], list[str]]:
    """Ranges by the site of the quantizer: known, estimated; and the sites without one."""
    statistics = channel_statistics(model.graph, deviations=deviations, input_range=input_range)
    known: dict[str, Range] = {}
    estimated: dict[str, Range] = {}
    unknown: list[str] = []
    for quantizer, nodes in _watched(model).items():
        if quantizer.spec.dictated:
            signed = quantizer.spec.calibrator == "signed_unit_interval"
            known[quantizer.site] = (-1.0 if signed else 0.0, 1.0)
            continue
        parts = [_ends(model, node, statistics.get(node)) for node in nodes]
        if None in parts:
            unknown.append(quantizer.site)
            continue
        ends = [part for part in parts if part is not None]
        found = min(low for low, _ in ends), max(high for _, high in ends)
        guessed = any(node in statistics and statistics[node].estimated for node in nodes)
        (estimated if guessed else known)[quantizer.site] = found
    return known, estimated, unknown


def _watched(model: QuantizedModel) -> dict[Quantizer, list[fx.Node]]:
    """The quantizers of activations and constants, with the nodes of the graph that they see."""
    nodes = {node.name: node for node in model.graph.module.graph.nodes}
    activations = set(model.activation_sites())
    watched: dict[Quantizer, list[fx.Node]] = {}
    for call, quantizer in model.calls().items():
        if quantizer.site in activations:
            (source,) = call.all_input_nodes
            watched.setdefault(quantizer, []).append(nodes[source.name])
    return watched


def _ends(model: QuantizedModel, node: fx.Node, found: Channels | None) -> Range | None:
    if node.op == "get_attr":
        value = model.parameter_of(node).detach()
        return float(value.min()), float(value.max())
    return None if found is None else (float(found.low.min()), float(found.high.max()))
