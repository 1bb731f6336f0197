"""Batches as users have them, brought into one form."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from halfstep.errors import DataError

T = TypeVar("T")
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
    for index, batch in enumerate(data):
        empty = False
        yield _batch(batch, inputs, index, convert)
    if empty:
        raise DataError("the data has no batch: it is empty, or an iterator that was used before")


def example_of(
    batch: Any, forward: Callable[..., Any], convert: Callable[[Any], T]
) -> dict[str, T] | tuple[T, ...]:
    """The inputs within a batch: without labels, where ``forward`` has no argument for them."""
    parameters = inspect.signature(forward).parameters.values()
    if isinstance(batch, Mapping):
        return {p.name: convert(batch[p.name]) for p in parameters if p.name in batch}
    if not isinstance(batch, tuple | list):
        return (convert(batch),)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    with_labels = len(batch) > 1 and len(batch) != len(required)
    return tuple(convert(value) for value in (batch[:-1] if with_labels else batch))


def _batch(
    batch: Any, inputs: Sequence[str], index: int, convert: Callable[[Any], T]
) -> tuple[tuple[T, ...], T | None]:
    labels: Any = None
    if isinstance(batch, Mapping):
        missing = [name for name in inputs if name not in batch]
        if missing:
            raise DataError(f"batch {index}: no {missing}; it has {sorted(map(str, batch))}")
        values = [batch[name] for name in inputs]
        labels = next((batch[name] for name in LABELS if name in batch), None)
    elif isinstance(batch, tuple | list):
        if len(batch) not in (len(inputs), len(inputs) + 1):
            raise DataError(
                f"batch {index}: asked for {len(inputs)} inputs ({', '.join(inputs)}), with or "
                f"without labels; found {len(batch)} values"
            )
        values = list(batch[: len(inputs)])
        labels = batch[-1] if len(batch) > len(inputs) else None
    else:
        values = [batch]
    found = []
    for name, value in zip(inputs, values, strict=True):
        try:
            found.append(convert(value))
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(value).__name__
            raise DataError(
                f"{name}:in: batch {index}: asked for a tensor, found {kind}"
            ) from error
    return tuple(found), None if labels is None else convert(labels)
