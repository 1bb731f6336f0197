"""How ``quantize`` calls the model, and what it takes from batches."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.data import check_classes
from halfstep.errors import CaptureError, DataError, UnknownNameError
from tests.models import Residual, normal, seeded

X, Y = normal(6, 4), normal(6, 4, seed=1)
IMAGES = normal(6, 3, 6, 6)


class Difference(nn.Module):
    """``x`` through a linear layer, less ``y``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = self.linear(x) - y
        return result


class Builtins(Difference):
    """Its arguments have names that torch does not keep in a graph."""

    def forward(self, input: Tensor, len: Tensor) -> Tensor:
        return super().forward(input, len)


class Either(Difference):
    """Of the one argument it computes the opposite of what it computes of the other."""

    def forward(self, ids: Tensor | None = None, embeds: Tensor | None = None) -> Tensor:
        result: Tensor = self.linear(embeds) if embeds is not None else -self.linear(ids)
        return result


class KeywordOnly(Difference):
    def forward(self, *, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result


# Calling the model


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (Builtins(), (X, Y)),
        (Builtins(), {"len": Y, "input": X}),
        (Either(), {"embeds": X}),
        (KeywordOnly(), {"x": X}),
    ],
)
def test_the_float_model_is_called_as_the_data_say(model: nn.Module, batch: Any) -> None:
    verdict = hs.quantize(seeded(model), [batch]).verdict
    assert verdict is not None and verdict.status is hs.Status.EXACT
    assert verdict.agreement["float and engine"] >= 5 / 6


def test_inputs_are_in_the_order_of_the_model_s_arguments_and_not_of_the_dict() -> None:
    model = seeded(Difference())
    graph = hs.capture(model, {"y": Y, "x": X})
    assert graph.inputs == graph.keywords == ("x", "y")
    assert hs.capture(model, (X, Y)).keywords == ()


@pytest.mark.parametrize("names", [("input", "len"), ("input_1", "len_1")])
def test_a_quantized_model_takes_the_arguments_of_the_model(names: tuple[str, str]) -> None:
    model = hs.quantize(seeded(Builtins()), [(X, Y)]).model
    named = dict(zip(names, (X, Y), strict=True))
    assert torch.equal(model(**named), model(X, Y))
    simulation = hs.simulate(model)
    assert torch.equal(simulation(**named), simulation(X, Y))


# Batches


@pytest.mark.parametrize("first", [3, "abc", ["a"], None, torch.tensor(0.5)])
def test_a_dict_may_hold_other_things_in_front_of_the_inputs(first: Any) -> None:
    batch = {"epoch": first, "x": X, "y": Y}
    result = hs.quantize(seeded(Difference()), [batch] * 2, verify_samples=8)
    assert result.verdict is not None and result.verdict.samples == 8
    assert (result.origin.data.batches, result.origin.data.samples) == (2, 12)


@pytest.mark.parametrize("labels", [3, torch.tensor(3)])
def test_one_label_for_a_batch_is_refused(labels: Any) -> None:
    with pytest.raises(DataError, match=r"^labels of shape \(\) for 6 samples: asked for one"):
        hs.quantize(seeded(Residual()), [(IMAGES, labels)])


@pytest.mark.parametrize("n", [2.5, "5", None])
def test_a_number_of_samples_that_is_none_is_refused(n: Any) -> None:
    with pytest.raises(DataError, match=f"^verify_samples: asked for 0 or more, found {n!r}$"):
        hs.quantize(seeded(Difference()), [(X, Y)], verify_samples=n)


def test_a_sparse_tensor_is_refused() -> None:
    with pytest.raises(DataError, match=r"^x:in: batch 0: asked for a dense tensor, found torch\."):
        hs.quantize(seeded(Difference()), [(X.to_sparse(), Y)])


# Labels


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([0, 1, 2, 3, 4, 5], "sample 15: .* from 0 to 4, found 5;"),
        ([0, -100, 2, 3, 4, 4], "sample 11: .* from 0 to 4, found -100;"),
        ([0.0, 1.0, 2.5, 3.0, 4.0, 4.0], "sample 12: .* from 0 to 4, found 2.5;"),
        ([np.nan, 1, 2, 3, 4, 4], "sample 10: .* from 0 to 4, found nan;"),
    ],
)
def test_labels_that_are_no_classes_of_the_model_are_refused(labels: Any, found: str) -> None:
    with pytest.raises(DataError, match=f"^labels: {found} where these are no classes, yield "):
        check_classes(np.asarray(labels), (6, 5), 10)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4, 4], [0.0, 1.0, 2.0, 3.0, 4.0, 4.0]])
def test_classes_may_be_numbers_of_any_type(labels: Any) -> None:
    check_classes(torch.tensor(labels), (6, 5))


@pytest.mark.parametrize("recipe", ["ptq", "best", "wu_int8"])
def test_regression_targets_give_no_accuracy(recipe: str) -> None:
    data = [(IMAGES, normal(6, seed=seed)) for seed in range(2)]
    with pytest.raises(DataError, match=r"^labels: sample 0: .* 5 scores"):
        hs.quantize(seeded(Residual()), data, recipe=recipe)


@pytest.mark.parametrize("recipe", ["ptq", "wu_int8"])
def test_of_one_value_a_sample_there_are_no_decisions(recipe: str) -> None:
    data = [(IMAGES, normal(6, seed=seed)) for seed in range(2)]
    verdict = hs.quantize(seeded(Residual(classes=1)), data, recipe=recipe).verdict
    assert verdict is not None and verdict.status is hs.Status.EXACT
    assert verdict.accuracy == verdict.agreement == {}


def test_best_refuses_one_value_a_sample() -> None:
    with pytest.raises(
        DataError, match=r"^output: asked for class scores, .* found \(6, 1\); 'best'"
    ):
        hs.quantize(seeded(Residual(classes=1)), [IMAGES] * 2, recipe="best")


# Modes of torch


def test_autocast_is_refused() -> None:
    with (
        torch.autocast("cpu"),
        pytest.raises(CaptureError, match=r"^torch\.autocast: asked for arithmetic in float32"),
    ):
        hs.quantize(seeded(Residual()), [IMAGES])


def test_another_default_type_is_refused() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(CaptureError, match=r"asked for torch\.float32, found torch\.float64;"):
            hs.quantize(seeded(Residual()).float(), [IMAGES])
    finally:
        torch.set_default_dtype(torch.float32)


def test_rounding_is_learned_where_gradients_are_off() -> None:
    def codes() -> Any:
        result = hs.quantize(seeded(Residual()), [IMAGES], recipe="qualcomm_ptq", iterations=3)
        return result.program.constant("conv:weight")

    with torch.no_grad():
        off = codes()
    np.testing.assert_array_equal(off, codes())


def test_a_recipe_that_is_no_name_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown recipe None: known are best, dfq"):
        hs.quantize(seeded(Residual()), [IMAGES], recipe=None)  # type: ignore[arg-type]
