"""Sensitivity: each layer alone and left out is what the model itself computes in that state."""

import math

import pytest
import torch

import halfstep as hs
from halfstep.errors import DataError, UnknownNameError
from halfstep.progress import silent
from halfstep.search import quantizer_sensitivity, sensitivity
from halfstep.search.metrics import METRICS, Meter
from halfstep.search.states import applied, only, quantized_units, sites_of
from tests.search.specimens import assert_unchanged, batches, calibrated, snapshot

LOW_BITS = {"weights": "int3_narrow", "activations": "uint3"}
NETWORKS = pytest.mark.parametrize("network", ["residual", "branching"])


def measured(model: hs.QuantizedModel, name: str, sites: frozenset[str]) -> float:
    """The metric in the state that has ``sites`` on, the slow way."""
    meter = Meter(METRICS[name])
    with torch.inference_mode(), applied(model, only(model, sites)):
        for x, labels in batches():
            meter.add(model(x), model.graph.module(x)[0], labels)
    return meter.value


@NETWORKS
@pytest.mark.parametrize("metric", ["accuracy", "kl", "sqnr"])
def test_rows_are_what_the_model_computes(network, metric):
    model = calibrated(network, **LOW_BITS)
    before = snapshot(model)
    report = sensitivity(model, batches(), metric=metric)
    assert_unchanged(model, before)
    units = {unit.name: unit for unit in quantized_units(model)}
    assert [row.name for row in report.rows] == list(units)
    weights = set(model.weight_sites())
    for row in report.rows:
        sites = sites_of(model, {row.name})
        assert row.alone == measured(model, metric, sites)
        assert row.sqnr == measured(model, "sqnr", sites)
        assert row.without == measured(model, metric, sites_of(model, units.keys() - {row.name}))
        assert row.activations == measured(model, metric, sites - weights)
        if units[row.name].weight is None:
            assert row.weight is None
        else:
            assert row.weight == measured(model, metric, sites & weights)
    everything = frozenset(q.site for q in model.quantizers())
    assert report.quantized == measured(model, metric, everything)
    assert report.weights == measured(model, metric, frozenset(weights))
    assert report.activations == measured(model, metric, everything - weights)
    assert report.real == measured(model, metric, frozenset())  # nothing quantized is float
    assert report.samples == 12


@NETWORKS
def test_each_quantizer_alone_and_left_out(network):
    model = calibrated(network, **LOW_BITS)
    report = quantizer_sensitivity(model, batches(), metric="kl")
    everything = frozenset(q.site for q in model.quantizers())
    assert {row.name for row in report.rows} == everything
    for row in report.rows:
        assert row.kind == ("weight" if row.name in model.weight_sites() else "activation")
        assert row.alone == measured(model, "kl", frozenset({row.name}))
        assert row.without == measured(model, "kl", everything - {row.name})
        assert row.weight is row.activations is None


def test_the_ranking_is_the_same_in_any_order():
    """Of layers, of batches, and of runs."""
    model = calibrated("branching", **LOW_BITS)
    report = sensitivity(model, batches(), complement=False)
    again = sensitivity(model, batches(), complement=False)
    assert again == report
    backwards = sensitivity(model, batches()[::-1], complement=False)
    assert [row.name for row in backwards.ranked()] == [row.name for row in report.ranked()]
    units = model.units.units
    object.__setattr__(model.units, "units", units[::-1])
    try:
        reversed_report = sensitivity(model, batches(), complement=False)
    finally:
        object.__setattr__(model.units, "units", units)
    assert reversed_report.ranked() == report.ranked()


def test_the_worst_comes_first_and_noise_breaks_ties():
    report = sensitivity(calibrated(**LOW_BITS), batches(), complement=False)
    keys = [(row.alone, row.sqnr) for row in report.ranked()]
    assert keys == sorted(keys)
    by_error = sensitivity(calibrated(**LOW_BITS), batches(), metric="kl", complement=False)
    assert [r.alone for r in by_error.ranked()] == sorted(
        (r.alone for r in by_error.rows), reverse=True
    )


def test_without_the_complement_nothing_is_left_out():
    report = sensitivity(calibrated(), batches(), complement=False)
    assert all(row.without is None for row in report.rows)
    assert "all but it" not in str(report)
    less = sensitivity(calibrated(), batches(), parts=False, complement=False)
    assert all(row.weight is row.activations is row.without is None for row in less.rows)
    assert [row.alone for row in less.rows] == [row.alone for row in report.rows]


def test_data_without_labels_is_judged_by_noise():
    report = sensitivity(calibrated(), batches(labelled=False))
    assert report.metric == "sqnr"
    assert report.real == math.inf
    assert all(row.alone == row.sqnr for row in report.rows)


def test_the_report_reads_as_text():
    report = sensitivity(calibrated(), batches())
    lines = str(report).splitlines()
    assert lines[0].startswith("accuracy on 12 samples: float ")
    assert [line.split()[0] for line in lines[1:]] == [row.name for row in report.ranked()]


def test_the_model_is_put_back_after_an_error():
    model = calibrated()
    before = snapshot(model)
    good, bad = batches()[0], (torch.zeros(2, 4, 6, 6), torch.zeros(2).long())
    with pytest.raises(DataError, match=r"x:in: batch 1: asked for shape \(N, 3, 6, 6\)"):
        sensitivity(model, [good, bad])
    assert_unchanged(model, before)


def test_clear_errors():
    model = calibrated()
    with pytest.raises(DataError, match="the data has no batch"):
        sensitivity(model, [])
    with pytest.raises(UnknownNameError, match="unknown metric 'kld'"):
        sensitivity(model, batches(), metric="kld")
    with pytest.raises(DataError, match="batch 0: 3 labels for 6 samples"):
        sensitivity(model, [(batches()[0][0], torch.zeros(3).long())])


def test_each_batch_is_read_once_and_none_is_kept():
    import weakref

    model = calibrated()
    alive: list[weakref.ref[torch.Tensor]] = []

    def stream():
        for batch in batches(n_batches=3):
            assert sum(ref() is not None for ref in alive) <= 1
            x = batch[0].clone()
            alive.append(weakref.ref(x))
            yield x, batch[1]
            del x

    sensitivity(model, stream(), progress=silent)
    assert len(alive) == 3
    assert not any(ref() is not None for ref in alive)
