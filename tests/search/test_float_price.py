"""What operations cost quantized and in float, and which to leave in float for how much."""

import pytest

import halfstep as hs
from halfstep.core.execution import Execution
from halfstep.errors import UnknownNameError
from halfstep.search import float_prices, left_float, sensitivity
from halfstep.search.states import quantized_units
from tests.search.specimens import assert_unchanged, batches, calibrated, snapshot

LOW_BITS = {"weights": "int3_narrow", "activations": "uint3"}


def test_losses_and_gains_are_those_of_the_sensitivity() -> None:
    model = calibrated("residual", **LOW_BITS)
    before = snapshot(model)
    prices = float_prices(model, batches(labelled=False))
    assert_unchanged(model, before)
    report = sensitivity(model, batches(labelled=False), metric="cosine")
    assert (prices.real, prices.quantized) == (report.real, report.quantized)
    for price, row in zip(prices.rows, report.rows, strict=True):
        assert (price.name, price.kind) == (row.name, row.kind)
        assert price.loss == pytest.approx(report.real - row.alone)
        assert price.gain == pytest.approx(row.without - report.quantized)


def test_where_lower_is_better_losses_are_positive_too() -> None:
    model = calibrated("residual", **LOW_BITS)
    prices = float_prices(model, batches(labelled=False), metric="mse")
    assert prices.real == 0
    assert all(price.loss >= 0 for price in prices.rows)
    assert max(price.loss for price in prices.rows) > 0


def test_prices_are_shares() -> None:
    model = calibrated("residual", **LOW_BITS)
    prices = float_prices(model, batches(labelled=False))
    units = {unit.name: unit.macs for unit in quantized_units(model)}
    total = sum(units.values())
    assert {p.name: p.macs for p in prices.rows} == {n: m / total for n, m in units.items()}
    assert sum(price.price for price in prices.rows) == pytest.approx(1)
    timed = float_prices(model, batches(labelled=False), seconds={"conv": 3.0, "fc": 1.0})
    assert {p.name: p.price for p in timed.rows if p.price} == {"conv": 0.75, "fc": 0.25}


def test_the_fewest_operations_that_reach_it_are_left_in_float() -> None:
    model = calibrated("residual", **LOW_BITS)
    data = batches(labelled=False)
    prices = float_prices(model, data)
    share = (prices.real - prices.quantized) / 2
    found = left_float(model, data, prices, share=share)
    assert found.value >= 1 - share > prices.quantized
    assert found.skipped and next(iter(found.skipped)) in [p.name for p in prices.ranked()]
    for name, reason in found.skipped.items():
        assert found.plan.executions[name] is Execution.FLOAT
        assert found.plan.floats[name] == reason
        assert reason.startswith("left float: costs ")
        assert " cosine; price " in reason and reason.endswith("% of MACs")
    again = hs.prepare(model.graph, found.plan)
    hs.calibrate(again, data)
    hs.lower(again)


def test_cheap_operations_come_first_if_asked() -> None:
    model = calibrated("residual", **LOW_BITS)
    prices = float_prices(model, batches(labelled=False))
    by_price = prices.ranked("price")
    ratios = [row.gain / max(row.price, 1e-4) for row in by_price]
    assert ratios == sorted(ratios, reverse=True)
    assert [row.gain for row in prices.ranked()] == sorted(
        (r.gain for r in prices.rows), reverse=True
    )


def test_nothing_is_left_where_nothing_is_lost() -> None:
    model = calibrated("residual")
    data = batches(labelled=False)
    found = left_float(model, data, float_prices(model, data), share=0.5)
    assert not found.skipped and found.plan.executions == model.plan.executions


def test_the_report_ranks() -> None:
    prices = float_prices(calibrated("residual", **LOW_BITS), batches(labelled=False))
    text = str(prices)
    assert text.startswith("cosine on 12 samples: float 1.00000, quantized 0.")
    assert text.splitlines()[1].split()[0] == prices.ranked()[0].name


def test_errors() -> None:
    model = calibrated("residual")
    with pytest.raises(UnknownNameError, match="unknown operation 'covn': did you mean 'conv'"):
        float_prices(model, batches(), seconds={"covn": 1.0})
    prices = float_prices(model, batches(), metric="mse")
    with pytest.raises(UnknownNameError, match="unknown metric with shares 'mse'"):
        left_float(model, batches(), prices, share=0.1)
