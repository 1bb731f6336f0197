"""Allocation: the integer program is that of the model, and its answer is a plan that keeps it."""

from itertools import product

import pytest

import halfstep as hs
from halfstep.core.qtype import QType
from halfstep.errors import PlanError, UnknownNameError
from halfstep.search import (
    allocate,
    allocated,
    bit_costs,
    candidate_grids,
    observe,
    pareto,
    uniform,
)
from halfstep.search.allocate import problem_of
from halfstep.search.bit_costs import BitCosts
from tests.search.specimens import batches, prepared

FEW = {"weight_bits": (2, 4, 8), "activation_bits": (3, 8)}


def costs_of(model: hs.QuantizedModel, **bits: tuple[int, ...]) -> BitCosts:
    grids = candidate_grids(model, observe(model, batches()), **(bits or FEW))
    return bit_costs(model, grids, batches())


@pytest.fixture(scope="module")
def residual() -> tuple[hs.QuantizedModel, BitCosts]:
    model = prepared()
    return model, costs_of(model)


@pytest.fixture(scope="module")
def branching() -> tuple[hs.QuantizedModel, BitCosts]:
    model = prepared("branching")
    return model, costs_of(model)


def test_usage_by_hand(residual):
    model, _ = residual
    n_weights = {"stem": 4 * 3 * 9, "conv": 4 * 4 * 9, "fc": 4 * 5}
    macs = {"stem": 36 * 4 * 27, "conv": 36 * 4 * 36, "fc": 20}
    usage = uniform(model, weights=4, activations=5)
    assert usage.size == sum(n_weights.values()) * 4 / 8
    assert usage.bops == sum(macs.values()) * 4 * 5
    assert usage.latency == 0


def test_operations_in_float_count_with_32_bits(residual):
    model, _ = residual
    partly = hs.prepare(model.graph, model.plan.keep_float("conv"))
    usage, whole = (uniform(m, weights=4, activations=4) for m in (partly, model))
    assert usage.size - whole.size == 4 * 4 * 9 * (32 - 4) / 8
    assert usage.bops - whole.bops == 36 * 4 * 36 * (32**2 - 4**2)


def test_what_an_operation_multiplies(branching):
    """Groups have one site, a shared weight is counted once, a product of two values is square."""
    model, costs = branching
    problem = problem_of(model, {**costs.weights, **costs.activations})
    products = {p.name: p for p in problem.products}
    assert products.keys() == {
        "stem",
        "left",
        "right",
        "twice",
        "twice_1",
        "head",
        "matmul",
        "matmul_1",
    }
    assert products["left"].left == products["right"].left == "stem:out"
    assert products["twice"].right == products["twice_1"].right == "twice:weight"
    assert problem.counts["twice:weight"] == 64
    assert products["matmul"].left == products["matmul"].right == products["matmul_1"].right
    assert products["matmul"].left in model.activation_sites()
    assert products["matmul_1"].left == "softmax:out"
    assert {*problem.counts} == {*model.weight_sites()}


@pytest.mark.parametrize("which", ["residual", "branching"])
def test_the_plan_has_the_bits_and_takes_what_was_said(which, request):
    model, costs = request.getfixturevalue(which)
    size, bops = uniform(model, 4, 4).size, uniform(model, 5, 5).bops
    found = allocate(model, costs, size=size, bops=bops)
    assert found.usage.size <= size
    assert found.usage.bops <= bops
    for site, bits in {**found.weights, **found.activations}.items():
        assert found.plan.specs[site].qtype.bits == bits
        before = model.plan.specs[site]
        assert found.plan.specs[site].qtype == QType(bits, before.qtype.signed, before.qtype.narrow)
    predicted = sum(costs.weights[s][b] for s, b in found.weights.items())
    predicted += sum(costs.activations[s][b] for s, b in found.activations.items())
    assert found.predicted == pytest.approx(predicted)
    for group in found.plan.groups:
        assert len({found.plan.specs[site].qtype.bits for site in group}) == 1
    again = hs.prepare(model.graph, found.plan)
    hs.calibrate(again, batches())
    program = hs.lower(again)
    for site, bits in {**found.weights, **found.activations}.items():
        if site in program.tensors:
            assert program.grid(site).qtype.bits == bits


