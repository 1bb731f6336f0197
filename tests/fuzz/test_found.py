"""Networks on which a target once did otherwise than the engine, as small as they got."""

from dataclasses import replace

import pytest

from tests.fuzz.networks import Network, Step
from tests.fuzz.trial import attempt

pytest.importorskip("ai_edge_litert")
pytestmark = pytest.mark.runtime
LITERT = ("litert_ref", "litert_xnnpack")


def activation(function: str, seed: int) -> Network:
    step = Step("activation", (0,), {"function": function})
    return Network(((3, 4, 4),), (step,), grids="ratios", seed=seed)


@pytest.mark.parametrize("target", LITERT)
def test_a_hardswish_to_a_much_finer_grid_is_looked_up(target: str) -> None:
    """LiteRT refused the file: "output_multiplier_exponent <= 0 was not true"."""
    assert attempt(activation("hardswish", 0), target).status == "exact"


@pytest.mark.parametrize("op", ["add", "sub", "mul"])
def test_scales_that_xnnpack_does_not_take_are_refused_by_name(op: str) -> None:
    """Kernels of LiteRT ran that compute by none of the formulas."""
    network = Network(((3,), (3,)), (Step("binary", (0, 1), {"op": op}),), grids="ratios")
    found = [attempt(replace(network, seed=seed), "litert_xnnpack") for seed in range(4)]
    assert {outcome.status for outcome in found} <= {"exact", "refused"}
    refused = [outcome.found for outcome in found if outcome.status == "refused"]
    assert refused
    for words in refused:
        assert words.startswith(f"LowerError: steps.0:out: {op}: ")
        assert "XNNPACK takes" in words
        assert "plan.keep_float('steps.0')" in words
