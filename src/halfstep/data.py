"""Batches as users have them, brought into one form."""

import builtins
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from halfstep.errors import DataError

T = TypeVar("T")
NO_BATCH = "the data has no batch: it is empty, or an iterator that was used before"
LABELS = ("labels", "label", "targets", "target")


def batches(
    data: Iterable[Any], inputs: Sequence[str], convert: Callable[[Any], T]
) -> Iterator[tuple[tuple[T, ...], T | None]]:
    """Inputs, and labels where there are any, of every batch.

    A batch may be a tensor or array; a tuple or list of the inputs, with or without the labels at
    its end; or a dict by input name, with or without ``"labels"``.

    Args:
        data: the batches.
        inputs: names of the inputs, in order.
        convert: what every value becomes: ``torch.as_tensor`` or ``numpy.asarray``.

    Raises:
        DataError: a batch of another form, or no batch at all.
    """
    empty = True
    for index, batch in enumerate(iterate(data)):
        empty = False
        yield _batch(batch, inputs, index, convert)
    if empty:
        raise DataError(NO_BATCH)


def iterate(data: Any) -> Iterator[Any]:
    """The batches of ``data``, which ``check_iterable`` takes."""
    check_iterable(data)
    return iter(data)


def check_iterable(data: Any) -> None:
    """Raise ``DataError`` if ``data`` is one batch, or holds single samples."""
    wanted = "asked for an iterable of batches"
    name = type(data).__name__
    if hasattr(data, "shape"):
        raise DataError(
            f"the data is one {name} of shape {tuple(data.shape)}: {wanted}, such as [batch]"
        )
    if isinstance(data, Mapping | str):
        raise DataError(f"the data is one {name}: {wanted}, such as [batch]")
    if not isinstance(data, Iterable):
        samples = hasattr(data, "__getitem__")
        hint = "; a DataLoader makes batches of its samples" if samples else ""
        raise DataError(f"the data is of type {name}: {wanted}{hint}")


def example_of(
    batch: Any, forward: Callable[..., Any], convert: Callable[[Any], T]
) -> dict[str, T] | tuple[T, ...]:
    """The inputs in the first batch: without labels, where ``forward`` has no argument for them.

    Raises:
        DataError: a value that cannot be converted, or values that ``forward`` cannot be called
            with.
    """
    signature = inspect.signature(forward)
    if isinstance(batch, Mapping):
        return _named_example(batch, signature, convert)
    values = batch if isinstance(batch, tuple | list) else (batch,)
    parameters = signature.parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    seems_so = _are_class_indices(values[-1]) if any_number else len(values) != len(required)
    with_labels = len(values) > 1 and seems_so
    values = values[:-1] if with_labels else values
    try:
        names = list(signature.bind(*values).arguments)
    except TypeError as error:
        without = " without the labels at their end" if with_labels else ""
        raise DataError(
            f"batch 0: it holds {len(values)} values{without}, and {_call(signature)} cannot take "
            f"them: {error}"
        ) from error
    names += [str(place) for place in range(len(names), len(values))]  # of a forward(*inputs)
    pairs = zip(names, values, strict=False)
    return tuple(_converted(value, f"{name}:in: batch 0", convert) for name, value in pairs)


def _are_class_indices(value: Any) -> bool:
    """Whether a value that ``forward(*inputs)`` may take as well is one integer a sample."""
    is_float = "float" in str(getattr(value, "dtype", "int"))
    return bool(getattr(value, "ndim", 1) == 1 and not is_float)


def _named_example(
    batch: Mapping[str, Any], signature: inspect.Signature, convert: Callable[[Any], T]
) -> dict[str, T]:
    names = [name for name in signature.parameters if name in batch]
    try:
        signature.bind(**{name: batch[name] for name in names})
    except TypeError as error:
        raise DataError(
            f"batch 0: its keys are {sorted(map(str, batch))}, and {_call(signature)} cannot take "
            f"them: {error}"
        ) from error
    if not names:
        raise DataError(
            f"batch 0: none of its keys {sorted(map(str, batch))} is an argument of "
            f"{_call(signature)}; rename them"
        )
    return {name: _converted(batch[name], f"{name}:in: batch 0", convert) for name in names}


