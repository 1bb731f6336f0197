"""Traces: against the exact Hessian, and the costs that follow from them."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from halfstep.errors import DataError
from halfstep.search import bit_costs, candidate_grids, hessian_traces, observe, trace_costs
from halfstep.search import traces as module
from halfstep.search.samples import Batch
from halfstep.search.traces import cross_entropy, hutchinson
from halfstep.search.walk import Walk
from tests.models import normal
from tests.search.specimens import assert_unchanged, batches, prepared, snapshot


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_hutchinson_on_a_known_quadratic():
    a = normal(6, 6)
    a = a @ a.T
    x = normal(6, seed=1).requires_grad_()
    (found,) = hutchinson(0.5 * x @ a @ x, [x], 4000, generator())
    assert float(found.mean()) == pytest.approx(float(a.trace()), rel=0.02)
    # Only what is off the diagonal makes estimates differ.
    off = a - torch.diag(a.diagonal())
    assert float(found.var()) == pytest.approx(2 * float(off.square().sum()), rel=0.1)


def test_a_diagonal_needs_one_probe():
    d = torch.tensor([3.0, -1.0, 0.5])
    x = normal(3).requires_grad_()
    (found,) = hutchinson(0.5 * (d * x * x).sum(), [x], 1, generator())
    assert float(found) == pytest.approx(2.5)


def test_all_signs_give_the_exact_trace(monkeypatch):
    """The mean over every vector of signs is the trace, also where values interact."""
    a = normal(5, 5)
    x, y = normal(3, seed=1).requires_grad_(), normal(2, seed=2).requires_grad_()

    def loss() -> Tensor:
        return torch.tanh(a @ torch.cat([x, y])).square().sum() + (x[0] * y[1]).exp()

    every = iter([torch.tensor(s) for s in product((1.0, -1.0), repeat=5)])
    parts = iter([part for signs in every for part in (signs[:3], signs[3:])])
    monkeypatch.setattr(module, "_signs", lambda like, generator: next(parts))
    found = hutchinson(loss(), [x, y], 32, generator())
    hessian = torch.autograd.functional.hessian(
        lambda v: torch.tanh(a @ v).square().sum() + (v[0] * v[4]).exp(), torch.cat([x, y])
    )
    expected = hessian.diagonal()
    assert float(found[0].mean()) == pytest.approx(float(expected[:3].sum()), rel=1e-4)
    assert float(found[1].mean()) == pytest.approx(float(expected[3:].sum()), rel=1e-4)


def test_a_loss_without_curvature_has_no_trace():
    x, y = normal(3).requires_grad_(), normal(2).requires_grad_()
    assert not hutchinson(x.sum(), [x, y], 4, generator()).any()
    assert hutchinson(x.sum(), [], 4, generator()).shape == (0, 4)


def exact_traces(labelled: bool) -> dict[str, float]:
    """``tr(H) / n`` of each site from Hessians that are made in full."""
    model = prepared()
    walk = Walk(model)
    sums: dict[str, float] = {}
    samples = 0
    for x, labels in batches(2, 3, size=6):
        with torch.no_grad():
            reference = model.graph.module(x)[0]
        batch = Batch((x,), labels if labelled else None, reference)
        for node in walk.quantizers:
            site = walk.site(node)

            def loss(value: Tensor, node=node, x=x, batch=batch) -> Tensor:
                live = walk.begin((x,))
                for step in walk.nodes:
                    if step is node:
                        live[walk.source(node)] = value
                    walk.step(step, live, real=True)
                return cross_entropy(live[walk.nodes[-1]], batch)

            value = next(v for n, v in walk.values((x,)) if n is node).detach()
            hessian = torch.autograd.functional.hessian(loss, value).reshape(value.numel(), -1)
            n = value.numel() / (1 if walk.is_constant(node) else len(x))
            sums[site] = sums.get(site, 0.0) + float(hessian.trace()) / n * len(x)
        samples += len(x)
    return {site: total / samples for site, total in sums.items()}


@pytest.mark.parametrize("labelled", [False, True])
def test_traces_of_a_tiny_network_are_those_of_its_hessian(labelled):
    model = prepared()
    before = snapshot(model)
    data = [batch if labelled else batch[:1] for batch in batches(2, 3, size=6)]
    found = hessian_traces(model, data, probes=200)
    assert_unchanged(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (found.probes, found.samples) == (200, 6)
    exact = exact_traces(labelled)
    assert found.mean.keys() == exact.keys()
    for site, value in exact.items():
        assert abs(found.mean[site] - value) < 4 * found.error[site] + 1e-7, site
    weights = [exact[site] for site in model.weight_sites()]
    assert all(found.error[site] < max(weights) / 4 for site in model.weight_sites())
    if not labelled:
        assert min(exact.values()) > -1e-6  # the Fisher information has no negative eigenvalue


def test_traces_are_repeatable():
    model = prepared("branching")
    first = hessian_traces(model, iter(batches()), probes=2)
    assert hessian_traces(model, batches(), probes=2) == first
    assert str(first).splitlines()[0] == "mean curvature, 2 probes a batch, 12 samples"


@pytest.mark.parametrize("network", ["residual", "branching"])
def test_costs_are_curvature_times_squared_error(network):
    model = prepared(network)
    grids = candidate_grids(
        model, observe(model, batches()), weight_bits=(3, 5), activation_bits=(4, 8)
    )
    traces = hessian_traces(model, batches(labelled=False), probes=4)
    before = snapshot(model)
    costs = trace_costs(model, grids, traces, iter(batches()))
    assert_unchanged(model, before)
    assert costs.measure == "trace"
    assert tuple(costs.weights) == model.weight_sites()
    assert tuple(costs.activations) == model.activation_sites()
    unit = next(u for u in model.units.units if u.name == "stem")
    weight = model.parameter_of(unit.weight).detach().numpy()
    grid = grids["stem:weight"][3]
    error = float(((weight - grid.dequantize(grid.quantize(weight))) ** 2).sum())
    mean = max(traces.mean["stem:weight"], 0)
    assert costs.weights["stem:weight"][3] == pytest.approx(mean * error, rel=1e-4)
    x = torch.cat([x for x, _ in batches()]).numpy()
    grid = grids["x:in"][4]
    error = float(((x - grid.dequantize(grid.quantize(x))) ** 2).sum()) / len(x)
    mean = max(traces.mean["x:in"], 0)
    assert costs.activations["x:in"][4] == pytest.approx(mean * error, rel=1e-4)


def test_costs_are_of_the_size_of_the_measured_ones():
    """Half of the cost is KL to second order, if errors have no preferred direction."""
    model = prepared()
    grids = candidate_grids(
        model, observe(model, batches()), weight_bits=(6,), activation_bits=(6,)
    )
    traces = hessian_traces(model, batches(labelled=False), probes=200)
    costs = trace_costs(model, grids, traces, batches())
    measured = bit_costs(model, grids, batches())
    ratios = [
        costs.activations[site][6] / 2 / measured.activations[site][6]
        for site in ("x:in", "stem:out", "conv:out", "add:out")
    ]
    assert all(1 / 4 < ratio < 4 for ratio in ratios)


def test_the_soft_labels_are_those_of_the_float_model():
    reference = normal(4, 5)
    soft = cross_entropy(reference, Batch((normal(4, 2),), None, reference))
    entropy = -(reference.softmax(-1) * reference.log_softmax(-1)).sum(-1).mean()
    assert torch.allclose(soft, entropy)
    labels = torch.tensor([0, 1, 2, 3])
    hard = cross_entropy(reference, Batch((normal(4, 2),), labels, reference))
    assert torch.equal(hard, F.cross_entropy(reference, labels))
    with pytest.raises(DataError, match=r"traces: asked for outputs of shape \(samples, classes\)"):
        cross_entropy(normal(2, 3, 4), Batch((normal(2, 2),), None, reference))
