"""Networks on which a target once did otherwise than the engine, as small as they got."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from halfstep.catalog import find
from halfstep.core.target import OpFacts
from tests.fuzz.networks import Network, Step
from tests.fuzz.trial import attempt

pytest.importorskip("ai_edge_litert")
pytestmark = pytest.mark.runtime
LITERT = ("litert_ref", "litert_xnnpack")


def activation(function: str, seed: int) -> Network:
    step = Step("activation", (0,), {"function": function})
    return Network(((3, 4, 4),), (step,), grids="ratios", seed=seed)


@pytest.mark.parametrize("seed", [0, 9], ids=["finer", "coarser"])
@pytest.mark.parametrize("target", LITERT)
def test_a_hardswish_between_far_scales_is_looked_up(target: str, seed: int) -> None:
    """LiteRT refused the file ("output_multiplier_exponent <= 0"), or was off by one everywhere."""
    assert attempt(activation("hardswish", seed), target).status == "exact"


# The ratio at which each rule begins to refuse. Files at it and just below it were opened and run:
# LiteRT's reference addition ends the process, XNNPACK does not open a linear layer, and ONNX
# Runtime's average fails in a run. XNNPACK leaves the additions and products to other kernels.
LIMITS = [
    ("litert_ref", "add", (1.0, 0.5), 2.0**19),
    ("litert_ref", "sub", (0.5, 1.0), 2.0**19),
    ("litert_xnnpack", "linear", (1.0, 1.0), 2.0**8),
    ("litert_xnnpack", "add", (1.0, 0.5), 2.0**8),
    ("litert_xnnpack", "mul", (1.0, 1.0), 2.0**8),
    ("onnxruntime", "global_avg_pool", (16.0,), 2.0**8),
]


@pytest.mark.parametrize(("target", "kind", "scales", "limit"), LIMITS)
def test_scales_are_refused_from_the_limit_on(
    target: str, kind: str, scales: tuple[float, ...], limit: float
) -> None:
    rule = find("target", target).rules[kind]
    facts = OpFacts(kind, {}, ((-1, 3, 4, 4),), (False,))
    below = float(np.nextafter(np.float32(1 / limit), np.float32(1)))
    assert rule.refuses_scales(facts, scales, 1 / limit)
    assert not rule.refuses_scales(facts, scales, below)


@pytest.mark.parametrize(
    ("kind", "target", "options"),
    [
        ("linear", "litert_xnnpack", {"out_features": 5, "bias": True}),
        ("global_pool", "onnxruntime", {}),
    ],
)
def test_multipliers_that_a_runtime_does_not_take_are_repaired(
    kind: str, target: str, options: dict[str, Any]
) -> None:
    """XNNPACK did not open the file; ONNX Runtime opened it, and ended with an error in a run."""
    network = Network(((3, 4, 4),), (Step(kind, (0,), options),), grids="ratios")
    assert_repaired([replace(network, seed=seed) for seed in range(12)], target)


@pytest.mark.parametrize("op", ["add", "sub"])
def test_scales_that_xnnpack_does_not_take_are_repaired(op: str) -> None:
    """Kernels of LiteRT ran that compute by none of the formulas."""
    network = Network(((3,), (3,)), (Step("binary", (0, 1), {"op": op}),), grids="ratios")
    found = assert_repaired([replace(network, seed=seed) for seed in range(4)], "litert_xnnpack")
    for words in found:
        assert words.startswith(f"LowerError: steps.0.{op}:out: {op}: ")
        assert "XNNPACK takes" in words
        assert f"plan.keep_float('steps.0.{op}')" in words


def assert_repaired(networks: list[Network], target: str) -> list[str]:
    """All are exact, and some would be refused by name without the repair, in the words given."""
    assert {attempt(network, target).status for network in networks} == {"exact"}
    with patch("tests.fuzz.trial.hs.repair_scales"):
        found = [attempt(network, target) for network in networks]
    assert {outcome.status for outcome in found} == {"exact", "refused"}
    return [outcome.found for outcome in found if outcome.status == "refused"]
