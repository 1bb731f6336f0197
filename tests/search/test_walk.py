"""The walk: it computes what the model computes, and variants share their beginning."""

import pytest
import torch

import halfstep as hs
from halfstep.search.states import applied, only
from halfstep.search.walk import Branches, Walk
from tests.search.specimens import (
    assert_unchanged,
    batches,
    calibrated,
    snapshot,
)

NETWORKS = pytest.mark.parametrize("network", ["residual", "branching"])


@NETWORKS
def test_the_walk_is_the_model(network):
    model = calibrated(network)
    (x, _), *_ = batches()
    walk = Walk(model)
    with torch.inference_mode():
        assert torch.equal(walk.finish(0, walk.begin((x,))), model(x))


@NETWORKS
def test_the_walk_knows_the_site_of_every_value(network):
    model = calibrated(network)
    walk = Walk(model)
    sites = {walk.site(node): quantizer for node, quantizer in walk.quantizers.items()}
    shared = 1 if network == "branching" else 0  # a weight that two layers read
    assert len(sites) == len(walk.quantizers) - shared
    for site, quantizer in sites.items():
        assert model.quantizer(site) is quantizer
    assert {q.site for q in sites.values()} == {q.site for q in model.quantizers()}


@NETWORKS
def test_nothing_is_left_live_but_the_output(network):
    model = calibrated(network)
    (x, _), *_ = batches()
    walk = Walk(model)
    live = walk.begin((x,))
    most = 0
    with torch.inference_mode():
        for node in walk.nodes:
            walk.step(node, live)
            most = max(most, len(live))
    read = {node for node in live if node.users}
    assert not read
    assert most < len(walk.nodes) / 2


@NETWORKS
def test_passing_by_all_quantizers_is_the_float_model(network):
    model = calibrated(network)
    (x, _), *_ = batches()
    walk = Walk(model)
    live = walk.begin((x,))
    with torch.inference_mode():
        for node in walk.nodes:
            walk.step(node, live, real=True)
        assert torch.equal(live[walk.nodes[-1]], model.graph.module(x)[0])


@NETWORKS
@pytest.mark.parametrize("on", [False, True])
def test_branches_are_what_each_variant_computes_on_its_own(network, on):
    model = calibrated(network)
    before = snapshot(model)
    sites = (*model.weight_sites(), *model.activation_sites())
    base = only(model, sites if on else ())
    variants = {site: {site: not on} for site in sites}
    variants["two"] = {sites[0]: not on, sites[-1]: not on}
    variants["none"] = {}
    branches = Branches(model, variants, base)
    for x, _ in batches():
        found = {}
        output = branches.run((x,), found.__setitem__)
        assert found.keys() == variants.keys()
        with torch.inference_mode(), applied(model, base):
            assert torch.equal(output, model(x))
            for name, state in variants.items():
                with applied(model, state):
                    assert torch.equal(found[name], model(x)), name
    assert_unchanged(model, before)


def test_branches_are_put_back_after_an_error():
    model = calibrated()
    before = snapshot(model)
    branches = Branches(model, {"a": {"conv:out": False}}, only(model, ()))

    def fail(name: str, output: torch.Tensor) -> None:
        raise RuntimeError(name)

    with pytest.raises(RuntimeError, match="a"):
        branches.run(batches()[0][:1], fail)
    assert_unchanged(model, before)


def test_the_order_of_variants_does_not_matter():
    model = calibrated("branching")
    sites = (*model.weight_sites(), *model.activation_sites())
    (x, _), *_ = batches()
    found: list[dict[str, torch.Tensor]] = []
    for order in (sites, sites[::-1]):
        found.append({})
        Branches(model, {s: {s: True} for s in order}, only(model, ())).run(
            (x,), found[-1].__setitem__
        )
    for site in sites:
        assert torch.equal(found[0][site], found[1][site])


def test_values_can_be_differentiated_and_the_model_gets_no_gradient():
    model = calibrated()
    (x, _), *_ = batches()
    values, output = Walk(model).differentiable((x,))
    gradients = torch.autograd.grad(output.square().sum(), list(values.values()))
    assert all(g.abs().sum() > 0 for g in gradients)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(output, model.graph.module(x)[0])


def test_copies_of_a_model_can_be_walked():
    from copy import deepcopy

    model = calibrated("branching")
    (x, _), *_ = batches()
    copied = deepcopy(model)
    walk = Walk(copied)
    with torch.inference_mode():
        assert torch.equal(walk.finish(0, walk.begin((x,))), model(x))
    assert {walk.site(node) for node in walk.quantizers} <= hs.prepare(
        model.graph, model.plan
    ).site_quantizer.keys()


def test_a_weight_that_two_layers_read_is_one_value():
    model = calibrated("branching")
    (x, _), *_ = batches()
    walk = Walk(model)
    values, _ = walk.differentiable((x,))
    for nodes in (list(values), [node for node, _ in walk.values((x,))]):
        sites = [walk.site(node) for node in nodes]
        assert len(sites) == len(set(sites))
        assert "twice:weight" in sites
