"""Parameters and buffers of a model: what capture can take, and otherwise which one it cannot."""

import keyword
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from halfstep.errors import CaptureError

# The code that torch makes of a graph has names between double quotes.
_ENDS_QUOTES = frozenset('"\\\n\r')


def check_mode() -> None:
    """Raise ``CaptureError`` if torch would compute in another type than that of the model."""
    if torch.is_autocast_enabled("cpu"):
        raise CaptureError(
            "torch.autocast: asked for arithmetic in float32, found it on; call Halfstep outside "
            "of it"
        )
    if (found := torch.get_default_dtype()) != torch.float32:
        raise CaptureError(
            f"torch.get_default_dtype: asked for torch.float32, found {found}; call "
            "torch.set_default_dtype(torch.float32)"
        )


def check_float32(model: nn.Module) -> None:
    """Raise ``CaptureError`` at a parameter of real numbers of another type."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise CaptureError(
                f"{name}: asked for float32, found {parameter.dtype}; use model.float() and "
                "float32 data"
            )


def check_names(model: nn.Module) -> None:
    """Raise ``CaptureError`` at a name that torch cannot write in the code of a graph."""
    tensors = dict.fromkeys(name for name, _ in _named(model))
    modules = dict.fromkeys(name for name, _ in model.named_modules(remove_duplicate=False))
    for name in {**modules, **tensors}:
        for part in name.split("."):
            # Only what a graph reads stands in its code as ``self.part``, where it can.
            if _ENDS_QUOTES & set(part) or (name in tensors and keyword.iskeyword(part)):
                raise CaptureError(
                    f"{name!r}: torch writes the graph as Python, and {part!r} cannot be a name "
                    "there: asked for one that is no keyword and has no double quote, backslash "
                    "or line end; rename it"
                )


def check_finite(graph: fx.Graph, model: nn.Module) -> None:
    """Raise ``CaptureError`` at a parameter that ``graph`` reads and that holds no numbers.

    A buffer may hold infinity, as masks do.
    """
    read = {node.target for node in graph.nodes if node.op == "get_attr" and node.users}
    for name, value in _named(model):
        if name not in read or not value.is_floating_point():
            continue
        buffer = not isinstance(value, nn.Parameter)
        wrong = torch.isnan(value) if buffer else ~torch.isfinite(value)
        if n_wrong := int(wrong.sum()):
            path, _, own = name.rpartition(".")
            owner = type(model.get_submodule(path)).__name__
            raise CaptureError(
                f"{name}: {own} of {path or 'the model'} ({owner}) holds {n_wrong} of "
                f"{value.numel()} values that are NaN{'' if buffer else ' or infinity'}: asked "
                "for numbers; load other weights, or train again"
            )


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
