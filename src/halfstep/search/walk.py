"""A model run node by node, so that what many variants have in common is computed once.

Variants of a model that differ from it in a few quantizers compute the same up to the first of
these. ``Branches`` takes a batch through the model once and, wherever variants begin to differ,
runs each of them to its end from the values that are live there. Nothing but these values is kept,
whatever the number of variants, and a variant costs the part of a forward pass behind it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, fx, nn

from halfstep.graph.batchnorm import value_of
from halfstep.graph.insert import QuantizedModel
from halfstep.search.states import State, applied

Live = dict[fx.Node, Any]
Inputs = tuple[Tensor, ...]
Key = TypeVar("Key")


class Walk:
    """The graph of a model, to be run one node at a time.

    Attributes:
        model: the model.
        nodes: its nodes, in order of execution.
        quantizers: for each node that quantizes an activation, a constant or a weight, by what.
    """

    def __init__(self, model: QuantizedModel) -> None:
        self.model = model
        self.nodes: tuple[fx.Node, ...] = tuple(model.module.graph.nodes)
        self._modules: dict[fx.Node, nn.Module] = {
            node: model.module.get_submodule(str(node.target))
            for node in self.nodes
            if node.op == "call_module"
        }
        self.quantizers = model.calls()
        # A weight that two layers read has one quantizer, which is called for each of them.
        first = {self.source(node): node for node in reversed(self.quantizers)}
        self._values = set(first.values())
        last = {source: node for node in self.nodes for source in node.all_input_nodes}
        self._finished: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last.items():
            self._finished.setdefault(node, []).append(source)
        # Copies of nodes keep their names.
        self._sites = {node.name: site for node, site in model.units.sites.items()}

    def begin(self, inputs: Inputs) -> Live:
        """The live values in front of the first node."""
        given = (node for node in self.nodes if node.op == "placeholder")
        return dict(zip(given, inputs, strict=True))

    def step(self, node: fx.Node, live: Live, real: bool = False) -> None:
        """Compute ``node``, and forget the values that nothing behind it reads.

        ``real`` passes values by all quantizers, whatever their state.
        """
        if node.op == "get_attr":
            live[node] = value_of(self.model.module, node)
        elif node.op == "output" or (real and node.op == "call_module"):
            live[node] = live[node.all_input_nodes[0]]
        elif node.op in ("call_function", "call_module"):
            args, kwargs = fx.map_arg((node.args, node.kwargs), live.__getitem__)
            function = self._modules.get(node, node.target)
            live[node] = function(*args, **kwargs)  # type: ignore[operator]
        for source in self._finished.get(node, ()):
            del live[source]

    def finish(self, position: int, live: Live) -> Tensor:
        """Run the nodes from ``position`` on; the first output."""
        for node in self.nodes[position:]:
            self.step(node, live)
        output: Tensor = live[self.nodes[-1]]
        return output

    def source(self, node: fx.Node) -> fx.Node:
        """The value that a quantizer is called on."""
        return node.all_input_nodes[0]

    def site(self, node: fx.Node) -> str:
        """The site of the value that a quantizer is called on; that of the group may be another."""
        return self._sites[self.source(node).name]

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a quantizer is called on a weight or a constant, which has no samples."""
        return self.source(node).op == "get_attr"

    def values(self, inputs: Inputs) -> Iterator[tuple[fx.Node, Tensor]]:
        """The float model's values that quantizers are called on, one by one, with the calls."""
        live = self.begin(inputs)
        for node in self.nodes:
            if node in self._values:
                yield node, live[self.source(node)]
            self.step(node, live, real=True)

    def differentiable(self, inputs: Inputs) -> tuple[dict[fx.Node, Tensor], Tensor]:
        """The same values, all at once, and the first output, which has gradients by all of them.

        Activations are those behind the quantizers: what reads the float value has no part in the
        gradients. Weights, constants and inputs are copies: nothing of the model gets a gradient.
        """
        sources = {self.source(node) for node in self.quantizers}
        live = self.begin(inputs)
        found: dict[fx.Node, Tensor] = {}
        with torch.enable_grad():
            for node in self.nodes:
                if node in self._values and self.is_constant(node):
                    found[node] = live[self.source(node)]  # whatever the number of calls on it
                self.step(node, live, real=True)
                if node in self._values and not self.is_constant(node):
                    live[node] = found[node] = live[node].view_as(live[node])
                if node in sources and node.op in ("placeholder", "get_attr"):
                    live[node] = live[node].detach().clone().requires_grad_()
        output: Tensor = live[self.nodes[-1]]
        return found, output

    def first_use(self, state: State) -> int:
        """Index of the first node that computes something else when these quantizers change.

        Biases depend on quantizers as well, which are called in front of theirs.
        """
        return min(
            index
            for index, node in enumerate(self.nodes)
            if node in self.quantizers and self.quantizers[node].site in state
        )


class Branches(Generic[Key]):
    """Outputs of many variants of a model.

    Args:
        model: calibrated, as far as its quantizers are on in any state.
        variants: by a key, how each differs from ``base``.
        base: how all of them differ from the model as it is.
    """

    def __init__(self, model: QuantizedModel, variants: Mapping[Key, State], base: State) -> None:
        self.model = model
        self.walk = Walk(model)
        self.base = base
        self.variants = dict(variants)
        self._starting: dict[int, list[Key]] = {}
        for key, state in self.variants.items():
            position = self.walk.first_use(state) if state else len(self.walk.nodes) - 1
            self._starting.setdefault(position, []).append(key)

    def run(self, inputs: Inputs, visit: Callable[[Key, Tensor], None]) -> Tensor:
        """Call ``visit`` with the key and the output of each variant; the output of the base."""
        with torch.inference_mode(), applied(self.model, self.base):
            live = self.walk.begin(inputs)
            for position, node in enumerate(self.walk.nodes):
                for key in self._starting.get(position, ()):
                    with applied(self.model, self.variants[key]):
                        visit(key, self.walk.finish(position, dict(live)))
                self.walk.step(node, live)
        output: Tensor = live[self.walk.nodes[-1]]
        return output
