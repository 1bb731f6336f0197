"""What each recipe can be asked for: its own keyword options, and those of ``make_plan``."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from halfstep.catalog import find
from halfstep.choices import check_names, check_types, keywords_of, takes_more
from halfstep.graph.planner import make_plan

# What ``quantize`` passes to every recipe.
_RECEIVED = ("target", "journal", "progress")


def own_options(recipe: str) -> dict[str, inspect.Parameter]:
    """The options that the recipe called ``recipe`` has beside those of ``make_plan``."""
    keywords = keywords_of(find("recipe", recipe))
    return {name: p for name, p in keywords.items() if name not in _RECEIVED}


def recipe_options(recipe: str) -> dict[str, inspect.Parameter]:
    """Everything that the recipe called ``recipe`` can be asked for, by name."""
    more = keywords_of(make_plan) if takes_more(find("recipe", recipe)) else {}
    return more | own_options(recipe)


def check_options(recipe: str, given: Mapping[str, Any], also: Iterable[str] = ()) -> None:
    """Refuse what the recipe called ``recipe`` has no option for, and values of a wrong type.

    Args:
        recipe: a name in the catalog.
        given: options by name.
        also: names to suggest as well, which the caller takes itself.

    Raises:
        UnknownNameError: an unknown option, or recipe; the message lists the known ones.
        PlanError: a value of a wrong type.
    """
    options = recipe_options(recipe)
    check_names(f"{recipe} option", given, [*options, *also])
    check_types(given, options)
