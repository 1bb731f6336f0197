"""What a verb or a recipe can be asked for by keyword: the names, and values of the right type."""

import inspect
import numbers
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from halfstep.errors import PlanError, unknown_name

# A number of numpy is a number, and a whole one will do where a real one is asked for.
_WIDER: dict[type, type] = {int: numbers.Integral, float: numbers.Real}


def keywords_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that ``function`` takes by keyword alone."""
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def takes_more(function: Callable[..., Any]) -> bool:
    """Whether ``function`` passes keywords on that it has no parameter for."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``UnknownNameError``, which lists all names, unless every given one is known."""
    listed = sorted(known)
    for name in given:
        if name not in listed:
            raise unknown_name(what, name, listed, list_all=True)


def check_types(given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Raise ``PlanError`` where a given value is not of the type of its parameter.

    Only annotations of plain classes and unions of them are looked at.
    """
    for name, value in given.items():
        kinds = _kinds(parameters[name].annotation)
        if kinds and not any(_is_a(value, kind) for kind in kinds):
            wanted = " or ".join("None" if k is types.NoneType else k.__name__ for k in kinds)
            raise PlanError(f"{name}: asked for {wanted}, found {value!r}")


def _kinds(annotation: Any) -> tuple[type, ...]:
    """The classes of an annotation; none where it says more than a class can."""
    union = isinstance(annotation, types.UnionType)
    kinds = annotation.__args__ if union else (annotation,)
    plain = all(isinstance(kind, type) and kind is not Any for kind in kinds)
    return kinds if plain and inspect.Parameter.empty not in kinds else ()


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, _WIDER.get(kind, kind))
