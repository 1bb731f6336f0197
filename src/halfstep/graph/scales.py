"""Scales that the kernels of a target do not take beside one another."""

from halfstep.catalog import find
from halfstep.core.target import Target
from halfstep.graph.insert import QuantizedModel
from halfstep.graph.match import Unit
from halfstep.graph.placement import QUANTIZED


def scale_refusal(model: QuantizedModel, unit: Unit) -> str:
    """Why the unit's kernel does not take the present scales of a calibrated model, or ""."""
    if model.plan.executions[unit.name] not in QUANTIZED or unit.out not in model.site_quantizer:
        return ""
    target: Target = find("target", model.plan.target)
    nodes = [node for node in (*unit.inputs, unit.weight) if node is not None]
    sites = [model.units.sites[node] for node in nodes]
    inputs = [model.quantizer(site) for site in sites if site in model.site_quantizer]
    scales = [float(quantizer.grid().scale.max()) for quantizer in inputs]
    output = float(model.quantizer(unit.out).grid().scale)
    return target.rules[unit.kind].refuses_scales(unit.facts, scales, output)
