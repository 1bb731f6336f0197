"""Readers of the op table for activation functions whose arguments need work."""

from torch.fx import Node

from halfstep.graph.readers import OpInfo, arguments

# Klambauer et al. 2017 (arXiv 1706.02515), eq. 14.
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848, 1.0507009873554804934
# From here on a softplus is its argument, to the last bit of a code.
_LEAST_THRESHOLD = 15


def selu(node: Node) -> OpInfo:
    """An ELU with fixed factors."""
    attrs = {"alpha": _SELU_ALPHA, "scale": _SELU_SCALE, "input_scale": 1.0}
    return OpInfo("elu", (node.args[0],), attrs)  # type: ignore[arg-type]


def celu(node: Node) -> OpInfo:
    """An ELU whose slope at 0 is 1."""
    alpha = float(arguments(node)["alpha"])
    attrs = {"alpha": alpha, "scale": 1.0, "input_scale": 1 / alpha}
    return OpInfo("elu", (node.args[0],), attrs)  # type: ignore[arg-type]


def softplus(node: Node) -> OpInfo:
    """The threshold, from which on torch takes the value itself, is where nobody can tell."""
    a = arguments(node)
    if a["threshold"] < _LEAST_THRESHOLD:
        return OpInfo(f"aten::softplus with threshold {a['threshold']}", (a["self"],))
    return OpInfo("softplus", (a["self"],), {"beta": float(a["beta"])})
