"""Put quantizers on the values of a graph: the model that calibrates, trains and is lowered."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_unflatten

from halfstep.catalog import find
from halfstep.core.grid import group_count
from halfstep.core.qtype import QType
from halfstep.core.spec import QuantSpec
from halfstep.core.target import Target
from halfstep.errors import DataError, PlanError, unknown_name
from halfstep.graph.batchnorm import value_of
from halfstep.graph.capture import Graph
from halfstep.graph.match import Unit, Units, find_units
from halfstep.graph.ops import IDENTITIES
from halfstep.graph.placement import is_weighted, quantized_values
from halfstep.graph.plan import Plan
from halfstep.graph.readers import shape_of
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
        flat = self.module(*args, *(kwargs[name] for name in self.graph.inputs[len(args) :]))
        return tree_unflatten(flat, self.graph.output_spec)

    def quantizers(self) -> Iterator[Quantizer]:
        """Every quantizer of an activation, a constant or a weight, in order."""
        return (m for m in self.module.modules() if isinstance(m, Quantizer))

    def quantizer(self, site: str) -> Quantizer:
        """The quantizer of ``site``; sites that share a grid have the same one."""
        if site not in self.site_quantizer:
            raise unknown_name("quantized site", site, self.site_quantizer)
        found = self.module.get_submodule(_module_name(self.site_quantizer[site]))
        assert isinstance(found, Quantizer)
        return found

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
        assert unit.weight is not None
        target: Target = find("target", self.plan.target)
        sites = (self.units.sites[unit.inputs[0]], self.units.sites[unit.weight])
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
    new_graph.output(new_graph.graph_copy(graph.module.graph, copied))
    module = fx.GraphModule(copy.deepcopy(graph.module), new_graph)
    inserter = _Inserter(module, plan, units, copied)
    inserter.insert_values()
    inserter.insert_weights()
    module.graph.lint()
    module.recompile()
    return QuantizedModel(module, graph, plan, units, inserter.site_quantizer).eval()


def _module_name(site: str) -> str:
    return "quantizer_" + site.replace(".", "_").replace(":", "__")


class _Inserter:
    """The state of one ``prepare``."""

    def __init__(
        self, module: fx.GraphModule, plan: Plan, units: Units, copied: dict[fx.Node, fx.Node]
    ) -> None:
        self.module = module
        self.plan = plan
        self.units = units
        self.copied = copied
        self.leader = {site: group[0] for group in plan.groups for site in group}
        self.site_quantizer: dict[str, str] = {}

    def insert_values(self) -> None:
        """A quantizer behind every value that holds codes, but not behind copies of codes."""
        made_by_copy = {
            unit.tail
            for unit in self.units.units
            if self.plan.executions[unit.name].value == "copy"
        }
        for node in quantized_values(self.units, self.plan.executions):
            site = self.units.sites[node]
            leader = self.leader.get(site, site)
            self.site_quantizer[site] = leader
            name = self._add(leader, ())
            if node not in made_by_copy:
                new = self.copied[node]
                readers = list(new.users)
                call = self._call_after(new, name, (new,))
                for reader in readers:
                    reader.replace_input_with(new, call)

    def insert_weights(self) -> None:
        """Quantizers in front of the weight and the bias of every quantized operation."""
        for unit in self.units.units:
            if not is_weighted(unit, self.plan.executions):
                continue
            assert unit.weight is not None
            site = self.units.sites[unit.weight]
            self.site_quantizer[site] = site
            name = self._add(site, shape_of(unit.weight))
            head, weight = self.copied[unit.head], self.copied[unit.weight]
            head.replace_input_with(weight, self._call_before(head, name, (weight,)))
            if unit.bias is not None:
                self._insert_bias(unit, head)

    def _insert_bias(self, unit: Unit, head: fx.Node) -> None:
        assert unit.weight is not None and unit.bias is not None
        sites = (self.units.sites[unit.inputs[0]], self.units.sites[unit.weight])
        sources = tuple(
            self.module.get_submodule(_module_name(self.site_quantizer[site])) for site in sites
        )
        target: Target = find("target", self.plan.target)
        qtype = target.bias_type(*(self.plan.specs[site].qtype for site in sites))
        name = _module_name(f"{unit.name}:bias")
        self.module.add_submodule(name, BiasQuantizer(*sources, qtype))  # type: ignore[arg-type]
        bias = self.copied[unit.bias]
        head.replace_input_with(bias, self._call_before(head, name, (bias,)))

    def _add(self, site: str, shape: tuple[int, ...]) -> str:
        """The quantizer of a site, made once; ``shape`` is that of a weight."""
        name = _module_name(site)
        if not hasattr(self.module, name):
            if site not in self.plan.specs:
                raise PlanError(
                    f"{site}: the plan has no spec for it, and an integer operation reads it"
                )
            spec = self.plan.specs[site]
            self.module.add_submodule(
                name, find("quantizer", spec.quantizer)(site, spec, *_scales(spec, shape))
            )
        found = getattr(self.module, name)
        if found.site != site:
            raise PlanError(
                f"{site}: its quantizer would be called {name}, as that of {found.site} is; "
                "rename one of the two modules"
            )
        return name

    def _call_after(self, node: fx.Node, name: str, args: tuple[fx.Node, ...]) -> fx.Node:
        with self.module.graph.inserting_after(_last_of_its_kind(node)):
            return self.module.graph.call_module(name, args)

    def _call_before(self, node: fx.Node, name: str, args: tuple[fx.Node, ...]) -> fx.Node:
        with self.module.graph.inserting_before(node):
            return self.module.graph.call_module(name, args)


def _scales(spec: QuantSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many scales a weight of ``shape`` has: none for one, channels, or channels and groups."""
    if spec.axis is None:
        return ()
    channels = shape[spec.axis]
    if spec.group_size is None:
        return (channels,)
    return channels, group_count(math.prod(shape) // channels, spec.group_size)


def _last_of_its_kind(node: fx.Node) -> fx.Node:
    """Behind an input or a constant, the last one of its row: fx wants inputs to come first."""
    while node.op in ("placeholder", "get_attr") and node.next.op in ("placeholder", "get_attr"):
        node = node.next
    return node


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