@pytest.mark.parametrize("network", ["residual", "branching"])
def test_the_model_of_an_allocation_is_the_calibrated_plan(network):
    model = prepared(network)
    grids = candidate_grids(model, observe(model, batches()), **FEW)
    costs = bit_costs(model, grids, batches())
    found = allocate(model, costs, size=uniform(model, 4, 4).size)
    new, other = allocated(model, found, grids), hs.prepare(model.graph, found.plan)
    hs.calibrate(other, batches())
    for quantizer in other.quantizers():
        assert new.quantizer(quantizer.site).grid().same_as(quantizer.grid()), quantizer.site


def test_it_is_the_best_of_all_choices(residual):
    model, costs = residual
    tables = {**costs.weights, **costs.activations}
    problem = problem_of(model, tables)
    size, bops = uniform(model, 4, 4).size, uniform(model, 5, 5).bops
    sites = list(tables)
    best = min(
        problem.total(choice)
        for bits in product(*(tables[site] for site in sites))
        if problem.used("size", choice := dict(zip(sites, bits, strict=True))) <= size
        and problem.used("bops", choice) <= bops
    )
    assert allocate(model, costs, size=size, bops=bops).predicted == pytest.approx(best)


def test_without_limits_every_site_has_its_best(residual):
    model, costs = residual
    found = allocate(model, costs)
    for site, bits in {**found.weights, **found.activations}.items():
        table = {**costs.weights, **costs.activations}[site]
        assert table[bits] == min(table.values())


def test_latency_is_that_of_the_table(residual):
    model, costs = residual
    pairs = [(i, j) for i in (3, 8) for j in (2, 4, 8)]
    table = {"conv": {(i, j): 1e-3 * (i + 10 * j) for i, j in pairs}}
    fast = allocate(model, costs, latency=0.0240, latencies=table)
    assert fast.usage.latency <= 0.0240
    assert fast.weights["conv:weight"] == 2
    free = allocate(model, costs, latencies=table)
    assert free.usage.latency == table["conv"][8, free.weights["conv:weight"]]
    with pytest.raises(PlanError, match=r"latency=0.001: no choice of bits takes so little; the"):
        allocate(model, costs, latency=0.001, latencies=table)


def test_clear_errors(residual):
    model, costs = residual
    with pytest.raises(PlanError, match=r"size=10: no choice of bits .* is size=68"):
        allocate(model, costs, size=10)
    with pytest.raises(PlanError, match="latency: asked for a limit without a table"):
        allocate(model, costs, latency=1.0)
    with pytest.raises(UnknownNameError, match="quantized operation with products 'cnv': did you"):
        allocate(model, costs, latencies={"cnv": {}})
    with pytest.raises(
        PlanError, match=r"conv: its table of latencies has no entry for .* \(3, 2\)"
    ):
        allocate(model, costs, latencies={"conv": {(8, 8): 1.0}})


def test_it_reads_as_text(residual):
    model, costs = residual
    lines = str(allocate(model, costs, size=uniform(model, 2, 2).size)).splitlines()
    assert lines[0].startswith("predicted error ")
    assert lines[1] == "  weights: 3 of 2 bits"
    assert lines[2].startswith("  activations: ")


# The curve


@pytest.mark.parametrize("sweep", ["bops", "size"])
def test_the_curve_is_a_front(residual, sweep):
    model, costs = residual
    curve = pareto(model, costs, sweep=sweep, points=8)
    assert curve.swept == sweep
    assert 3 <= len(curve.points) <= 8
    used = [getattr(p.usage, sweep) for p in curve.points]
    predicted = [p.predicted for p in curve.points]
    assert used == sorted(used)
    assert predicted == sorted(set(predicted), reverse=True)
    few = uniform(model, 2, 3)
    assert used[0] == getattr(few, sweep)
    assert curve.points[-1].predicted == pytest.approx(allocate(model, costs).predicted)
    for point in curve.points:
        best = allocate(model, costs, **{sweep: getattr(point.usage, sweep)})
        assert point.predicted == pytest.approx(best.predicted)


def test_the_curve_keeps_the_other_limits(residual):
    model, costs = residual
    size = uniform(model, 4, 4).size
    curve = pareto(model, costs, points=4, size=size)
    assert all(point.usage.size <= size for point in curve.points)
    assert len(str(curve).splitlines()) == 1 + len(curve.points)


def test_an_unknown_limit_is_refused(residual):
    model, costs = residual
    with pytest.raises(UnknownNameError, match="unknown limit 'bop': did you mean 'bops'"):
        pareto(model, costs, sweep="bop")
    with pytest.raises(PlanError, match="size=1: no choice"):
        pareto(model, costs, size=1.0)
