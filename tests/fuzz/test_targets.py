"""Random networks through every target of the catalog: exact, within its bound, or refused by name.

The networks are the same each time. Faults print as networks that can be pasted into a test; the
command ``python -m tests.fuzz`` looks for more of them.
"""

import platform
import shutil
from dataclasses import replace
from functools import cache
from unittest.mock import patch

import pytest

from halfstep.catalog import find
from halfstep.core import requant
from tests.fuzz.hunt import hunt
from tests.fuzz.networks import Network, Step
from tests.fuzz.tally import Tally
from tests.fuzz.trial import attempt, targets

pytest.importorskip("ai_edge_litert")
pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="measured on x86-64 only"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
]
# A model in C is compiled four times for one verdict, which takes as long as ten other runs.
COMPILED = ("c99", "c99_fixed")
SLICE = {"axis": 2, "start": 0, "stop": 4, "step": 1}
POOL = {
    "kernel_size": (2, 2),
    "stride": (1, 1),
    "padding": (0, 0),
    "ceil_mode": False,
    "dilation": 1,
}
# Kinds that few of the drawn networks have.
LINEAR = Step("linear", (0,), {"out_features": 4, "bias": True})
ALWAYS = (
    Network((("words", 7, 3),), (Step("embedding", (0,), {"rows": 7, "columns": 2}),)),
    Network(((2, 5, 4),), (Step("global_pool", (0,), {}),)),
    Network(((2, 5, 4),), (LINEAR, Step("slice", (1,), SLICE))),
    Network(((2, 5, 4),), (LINEAR, Step("max_pool", (1,), POOL))),
    Network(((4,),), (LINEAR, Step("expand", (1,), {"times": 3}))),
    *(
        Network(((5,),), (Step("activation", (0,), {"function": function}),))
        for function in (
            *("tanh", "hardsigmoid", "hardswish", "sigmoid", "gelu", "leaky_relu"),
            *("abs", "elu", "softplus", "mish", "log_sigmoid"),
        )
    ),
)
PARTS = range(5)
DRAWN, DRAWN_COMPILED = 100, 30
# Along one axis, several and all, on grids of each kind, for the models in C.
REDUCED = tuple(
    Network(
        ((3, 4, 5),),
        (Step("reduce", (0,), {"op": op, "axes": axes, "keepdim": keepdim}),),
        grids=grids,
        data=data,
    )
    for op, axes, keepdim, grids, data in (
        ("mean", (2,), False, "ties", "ties"),
        ("mean", (1, 3), True, "mixed", "normal"),
        ("mean", (1, 2, 3), False, "ratios", "extreme"),
        ("sum", (1,), False, "ratios", "normal"),
        ("sum", (2, 3), True, "ends", "constant"),
    )
)


@cache
def tally(part: int) -> Tally:
    """A fifth of the networks, each part with a seed of its own."""
    total = Tally()
    for n, compiled in ((DRAWN, False), (DRAWN_COMPILED, True)):
        names = [name for name in targets() if (name in COMPILED) == compiled]
        total.merge(hunt(n, names, first_seed=1 + 1000 * part))
    return total


@pytest.mark.parametrize("part", PARTS)
def test_every_target_agrees_with_the_engine_or_refuses_by_name(part: int) -> None:
    found = tally(part)
    assert not found.found, "\n\n".join(map(str, found.found.values()))
    assert len(PARTS) * DRAWN >= 500
    for name in targets():
        drawn = DRAWN_COMPILED if name in COMPILED else DRAWN
        assert found.compared(name) >= drawn / 4, f"{name}: {found.runs}"


def test_every_integer_rule_and_copy_is_reached() -> None:
    total = Tally()
    total.merge(tally(0))
    extra = [(network, name) for network in ALWAYS for name in targets() if name not in COMPILED]
    extra += [(network, name) for network in REDUCED for name in COMPILED]
    for network, name in extra:
        outcome = attempt(network, name)
        assert outcome.status != "disagrees", outcome.found
        total.add(name, outcome)
    missing = {name: total.missing(find("target", name)) for name in targets()}
    seldom = {name: kinds for name, kinds in missing.items() if name in COMPILED}
    assert {name: kinds for name, kinds in missing.items() if name not in COMPILED and kinds} == {}
    assert not any({"mean", "sum"} & kinds for kinds in seldom.values())


def test_a_wrong_formula_is_found_and_shrunk() -> None:
    """Two roundings in fixed point where the runtime multiplies float32 and rounds once."""
    with patch.dict(requant.ACCUMULATOR, float=requant.double_rounding):
        found = hunt(60, ["onnxruntime"], first_seed=1).found
    faults = [fault for (_, signature), fault in found.items() if "rounding" in signature]
    assert faults
    for fault in faults:
        assert "rounding: another formula" in fault.outcome.found


def test_a_network_prints_as_what_makes_it_again() -> None:
    network = Network((("words", 7, 3),), (Step("embedding", (0,), {"rows": 7, "columns": 2}),))
    assert eval(repr(network)) == network
    assert eval(repr(replace(network, seed=5))) != network


def test_an_error_that_names_no_site_is_a_fault() -> None:
    network = Network(((3,),), (Step("activation", (0,), {"function": "relu"}),))
    with patch("tests.fuzz.trial.hs.lower", side_effect=KeyError("steps.0")):
        outcome = attempt(network, "onnxruntime")
    assert (outcome.status, outcome.stage) == ("disagrees", "lower")
    assert outcome.found == "KeyError: 'steps.0'"
