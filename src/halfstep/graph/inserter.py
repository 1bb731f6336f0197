"""Where the quantizers of a plan go in the graph."""

import math

from torch import fx

from halfstep.catalog import find
from halfstep.core.execution import Execution
from halfstep.core.grid import group_count
from halfstep.core.spec import QuantSpec
from halfstep.core.target import Target
from halfstep.errors import PlanError
from halfstep.graph.match import Unit, Units, only_user, readers_of, see_through
from halfstep.graph.placement import is_weighted, quantized_values
from halfstep.graph.plan import Plan
from halfstep.graph.readers import shape_of
from halfstep.quant.bias import BiasQuantizer
from halfstep.quant.quantizer import Quantizer


def module_name(site: str) -> str:
    """The name of the quantizer of ``site`` in the module."""
    return "quantizer_" + site.replace(".", "_").replace(":", "__")


class Inserter:
    """The state of one ``prepare``.

    Attributes:
        module: a copy of the graph, which gets the quantizers.
        plan: what they are.
        units: the operations of the original graph.
        copied: for each of its nodes, the copy.
        site_quantizer: for each site that got a quantizer, whose it is.
    """

    def __init__(
        self, module: fx.GraphModule, plan: Plan, units: Units, copied: dict[fx.Node, fx.Node]
    ) -> None:
        self.module = module
        self.plan = plan
        self.units = units
        self.copied = copied
        self.leader = {site: group[0] for group in plan.groups for site in group}
        floats = [u for u in units.units if plan.executions[u.name] is Execution.FLOAT]
        self.float_made = {unit.tail for unit in floats}
        self.float_heads = {unit.head for unit in floats}
        self.site_quantizer: dict[str, str] = {}

    def insert_values(self) -> None:
        """A quantizer behind every value that holds codes, but not behind copies of codes."""
        silent = self._without_own_call()
        for node in quantized_values(self.units, self.plan.executions):
            site = self.units.sites[node]
            leader = self.leader.get(site, site)
            self.site_quantizer[site] = leader
            name = self._add(leader, ())
            if node not in silent:
                new = self.copied[node]
                readers = list(new.users)
                call = self._call_after(new, name, (new,))
                if node in self.float_made and any(n in self.float_heads for n in readers_of(node)):
                    self._split(node, call)
                    continue
                for reader in readers:
                    reader.replace_input_with(new, call)

    def _split(self, node: fx.Node, call: fx.Node) -> None:
        """What a float operation made, other float operations read as it is, the rest as codes."""
        made = {node: call}

        def behind(source: fx.Node) -> fx.Node:
            if source not in made:  # dropout: a path of its own for the codes
                inner = source.all_input_nodes[0]
                new, old = behind(inner), self.copied[inner]
                with self.module.graph.inserting_after(new):
                    copied = self.copied[source]
                    made[source] = self.module.graph.node_copy(
                        copied, lambda n: new if n is old else n
                    )
            return made[source]

        for reader in readers_of(node):
            if reader in self.float_heads:
                continue
            for source in reader.all_input_nodes:
                if see_through(source) is node:
                    self.copied[reader].replace_input_with(self.copied[source], behind(source))

    def _without_own_call(self) -> set[fx.Node]:
        """Values that the quantizer of their group sees elsewhere: copies, at what they copy.

        A minimum is seen behind itself, where that is all that is read: rounding and picking the
        smaller value commute, and a range need not hold what is never picked.
        """
        silent: set[fx.Node] = set()
        for unit in self.units.units:
            if self.plan.executions[unit.name].value != "copy":
                continue
            if unit.kind == "minimum":
                silent |= {node for node in unit.inputs if only_user(node) is unit.head}
            else:
                silent.add(unit.tail)
        return silent

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
        source, weight = (
            self.module.get_submodule(module_name(self.site_quantizer[site])) for site in sites
        )
        assert isinstance(source, Quantizer) and isinstance(weight, Quantizer)
        target: Target = find("target", self.plan.target)
        qtype = target.bias_type(source.spec.qtype, weight.spec.qtype)
        name = module_name(f"{unit.name}:bias")
        self.module.add_submodule(name, BiasQuantizer(source, weight, qtype))
        bias = self.copied[unit.bias]
        head.replace_input_with(bias, self._call_before(head, name, (bias,)))

    def _add(self, site: str, shape: tuple[int, ...]) -> str:
        """The quantizer of a site, made once; ``shape`` is that of a weight."""
        name = module_name(site)
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
