"""What can be asked for by keyword: unknown names are listed, values have their type."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import nn

import halfstep as hs
from halfstep.catalog import family
from halfstep.choices import check_names, check_types, keywords_of, takes_more
from halfstep.errors import PlanError, UnknownNameError, unknown_name
from halfstep.graph.planner import make_plan
from halfstep.recipes.choices import check_options, own_options, recipe_options
from tests.models import Residual, normal, seeded


def recipe(
    model: Any,
    data: Any,
    *,
    target: str,
    rounds: int = 3,
    rate: float = 0.1,
    fast: bool = False,
    name: str | None = None,
    layers: list[str] | None = None,
    anything: Any = None,
    untyped=0,
    **choices: Any,
) -> None:
    """Stands for a recipe; only its signature matters."""


PARAMETERS = keywords_of(recipe)


def test_keywords_are_those_that_have_no_position() -> None:
    assert list(PARAMETERS) == [
        *("target", "rounds", "rate", "fast", "name", "layers", "anything", "untyped")
    ]
    assert takes_more(recipe) and not takes_more(make_plan)


@pytest.mark.parametrize(
    "given",
    [
        {"rounds": 5, "rate": 2, "fast": True, "name": None},
        {"rounds": np.int64(5), "rate": np.float32(0.5), "name": "a"},
        {"layers": "the function itself checks what is not a plain class"},
        {"anything": object(), "untyped": "x"},
    ],
)
def test_values_of_their_type_are_taken(given: dict[str, Any]) -> None:
    check_types(given, PARAMETERS)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"rounds": 2.5}, "rounds: asked for int, found 2.5"),
        ({"rounds": True}, "rounds: asked for int, found True"),
        ({"rate": "fast"}, "rate: asked for float, found 'fast'"),
        ({"rate": None}, "rate: asked for float, found None"),
        ({"fast": 1}, "fast: asked for bool, found 1"),
        ({"fast": "no"}, "fast: asked for bool, found 'no'"),
        ({"name": 3}, "name: asked for str or None, found 3"),
    ],
)
def test_values_of_another_type_are_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(PlanError, match=f"^{text}$"):
        check_types(given, PARAMETERS)


def test_what_resembles_no_name_gets_no_suggestion() -> None:
    assert str(unknown_name("site", "onnx", ["onnxruntime", "litert"])) == (
        "unknown site 'onnx': known are litert, onnxruntime"
    )
    many = [f"layer{i:02}:out" for i in range(30)]
    text = str(unknown_name("site", "what", many))
    assert text.startswith("unknown site 'what': known are layer00:out, ")
    assert text.endswith(", layer23:out and 6 more")


def test_an_unknown_name_comes_with_the_nearest_and_with_all() -> None:
    with pytest.raises(UnknownNameError) as caught:
        check_names("dfq option", ["rate", "ruonds"], PARAMETERS)
    assert str(caught.value) == (
        "unknown dfq option 'ruonds': did you mean 'rounds'? known are anything, fast, layers, "
        "name, rate, rounds, target, untyped"
    )


def test_the_options_of_a_recipe_are_its_own_and_those_of_the_plan() -> None:
    assert list(own_options("ptq")) == ["plan"]
    assert recipe_options("ptq").keys() == {"plan", *keywords_of(make_plan)}


@pytest.mark.parametrize("name", family("recipe"))
def test_the_defaults_of_every_recipe_are_of_their_type(name: str) -> None:
    options = recipe_options(name)
    defaults = {key: p.default for key, p in options.items() if p.default is not p.empty}
    check_options(name, defaults)


def of_quantize(**choices: Any) -> None:
    hs.quantize(seeded(Residual()), [normal(4, 3, 6, 6)], **choices)


def of_make_plan(**choices: Any) -> None:
    hs.make_plan(hs.capture(seeded(Residual()), normal(4, 3, 6, 6)), **choices)


@pytest.mark.parametrize("verb", [of_quantize, of_make_plan])
@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({"per_channel": "no"}, "per_channel: asked for bool, found 'no'"),
        ({"weights": 4}, "weights: asked for str or None, found 4"),
        ({"calibrator": None}, "calibrator: asked for str, found None"),
    ],
)
def test_choices_of_the_plan_have_their_type(
    verb: Callable[..., None], choices: dict[str, Any], text: str
) -> None:
    with pytest.raises(PlanError, match=f"^{text}$"):
        verb(**choices)


def test_a_model_is_no_graph() -> None:
    with pytest.raises(PlanError, match=r"^graph: asked for Graph, found Linear"):
        hs.make_plan(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({"nonsense": 1}, "unknown ptq option 'nonsense': known are activations, calibrator, "),
        (
            {"calibratr": "mse"},
            r"unknown ptq option 'calibratr': did you mean '.*calibrator'.* known",
        ),
        (
            {"verify_sampels": 3},
            "unknown ptq option 'verify_sampels': did you mean 'verify_samples'",
        ),
    ],
)
def test_an_unknown_option_lists_the_options_of_the_recipe(
    choices: dict[str, Any], text: str
) -> None:
    with pytest.raises(UnknownNameError, match=f"^{text}"):
        of_quantize(**choices)
