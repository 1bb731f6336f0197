"""Metrics: by their definitions, over batches of any size, with clear refusals."""

import math

import pytest
import torch

from halfstep.errors import DataError, UnknownNameError
from halfstep.search.metrics import METRICS, Meter, decibels, find_metric
from tests.models import normal

OUTPUT, REFERENCE = normal(12, 5, seed=1), normal(12, 5, seed=2)
LABELS = torch.arange(12) % 5
every_metric = pytest.mark.parametrize("name", METRICS)


def value(name: str, *parts: slice) -> float:
    meter = Meter(METRICS[name])
    for part in parts or (slice(None),):
        meter.add(OUTPUT[part], REFERENCE[part], LABELS[part])
    return meter.value


def test_values_are_those_of_the_definitions():
    p, q = (x.double().softmax(-1) for x in (REFERENCE, OUTPUT))
    noise = (OUTPUT - REFERENCE).square().sum() / REFERENCE.square().sum()
    norms = OUTPUT.norm(dim=1) * REFERENCE.norm(dim=1)
    expected = {
        "accuracy": (OUTPUT.argmax(1) == LABELS).double().mean(),
        "agreement": (OUTPUT.argmax(1) == REFERENCE.argmax(1)).double().mean(),
        "cosine": ((OUTPUT * REFERENCE).sum(1) / norms).mean(),
        "kl": (p * (p / q).log()).sum(1).mean(),
        "mse": noise,
        "sqnr": -10 * noise.log10(),
    }
    assert expected.keys() == METRICS.keys()
    for name, wanted in expected.items():
        assert value(name) == pytest.approx(float(wanted), rel=1e-5), name


@every_metric
def test_batches_of_any_size_give_the_same(name):
    assert value(name, slice(0, 1), slice(1, 8), slice(8, 12)) == pytest.approx(value(name))


@every_metric
def test_the_float_model_is_worse_than_nothing(name):
    metric = METRICS[name]
    meter = Meter(metric)
    meter.add(REFERENCE, REFERENCE, REFERENCE.argmax(1))
    best = {"kl": 0, "mse": 0, "sqnr": math.inf}.get(name, 1)
    assert meter.value == pytest.approx(best)
    assert metric.worse(value(name), meter.value)
    assert not metric.worse(meter.value, value(name))


def test_decibels():
    assert decibels(100, 1) == 20
    assert decibels(1, 0) == math.inf
    assert decibels(0, 1) == -math.inf


def test_the_default_depends_on_labels():
    assert find_metric(None, True, OUTPUT).name == "accuracy"
    assert find_metric(None, False, OUTPUT).name == "sqnr"
    assert find_metric(None, True, OUTPUT[:, :, None]).name == "sqnr"
    assert find_metric("kl", True, OUTPUT).name == "kl"


def test_an_unknown_metric_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown metric 'acuracy': did you mean 'accuracy'"):
        find_metric("acuracy", True, OUTPUT)


def test_a_metric_that_needs_labels_says_so():
    with pytest.raises(DataError, match="accuracy: it needs labels, and the data has none; use"):
        find_metric("accuracy", False, OUTPUT)
    with pytest.raises(DataError, match="accuracy: asked for one class index a sample, found none"):
        Meter(METRICS["accuracy"]).add(OUTPUT, REFERENCE, None)
    with pytest.raises(DataError, match=r"found labels of shape \(12, 1\)"):
        Meter(METRICS["accuracy"]).add(OUTPUT, REFERENCE, LABELS[:, None])


@pytest.mark.parametrize("name", ["accuracy", "agreement", "kl"])
def test_outputs_that_are_no_classes_are_refused(name):
    images = OUTPUT.reshape(12, 5, 1)
    with pytest.raises(
        DataError, match=rf"{name}: asked for outputs of shape \(samples, classes\)"
    ):
        Meter(METRICS[name]).add(images, images, LABELS)


@pytest.mark.parametrize("name", ["mse", "sqnr", "cosine"])
def test_outputs_of_any_shape_have_an_error(name):
    meter = Meter(METRICS[name])
    meter.add(OUTPUT.reshape(2, 6, 5), REFERENCE.reshape(2, 6, 5), None)
    assert math.isfinite(meter.value)
