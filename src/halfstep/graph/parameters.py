"""Parameters as the planner wants them: every weight is one, and has one role.

Weight and spectral normalization compute a weight from other parameters in each call; a table of
words may be the weight of the last layer as well.
"""

from torch import Tensor, fx

from halfstep.graph.batchnorm import new_parameter, value_of
from halfstep.graph.ops import describe, is_computation


def fold_computed_weights(module: fx.GraphModule) -> None:
    """Turn a weight or bias that only parameters determine into a parameter, in place.

    Training then moves it directly, no longer through what it was computed from.
    """
    values: dict[fx.Node, Tensor] = {}
    folded: dict[fx.Node, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            values[node] = value_of(module, node).detach()
        elif is_computation(node):
            _fold_inputs(module, node, values, folded)
            if node.all_input_nodes and all(source in values for source in node.all_input_nodes):
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
    module.graph.eliminate_dead_code()
    module.recompile()


def separate_roles(module: fx.GraphModule) -> None:
    """Give a parameter that is a weight here and a value there a node for each, in place."""
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        readers: dict[str, list[fx.Node]] = {}
        for user in node.users:
            readers.setdefault(_role(node, user), []).append(user)
        for others in list(readers.values())[1:]:
            with module.graph.inserting_before(node):
                copy = module.graph.get_attr(node.target)
            copy.meta = dict(node.meta)
            for user in others:
                user.replace_input_with(node, copy)
    module.recompile()


def _fold_inputs(
    module: fx.GraphModule,
    node: fx.Node,
    values: dict[fx.Node, Tensor],
    folded: dict[fx.Node, fx.Node],
) -> None:
    info = describe(node)
    for source in (info.weight, info.bias):
        if source is None or source.op == "get_attr" or source not in values:
            continue
        if source not in folded:
            folded[source] = new_parameter(module, source.name, values[source].clone(), node)
            values[folded[source]] = values[source]
        node.replace_input_with(source, folded[source])


def _role(node: fx.Node, user: fx.Node) -> str:
    """The kind of operation that ``node`` is the weight of; "" for any other reader."""
    if not is_computation(user):
        return ""
    info = describe(user)
    return info.kind if info.weight is node else ""
