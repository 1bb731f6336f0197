"""What every rewrite of a captured graph is made of."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from halfstep.graph.readers import arguments

Arguments = dict[str, Any]
# By operator: what takes a node's place, made of the node and its arguments; ``None`` leaves it.
Rewrites = Mapping[Any, Callable[[fx.Node, Arguments], fx.Node | None]]


def insert_call(
    before: fx.Node, target: Any, args: tuple[Any, ...], sizes: Sequence[Any] | None = None
) -> fx.Node:
    """Call ``target`` in front of ``before``, whose owner and source line it inherits.

    ``sizes`` are those of the result, where tracing ``target`` would take the batch for a constant.
    """
    graph = before.graph
    with graph.inserting_before(before):
        node = graph.call_function(target, args)
    node.meta = {k: v for k, v in before.meta.items() if k in ("nn_module_stack", "stack_trace")}
    values = fx.map_arg(args, lambda n: n.meta["val"])
    mode = next(
        n.meta["val"].fake_mode for n in node.all_input_nodes if hasattr(n.meta["val"], "fake_mode")
    )
    with mode:
        node.meta["val"] = target(*values) if sizes is None else values[0].new_empty(sizes)
    return node


def rewrite_by(table: Rewrites, node: fx.Node) -> None:
    """Rewrite ``node`` by the row of its operator, if there is one and it gives a value."""
    rewrite = table.get(node.target)
    by = None if rewrite is None else rewrite(node, arguments(node))
    if by is not None:
        replace(node, by)


def replace(node: fx.Node, by: fx.Node) -> None:
    """Let all readers of ``node`` read ``by`` instead."""
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def constant(before: fx.Node, value: float, like: Any) -> fx.Node:
    """A constant of one element, of this dtype or that of a node, as a buffer of the graph."""
    dtype = like.meta["val"].dtype if isinstance(like, fx.Node) else like
    return buffer(before, "constant", torch.tensor([value], dtype=dtype))


def buffer(before: fx.Node, stem: str, value: Tensor) -> fx.Node:
    """A constant as a buffer of the graph, called ``stem`` and a number."""
    graph, module = before.graph, before.graph.owning_module
    assert module is not None, "a node of a GraphModule"
    names = (f"{stem}_{count}" for count in itertools.count())
    name = next(name for name in names if not hasattr(module, name))
    module.register_buffer(name, value)
    with graph.inserting_before(before):
        node = graph.get_attr(name)
    mode = before.meta["val"].fake_mode
    node.meta = {"val": mode.from_tensor(value, static_shapes=True)}
    return node
