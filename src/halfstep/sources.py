"""MODEL and DATA as the command line names them: callables, image folders and arrays."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from halfstep.data import batches, check_iterable, example_of
from halfstep.errors import DataError, HalfstepError, unknown_name
from halfstep.images import ArrayBatches, FolderBatches, Preprocessing
from halfstep.quantize import peek
from halfstep.weights import load_weights

Values = NDArray[Any]
_FORMS = "package.module:callable or path/to/file.py:callable"


def load_model(where: str, weights: Path | None = None) -> nn.Module:
    """The model that the callable at ``where`` gives, with ``weights`` from a safetensors file.

    Raises:
        DataError: no such file or module, it raises, or what it gives is no model.
        UnknownNameError: the module has no such callable.
    """
    model = _found("MODEL", where)
    if not isinstance(model, nn.Module):
        raise DataError(f"MODEL {where}: asked for a torch.nn.Module, found {type(model).__name__}")
    if weights is not None:
        load_weights(model, weights)
    return model


def is_callable(where: str) -> bool:
    """Whether DATA names a callable, and no image folder or ``.npz`` file."""
    path = Path(where)
    return ":" in where and not path.is_dir() and path.suffix != ".npz"


def load_data(where: str, preprocessing: Preprocessing) -> Iterable[Any]:
    """Batches from an image folder, an ``.npz`` file or a callable.

    Raises:
        DataError: there is nothing of that name, or not what was asked for.
        UnknownNameError: the module has no such callable.
    """
    path = Path(where)
    if path.is_dir():
        return FolderBatches.read(path, preprocessing)
    if path.suffix == ".npz":
        return ArrayBatches.read(path, preprocessing)
    if not is_callable(where):
        raise DataError(
            f"DATA {where}: there is no such folder; give an image folder, an .npz file, {_FORMS}"
        )
    data = _found("DATA", where)
    try:
        check_iterable(data)
    except DataError as error:
        raise DataError(f"DATA {where}: {error}") from None
    return _Named(data, where)


@dataclass(frozen=True, eq=False)
class _Named:
    """The batches of ``data``; what the user's own code raises meanwhile names the batch."""

    data: Iterable[Any]
    where: str

    def __iter__(self) -> Iterator[Any]:
        read = 0
        try:
            for batch in self.data:
                yield batch
                read += 1
        except HalfstepError:
            raise
        except Exception as error:  # whatever the loader raises
            raise _failure(f"DATA {self.where}: batch {read}: it failed", error) from error

    def __length_hint__(self) -> int:
        return length_hint(self.data)


class Peeked:
    """Data whose first batch is looked at before all of them are read, once.

    Attributes:
        head: the first batch.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self._size = length_hint(data)
        self.head, self._whole = peek(data)

    def __iter__(self) -> Iterator[Any]:
        return self._whole

    def __length_hint__(self) -> int:
        return self._size


def check_alike(batch: Any, other: Any, forward: Callable[..., Any]) -> None:
    """Raise ``DataError`` unless ``batch`` has inputs of the types and sizes that ``other`` has.

    Of the form that ``forward`` takes, that is; the number of samples is free.
    """
    names = list(inspect.signature(forward).parameters)
    given, wanted = (_by_name(example_of(b, forward, np.asarray), names) for b in (batch, other))
    for name, like in wanted.items():
        if name not in given:
            raise DataError(f"{name}:in: batch 0: DATA has it, and here is none")
        found = given[name]
        if (found.dtype, found.shape[1:]) != (like.dtype, like.shape[1:]):
            raise DataError(
                f"{name}:in: batch 0: asked for {_form(like)}, as in DATA; found {_form(found)}"
            )


def _by_name(
    example: Mapping[str, Values] | Sequence[Values], names: Sequence[str]
) -> dict[str, Values]:
    if isinstance(example, Mapping):
        return dict(example)
    return dict(zip([*names, *map(str, range(len(example)))], example, strict=False))


def _form(values: Values) -> str:
    return f"{values.dtype} ({', '.join(map(str, ('N', *values.shape[1:])))})"


def samples_of(
    data: Iterable[Any], inputs: Sequence[str], limit: int | None = None
) -> Iterator[tuple[Values, ...]]:
    """Batches of arrays to verify on, labels last if there is one a sample.

    Args:
        data: batches in any form.
        inputs: names of the inputs, in order.
        limit: how many samples to give at most.

    Raises:
        DataError: a batch of another form, or with NaN.
    """
    left = limit
    for index, (values, labels) in enumerate(batches(data, inputs, np.asarray)):
        for name, value in zip(inputs, values, strict=True):
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise DataError(f"{name}:in: batch {index}: it holds NaN or infinity; clean it")
        single = () if labels is None or labels.ndim != 1 else (labels,)
        yield tuple(value[:left] for value in (*values, *single))
        if left is not None:
            left -= len(values[0])
            if left <= 0:
                return


def _found(what: str, where: str) -> Any:
    """What the callable at ``where`` returns, or what stands there if it is a model or data itself.

    Its own folder can be imported from meanwhile.
    """
    source, _, name = where.rpartition(":")
    if not source or not name:
        raise DataError(f"{what} {where}: write {_FORMS}")
    file = Path(source).resolve() if source.endswith(".py") else None
    if file is not None and not file.is_file():
        raise DataError(f"{what} {where}: there is no file {source}")
    with _on_path(Path.cwd() if file is None else file.parent):
        try:
            module = importlib.import_module(source) if file is None else _import_file(file)
        except Exception as error:  # whatever the module's own code raises
            raise _failure(f"{what} {where}: it cannot be imported", error) from error
        found = _attribute(module, name, where)
        if isinstance(found, nn.Module) or not callable(found):
            return found
        try:
            return found()
        except Exception as error:  # whatever the function raises
            raise _failure(f"{what} {where}: it failed", error) from error


def _attribute(module: ModuleType, name: str, where: str) -> Any:
    known = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    found = known.get(name)
    if found is None:
        own = [key for key, value in known.items() if callable(value)]
        raise unknown_name(f"callable of {where.removesuffix(name)[:-1]}", name, own)
    return found


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _import_file(file: Path) -> ModuleType:
    """The module in ``file``, made once; its path is its name, which no other module has."""
    name = str(file)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _failure(what: str, error: Exception) -> DataError:
    """The error with the line of the user's own code that it comes from, if there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    at = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:  # of a loader's worker
        text = text.splitlines()[-1]
    return DataError(f"{what}: {type(error).__name__}: {text}{at}")
