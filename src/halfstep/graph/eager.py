"""The model as it is, run on the example: what does not fit, its own modules say best."""

import copy
import re
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from halfstep.errors import CaptureError, DataError

_FRAME = re.compile(r'File "(.+?)", line (\d+)')


def original(model: Any) -> nn.Module:
    """``model``, or what ``torch.compile`` wraps; anything else is refused.

    Raises:
        CaptureError: it is no module, or one whose code is gone.
    """
    if isinstance(model, type):
        found = f"the class {model.__name__}; make one of it: {model.__name__}(...)"
    elif not isinstance(model, nn.Module):
        found = f"{type(model).__name__}; write a module with a forward"
    elif isinstance(model, torch.jit.ScriptModule):
        found = "one that torch.jit compiled; give the module that it was made from"
    elif isinstance(model, fx.GraphModule) and "_guards_fn" in dict(model.named_children()):
        found = "one that torch.export made; give the module that it was made from"
    else:
        wrapped = getattr(model, "_orig_mod", model)
        assert isinstance(wrapped, nn.Module)
        return wrapped
    raise CaptureError(f"model: asked for a torch.nn.Module, found {found}")


def run_eagerly(
    model: nn.Module, inputs: Mapping[str, Tensor], given: Mapping[str, Tensor], by_name: bool
) -> Any:
    """What ``model`` gives for its inputs; buffers that its forward changes stay as they were.

    Args:
        model: in eval mode.
        inputs: two samples, in the order of the model's arguments.
        given: the batch that they were taken from.
        by_name: pass them by keyword.

    Raises:
        DataError: the forward raises; with its own words, the module that raised, and what the
            data is.
        CaptureError: it does so for two samples, and not for the whole batch.
    """
    probe = copy.deepcopy(model)
    try:
        return outputs_of(probe, inputs, by_name)
    except Exception as error:  # whatever the model's own code raises
        words = _failure(probe, error)
        if _runs(copy.deepcopy(model), given, by_name):
            size = len(next(iter(given.values())))
            raise CaptureError(
                f"{type(model).__name__}: it runs on a batch of {size} samples, and not on one of "
                f"2: {words}\nMake it do the same for every size."
            ) from error
        found = ", ".join(f"{name}: {_described(value)}" for name, value in inputs.items())
        raise DataError(
            f"batch 0: the model itself cannot run on it: {words}\n"
            f"The data is {found}; axis 0 is the batch."
        ) from error


def outputs_of(model: nn.Module, inputs: Mapping[str, Tensor], by_name: bool) -> Any:
    """What ``model`` gives, by the plain call."""
    with torch.no_grad():
        return model(**inputs) if by_name else model(*inputs.values())


def _runs(model: nn.Module, inputs: Mapping[str, Tensor], by_name: bool) -> bool:
    try:
        outputs_of(model, inputs, by_name)
    except Exception:  # whatever the model's own code raises
        return False
    return True


def users_line(error: BaseException) -> str:
    """The last line of the user's own code that an error went through; "" if there is none."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""


def is_users(filename: str) -> bool:
    """Whether a file is neither of torch, nor of Python itself, nor of this package."""
    libraries = (torch.__path__[0], str(Path(__file__).parents[1]))
    of_python = filename.startswith(sysconfig.get_path("stdlib")) and "-packages" not in filename
    return not of_python and not filename.startswith(libraries)


def written_at(node: fx.Node) -> str:
    """Where in a file of the user's the operation of a captured node stands; "" if in none."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [(file, line) for file, line in frames if is_users(file) and Path(file).is_file()]
    return f" ({own[-1][0]}, line {own[-1][1]})" if own else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _failure(model: nn.Module, error: Exception) -> str:
    """Which module failed, in its own words, and where it was called."""
    line = users_line(error)
    at = f" ({line})" if line else ""
    return f"{_failed_module(model, error)}: {type(error).__name__}: {first_line(error)}{at}"


def _described(value: Tensor) -> str:
    sizes = ", ".join(map(str, ("N", *value.shape[1:])))
    return f"{str(value.dtype).removeprefix('torch.')} ({sizes})"


def _failed_module(model: nn.Module, error: BaseException) -> str:
    """The innermost module whose forward was running: its name, and itself if that is short."""
    names = {module: name for name, module in model.named_modules()}
    running = [model]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner in names:
            running.append(owner)
    text = str(running[-1])
    text = type(running[-1]).__name__ if "\n" in text else text
    name = names[running[-1]]
    return f"{name} = {text}" if name else text


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors of a model's output, in the order in which export flattens them."""
    flat, _ = tree_flatten(outputs)
    return [value for value in flat if isinstance(value, Tensor)]
