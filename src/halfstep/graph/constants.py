"""Compute now what does not depend on the input: masks, positions, index ranges.

Exported transformers build position ids and attention masks from ranges and comparisons. What has
only constants behind it becomes a constant; an index by complete ranges becomes a reshape.
Parameters stay what they are, because they may be trained or quantized.
"""

import torch
from torch import Tensor, fx

from halfstep.graph.readers import shape_of
from halfstep.graph.rewriting import insert_call

aten = torch.ops.aten

_CHECKS = (aten._assert_tensor_metadata.default, aten._assert_scalar.default)


def fold_constants(module: fx.GraphModule) -> None:
    """Rewrite ``module`` in place; its outputs do not change."""
    values: dict[fx.Node, Tensor] = {}
    for node in list(module.graph.nodes):
        if node.target in _CHECKS:
            module.graph.erase_node(node)
        elif node.op == "get_attr" and (value := _buffer(module, node)) is not None:
            values[node] = value
        elif node.op == "call_function" and _is_constant(node, values):
            values[node] = node.target(*fx.map_arg(node.args, values.__getitem__), **node.kwargs)
    ranges = {node for node in module.graph.nodes if _is_batch_range(node)}
    for node in list(module.graph.nodes):
        if node.target == aten.index.Tensor:
            _index_of_ranges(node, values, ranges)
    for node in [node for node in values if node.op == "call_function"]:
        if any(user not in values for user in node.users):
            _materialize(module, node, values[node])
    module.graph.eliminate_dead_code()
    module.recompile()


def _buffer(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    path, _, name = str(node.target).rpartition(".")
    value: Tensor = getattr(module.get_submodule(path), name)
    return None if isinstance(value, torch.nn.Parameter) else value


def _is_constant(node: fx.Node, values: dict[fx.Node, Tensor]) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or any(not isinstance(s, int) for s in value.shape):
        return False
    return all(source in values for source in node.all_input_nodes)


def _is_batch_range(node: fx.Node) -> bool:
    """``arange(batch)``, also behind added axes."""
    while node.target == aten.unsqueeze.default:
        assert isinstance(node.args[0], fx.Node)
        node = node.args[0]
    if node.target != aten.arange.default or not isinstance(node.args[0], fx.Node):
        return False
    size = node.args[0]
    return size.target == aten.sym_size.int and bool(size.args[1] == 0)


def _index_of_ranges(node: fx.Node, values: dict[fx.Node, Tensor], ranges: set[fx.Node]) -> None:
    """``x[arange(batch)[:, None], arange(n)]`` is ``x``, with other axes of size 1."""
    x, indices = node.args[0], node.args[1]
    assert isinstance(x, fx.Node) and isinstance(indices, list | tuple)
    sizes = shape_of(x)
    for axis, index in enumerate(indices):
        whole = index in ranges if axis == 0 else _counts_to(values.get(index), sizes[axis])
        if not whole:
            return
    wide = [s for s in shape_of(node) if s != 1]
    if len(indices) != len(sizes) or wide != [s for s in sizes if s != 1]:
        return
    batch = insert_call(node, aten.sym_size.int, (x, 0))
    shape = [batch if size < 0 else size for size in shape_of(node)]
    same = insert_call(node, aten.reshape.default, (x, shape))
    node.replace_all_uses_with(same)
    node.graph.erase_node(node)


def _counts_to(index: Tensor | None, size: int) -> bool:
    if index is None:
        return False
    return torch.equal(index.flatten(), torch.arange(size))


def _materialize(module: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    name = f"folded_{node.name}"
    module.register_buffer(name, value)
    with module.graph.inserting_before(node):
        new = module.graph.get_attr(name)
    new.meta = {"val": node.meta["val"]}
    node.replace_all_uses_with(new)