def _call(signature: inspect.Signature) -> str:
    return f"the model's forward({', '.join(map(str, signature.parameters))})"


def _batch(
    batch: Any, inputs: Sequence[str], index: int, convert: Callable[[Any], T]
) -> tuple[tuple[T, ...], T | None]:
    labels: Any = None
    if isinstance(batch, Mapping):
        keys = {name: key_of(name, batch) for name in inputs}
        missing = [key for key in keys.values() if key not in batch]
        if missing:
            raise DataError(f"batch {index}: no {missing}; it has {sorted(map(str, batch))}")
        values = [batch[keys[name]] for name in inputs]
        labels = next((batch[name] for name in LABELS if name in batch), None)
    else:
        given = batch if isinstance(batch, tuple | list) else (batch,)
        if len(given) not in (len(inputs), len(inputs) + 1):
            raise DataError(
                f"batch {index}: asked for {len(inputs)} inputs ({', '.join(inputs)}), with or "
                f"without labels; found {len(given)} values"
            )
        values = list(given[: len(inputs)])
        labels = given[-1] if len(given) > len(inputs) else None
    found = tuple(
        _converted(value, f"{name}:in: batch {index}", convert)
        for name, value in zip(inputs, values, strict=True)
    )
    return found, None if labels is None else _labels(labels, index, convert)


def key_of(name: str, batch: Mapping[str, Any]) -> str:
    """The key that the input ``name`` of a graph has in a dict by argument.

    A graph has no names of Python's builtins: torch calls an argument ``input`` ``input_1`` there.
    """
    own = name.removesuffix("_1")
    return own if name not in batch and hasattr(builtins, own) else name


def _converted(value: Any, where: str, convert: Callable[[Any], T]) -> T:
    try:
        return convert(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{where}: asked for a tensor, found {_described(value)} ({_first_line(error)})"
        ) from error


def _labels(labels: Any, index: int, convert: Callable[[Any], T]) -> T:
    """Labels as numbers; what numpy takes for an array of strings or objects is refused as well."""
    try:
        found = convert(labels)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or (isinstance(found, np.ndarray) and found.dtype.kind not in "biuf"):
        raise DataError(
            f"batch {index}: labels: asked for numbers, such as a class index a sample, found "
            f"{_described(labels)}; map them to numbers, or yield the inputs alone"
        )
    return found


def samples_in(batch: Any, keywords: Sequence[str]) -> int:
    """The number of samples in a batch; 1 where it is none, which whoever reads it next says.

    Args:
        batch: in any form.
        keywords: names of the inputs in a dict, which may hold other things in front of them.
    """
    first = batch
    if isinstance(batch, Mapping):
        first = next((batch[name] for name in (*keywords, *batch) if name in batch), None)
    elif isinstance(batch, tuple | list) and batch:
        first = batch[0]
    try:
        return len(first)
    except TypeError:  # it has no length, or is a tensor without axes
        return 1


def judges_classes(scores: Sequence[int]) -> bool:
    """Whether the largest of what the model gives is a decision: (samples, two or more classes)."""
    return len(scores) == 2 and scores[1] > 1


def check_classes(labels: Any, scores: Sequence[int], offset: int = 0) -> None:
    """Raise ``DataError`` unless ``labels`` are one class index a sample.

    Args:
        labels: a tensor or an array.
        scores: the shape of what the model gives, (samples, classes).
        offset: how many samples were before these.
    """
    found = np.asarray(labels)
    n_samples, n_classes = scores
    if found.shape != (n_samples,):
        raise DataError(
            f"labels of shape {found.shape} for {n_samples} samples: asked for one class index a "
            "sample. Inputs that the model can do without are not found at the end of a tuple: "
            "give them by name, in a dict"
        )
    wrong = ~np.isin(found, np.arange(n_classes))
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(
            f"labels: sample {offset + at}: the model gives {n_classes} scores a sample: asked for "
            f"a class index from 0 to {n_classes - 1}, found {found[at]}; where these are no "
            "classes, yield the inputs alone"
        )


def _described(value: Any) -> str:
    """The type of a value, and of what it holds."""
    name = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"{name} of {value.dtype}"
    if isinstance(value, list | tuple) and value:
        return f"{name} of {type(value[0]).__name__}"
    return name


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
