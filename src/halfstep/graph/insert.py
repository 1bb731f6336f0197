"""Put quantizers on the values of a graph: the model that calibrates, trains and is lowered."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_unflatten

from halfstep.catalog import find
from halfstep.core.execution import Execution
from halfstep.core.qtype import QType
from halfstep.core.target import Target
from halfstep.errors import DataError, PlanError, unknown_name
from halfstep.graph.batchnorm import value_of
from halfstep.graph.capture import Graph
from halfstep.graph.inserter import Inserter, module_name
from halfstep.graph.match import Unit, Units, find_units
from halfstep.graph.ops import IDENTITIES
from halfstep.graph.placement import is_weighted, quantized_values
from halfstep.graph.plan import Plan
from halfstep.quant.bias import BiasQuantizer
from halfstep.quant.quantizer import Quantizer


class QuantizedModel(nn.Module):
    """A captured model with quantizers on its values; takes and gives what the model did.

    Attributes:
        module: the graph with quantizers, and all parameters.
        graph: the captured graph that it came from; ``units`` refers to its nodes.
        plan: what was planned.
        units: the operations of the target.
        site_quantizer: for each site that holds codes, the name of its quantizer's site.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        graph: Graph,
        plan: Plan,
        units: Units,
        site_quantizer: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.module = module
        self.graph = graph
        self.plan = plan
        self.units = units
        self.site_quantizer = dict(site_quantizer)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Fake-quantized outputs in the model's own structure."""
        flat = self.module(*self.graph.in_order(args, kwargs))
        return tree_unflatten(flat, self.graph.output_spec)

    def quantizers(self) -> Iterator[Quantizer]:
        """Every quantizer of an activation, a constant or a weight, in order."""
        return (m for m in self.module.modules() if isinstance(m, Quantizer))

    def quantizer(self, site: str) -> Quantizer:
        """The quantizer of ``site``; sites that share a grid have the same one."""
        if site not in self.site_quantizer:
            raise unknown_name("quantized site", site, self.site_quantizer)
        found = self.module.get_submodule(module_name(self.site_quantizer[site]))
        assert isinstance(found, Quantizer)
        return found

    def calls(self) -> dict[fx.Node, Quantizer]:
        """The nodes of ``module`` that call the quantizers, in order of execution."""
        called = {
            node: self.module.get_submodule(str(node.target))
            for node in self.module.graph.nodes
            if node.op == "call_module"
        }
        return {node: found for node, found in called.items() if isinstance(found, Quantizer)}

    def weighted_units(self) -> tuple[Unit, ...]:
        """The units with a quantized weight, in order of execution."""
        return tuple(unit for unit in self.units.units if is_weighted(unit, self.plan.executions))

    def weight_site(self, unit: Unit) -> str:
        """The site of a unit's weight; units that share a weight have the same."""
        assert unit.weight is not None, "a weighted unit"
        return self.units.sites[unit.weight]

    def weight_sites(self) -> tuple[str, ...]:
        """The sites of all quantized weights, in order of execution."""
        return tuple(dict.fromkeys(map(self.weight_site, self.weighted_units())))

    def activation_sites(self) -> tuple[str, ...]:
        """The sites of all quantizers of activations and constants, one for each shared grid."""
        weights = set(self.weight_sites())
        return tuple(q.site for q in self.quantizers() if q.site not in weights)

    def enable(self, on: bool = True) -> None:
        """Turn all quantizers on or off, those of biases included."""
        for module in self.module.modules():
            if isinstance(module, Quantizer | BiasQuantizer):
                module.enabled = on

    def parameter_of(self, node: fx.Node) -> Tensor:
        """The present value of a weight, a bias or a constant of the graph."""
        return value_of(self.module, node)

    def bias_type(self, unit: Unit) -> QType:
        """The type of the codes of a unit's bias, by the rule of the plan's target."""
        target: Target = find("target", self.plan.target)
        sites = (self.units.sites[unit.inputs[0]], self.weight_site(unit))
        return target.bias_type(*(self.plan.specs[site].qtype for site in sites))

    def train(self, mode: bool = True) -> "QuantizedModel":
        """Switch dropout on or off; batch norms are folded and have no mode."""
        super().train(mode)
        for node in self.module.graph.nodes:
            if node.target in IDENTITIES:
                node.args = (*node.args[:2], mode)
        self.module.recompile()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantizedModel":
        module = copy.deepcopy(self.module, memo)
        copied = QuantizedModel(module, self.graph, self.plan, self.units, self.site_quantizer)
        copied.training = self.training
        return copied


def prepare(graph: Graph, plan: Plan) -> QuantizedModel:
    """Insert the quantizers of ``plan``; with all of them off, the output is unchanged.

    Raises:
        PlanError: the plan is of another graph.
    """
    target: Target = find("target", plan.target)
    units = find_units(graph.module, target.fused_activations)
    missing = {unit.name for unit in units.units} ^ plan.executions.keys()
    if missing:
        raise PlanError(f"the plan is of another graph: it disagrees about {sorted(missing)[:5]}")
    copied: dict[fx.Node, fx.Node] = {}
    new_graph = fx.Graph()
    outputs = new_graph.graph_copy(graph.module.graph, copied)
    copied[graph.module.graph.output_node()] = new_graph.output(outputs)
    module = fx.GraphModule(copy.deepcopy(graph.module), new_graph)
    _check_scaled(plan, units, target)
    inserter = Inserter(module, plan, units, copied)
    inserter.insert_values()
    inserter.insert_weights()
    module.graph.lint()
    module.recompile()
    return QuantizedModel(module, graph, plan, units, inserter.site_quantizer).eval()


def _check_scaled(plan: Plan, units: Units, target: Target) -> None:
    codes = set(quantized_values(units, plan.executions))
    for unit in units.units:
        if plan.executions[unit.name] is not Execution.SCALED:
            continue
        rule = target.rules.get(unit.kind)
        if rule is None or rule.scaled is None:
            raise PlanError(
                f"{unit.name}: asked for real values, but the {unit.kind} of target "
                f"'{target.name}' gives codes; keep it integer"
            )
        if any(limit is not None for limit in unit.limits):
            raise PlanError(
                f"{unit.name}: asked for real values, but its activation is part of the kernel "
                "that gives codes; keep it integer"
            )
        if unit.tail in codes:
            raise PlanError(
                f"{unit.name}: asked for real values, but an operation on codes reads it; keep it "
                "integer"
            )


def check_batch(graph: Graph, inputs: tuple[Tensor, ...], index: int) -> None:
    """Raise ``DataError`` unless a batch fits the captured model.

    The message names the batch, the site, and what was asked for.
    """
    if len(inputs) != len(graph.inputs):
        raise DataError(
            f"batch {index}: the model takes {len(graph.inputs)} inputs "
            f"({', '.join(graph.inputs)}), found {len(inputs)}"
        )
    for name, value, example in zip(graph.inputs, inputs, graph.example, strict=True):
        where = f"{name}:in: batch {index}"
        if value.dtype != example.dtype:
            raise DataError(f"{where}: asked for {example.dtype}, found {value.dtype}; convert it")
        if value.ndim != example.ndim or value.shape[1:] != example.shape[1:] or not len(value):
            wanted = ("N", *example.shape[1:])
            raise DataError(
                f"{where}: asked for shape ({', '.join(map(str, wanted))}), "
                f"found {tuple(value.shape)}"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(f"{where}: it holds NaN or infinity; clean the data")
