"""Fold batch normalization into the convolution or linear layer in front of it.

Source: Krishnamoorthi 2018, section 3.2 (inference form):
``W' = gamma W / sqrt(var + eps)``, ``b' = beta + (b - mean) gamma / sqrt(var + eps)``,
each along the output channels. ``gamma`` may be negative. The original ``gamma`` and ``beta`` stay
with the folded node, as ``node.meta["batchnorm"]``: they are the statistics of its output.
A batch norm with nothing to fold into becomes a multiplication and an addition.
"""

import torch
from torch import Tensor, fx, nn

from halfstep.errors import CaptureError
from halfstep.graph.readers import arguments
from halfstep.graph.rewriting import insert_call

aten = torch.ops.aten

# Operations with their output channels on axis 0 of the weight.
_FOLDABLE = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.linear.default,
)


def fold_batchnorm(module: fx.GraphModule) -> None:
    """Fold every batch norm of ``module``, in place."""
    for node in list(module.graph.nodes):
        if node.target != aten.batch_norm.default:
            continue
        a = arguments(node)
        gamma, beta, mean, variance = (
            None if a[name] is None else value_of(module, a[name])
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        if mean is None or variance is None:
            raise CaptureError(
                f"{node.name}: a batch norm without running statistics makes each sample depend on "
                "the others; give it some (track_running_stats=True), or use another norm"
            )
        scale = torch.rsqrt(variance.double() + a["eps"])
        scale = scale if gamma is None else scale * gamma.double()
        shift = -mean.double() * scale + (0 if beta is None else beta.double())
        if _foldable(a["input"]):
            _fold(module, a["input"], scale, shift)
            node.replace_all_uses_with(a["input"])
            a["input"].meta["batchnorm"] = (gamma, beta)
        else:
            _replace(module, node, a["input"], scale, shift)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    _drop_unused(module)
    module.recompile()


def value_of(module: nn.Module, node: fx.Node) -> Tensor:
    """The parameter or buffer that a ``get_attr`` node reads."""
    path, _, name = str(node.target).rpartition(".")
    value: Tensor = getattr(module.get_submodule(path), name)
    return value


def new_parameter(module: fx.GraphModule, name: str, value: Tensor, before: fx.Node) -> fx.Node:
    """Register ``value`` under ``name`` (made unique) and read it in front of ``before``."""
    flat, count = name.replace(".", "_"), 0
    while hasattr(module, flat):
        count += 1
        flat = f"{name.replace('.', '_')}_{count}"
    module.register_parameter(flat, nn.Parameter(value, requires_grad=value.is_floating_point()))
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(flat)
    mode = before.meta["val"].fake_mode
    node.meta["val"] = mode.from_tensor(getattr(module, flat), static_shapes=True)
    return node


def _foldable(source: fx.Node) -> bool:
    """Whether the channels of a batch norm are the output channels of what it alone reads."""
    # A linear layer on tokens has its features on the last axis, a batch norm on axis 1.
    on_tokens = source.target == aten.linear.default and source.meta["val"].ndim > 2
    return source.target in _FOLDABLE and len(source.users) == 1 and not on_tokens


def _fold(module: fx.GraphModule, conv: fx.Node, scale: Tensor, shift: Tensor) -> None:
    a = arguments(conv)
    weight = value_of(module, a["weight"])
    bias = shift if a["bias"] is None else shift + value_of(module, a["bias"]).double() * scale
    along = scale.reshape([-1, *[1] * (weight.ndim - 1)])
    name = str(a["weight"].target)
    folded = new_parameter(module, f"{name}_folded", (weight * along).to(weight.dtype), conv)
    offset = new_parameter(module, f"{name}_folded_bias", bias.to(weight.dtype), conv)
    conv.args = (conv.args[0], folded, offset, *conv.args[3:])


def _replace(
    module: fx.GraphModule, node: fx.Node, x: fx.Node, scale: Tensor, shift: Tensor
) -> None:
    shape = [-1, *[1] * (node.meta["val"].ndim - 2)]
    dtype = node.meta["val"].dtype
    factor = new_parameter(module, f"{node.name}_scale", scale.reshape(shape).to(dtype), node)
    offset = new_parameter(module, f"{node.name}_shift", shift.reshape(shape).to(dtype), node)
    product = insert_call(node, aten.mul.Tensor, (x, factor))
    node.replace_all_uses_with(insert_call(node, aten.add.Tensor, (product, offset)))


def _drop_unused(module: fx.GraphModule) -> None:
    """Forget parameters and buffers that no node reads any more."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        if name not in used:
            path, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(path), leaf)
