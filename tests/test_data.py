"""Batches in every form that users have them in; what is not one is named, with what it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.data import batches, example_of
from halfstep.errors import DataError
from tests.models import normal

X, Y = normal(4, 3), normal(4, 2, seed=1)
CLASSES = torch.arange(4)
CONVERTERS = pytest.mark.parametrize("convert", [torch.as_tensor, np.asarray])


def one(x: Tensor) -> Tensor:
    return x


def two(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def perhaps(x: Tensor, y: Tensor | None = None) -> Tensor:
    return x if y is None else x + y


def many(*inputs: Tensor) -> Tensor:
    return torch.cat(inputs)


# The first batch


@pytest.mark.parametrize(
    ("batch", "forward", "wanted"),
    [
        (X, one, (X,)),
        ((X,), one, (X,)),
        ((X, CLASSES), one, (X,)),
        ([X, ["a", "b", "c", "d"]], one, (X,)),
        ((X, Y), two, (X, Y)),
        ((X, Y, CLASSES), two, (X, Y)),
        ((X, CLASSES), perhaps, (X,)),
        ((X, Y, CLASSES), many, (X, Y)),
        ((X, Y), many, (X, Y)),
        ((X, ["a", "b", "c", "d"]), many, (X,)),
        ({"x": X, "labels": CLASSES}, one, {"x": X}),
        ({"y": Y, "x": X, "id": 3}, perhaps, {"x": X, "y": Y}),
    ],
)
def test_the_inputs_of_the_first_batch(
    batch: Any, forward: Callable[..., Any], wanted: Any
) -> None:
    found = example_of(batch, forward, torch.as_tensor)
    if isinstance(wanted, dict):
        assert isinstance(found, dict) and list(found) == list(wanted)
        found, wanted = tuple(found.values()), tuple(wanted.values())
    assert len(found) == len(wanted)
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("batch", "forward", "text"),
    [
        ("images", one, r"x:in: batch 0: asked for a tensor, found str \(.*\)"),
        (None, one, r"x:in: batch 0: asked for a tensor, found NoneType \(.*\)"),
        ({"x": ["a"]}, one, r"x:in: batch 0: asked for a tensor, found list of str \(.*\)"),
        ((X, [{}], CLASSES), many, r"1:in: batch 0: asked for a tensor, found list of dict \(.*\)"),
        (
            (X, Y, CLASSES),
            one,
            r"batch 0: it holds 2 values without the labels at their end, .* take them: too many",
        ),
        ((X,), two, r"batch 0: it holds 1 values, and the model's forward\(x, y\) cannot .* 'y'"),
        ({"y": Y}, two, r"batch 0: its keys are \['y'\], and the model's forward\(x, y\) .* 'x'"),
        (
            {"image": X},
            lambda x=None: x,
            r"batch 0: none of its keys \['image'\] is an argument of the model's forward\(x\); ",
        ),
    ],
)
def test_a_first_batch_that_the_model_cannot_take(
    batch: Any, forward: Callable[..., Any], text: str
) -> None:
    with pytest.raises(DataError, match=f"^{text}"):
        example_of(batch, forward, torch.as_tensor)


# All batches


class Samples:
    """A dataset as torch has them, without batches."""

    def __getitem__(self, index: int) -> Tensor:
        return X[index]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (X, r"one Tensor of shape \(4, 3\): asked for an iterable of batches, such as \[batch\]"),
        (X.numpy(), r"one ndarray of shape \(4, 3\): asked for an iterable of batches"),
        ({"x": X}, "one dict: asked for an iterable of batches"),
        ("images", "one str: asked for an iterable of batches"),
        (None, "of type NoneType: asked for an iterable of batches$"),
        (Samples(), "of type Samples: .* batches; a DataLoader makes batches of its samples$"),
    ],
)
def test_data_that_is_no_iterable_of_batches(data: Any, text: str) -> None:
    with pytest.raises(DataError, match=f"^the data is {text}"):
        list(batches(data, ("x",), torch.as_tensor))
    with pytest.raises(DataError, match=f"^the data is {text}"):
        hs.quantize(nn.Linear(3, 2), data)


@CONVERTERS
@pytest.mark.parametrize(
    ("batch", "labels"),
    [
        ((X, Y), None),
        ((X, Y, None), None),
        ((X, Y, CLASSES), [0, 1, 2, 3]),
        ((X, Y, [0, 1, 2, 3]), [0, 1, 2, 3]),
        ({"y": Y, "x": X, "target": np.arange(4)}, [0, 1, 2, 3]),
    ],
)
def test_inputs_and_labels(convert: Callable[[Any], Any], batch: Any, labels: Any) -> None:
    ((inputs, found),) = batches([batch], ("x", "y"), convert)
    for value, wanted in zip(inputs, (X, Y), strict=True):
        assert np.array_equal(np.asarray(value), wanted.numpy())
    assert found is None if labels is None else found.tolist() == labels


@CONVERTERS
@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["cat", "dog", "cat", "dog"], "list of str"),
        (("cat", "dog", "cat", "dog"), "tuple of str"),
        ("cat", "str"),
        ([{"boxes": X}] * 4, "list of dict"),
        ({"boxes": X}, "dict"),
        (np.array(["cat", "dog"]), "ndarray of <U3"),
        (np.array([{}, {}], object), "ndarray of object"),
    ],
)
def test_labels_that_are_no_numbers(convert: Callable[[Any], Any], labels: Any, kind: str) -> None:
    text = (
        f"^batch 1: labels: asked for numbers, such as a class index a sample, found {kind}; map "
        "them to numbers, or yield the inputs alone$"
    )
    with pytest.raises(DataError, match=text):
        list(batches([(X, CLASSES), (X, labels)], ("x",), convert))


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ({"x": X}, r"batch 1: no \['y'\]; it has \['x'\]"),
        (X, "batch 1: asked for 2 inputs"),
        ((X, Y, CLASSES, Y), r"batch 1: asked for 2 inputs \(x, y\), with or without labels; foun"),
        ((X, ["a"]), r"y:in: batch 1: asked for a tensor, found list of str \("),
    ],
)
def test_a_batch_of_another_form(batch: Any, text: str) -> None:
    with pytest.raises(DataError, match=f"^{text}"):
        list(batches([(X, Y), batch], ("x", "y"), torch.as_tensor))
