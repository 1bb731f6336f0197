"""Plans are data: edited by glob, compared, saved, the same each time, and refused with reasons."""

import pytest
import torch
from torch import nn

import halfstep as hs
from halfstep.core.execution import Execution
from halfstep.core.qtype import QType
from halfstep.errors import PlanError, UnknownNameError
from tests.models import Call, Residual, normal, seeded

GRAPH = hs.capture(seeded(Residual()), normal(2, 3, 8, 8))
PLAN = hs.make_plan(GRAPH)


def changed(plan: hs.Plan) -> set[str]:
    return {site for site in plan.specs if plan.specs[site] != PLAN.specs[site]}


def test_two_plans_of_a_graph_print_the_same():
    again = hs.make_plan(hs.capture(seeded(Residual()), normal(2, 3, 8, 8)))
    assert str(hs.make_plan(GRAPH)) == str(PLAN) == str(again)
    assert list(again.specs) == list(PLAN.specs)


def test_the_defaults_are_those_of_the_target():
    weights = {site: str(spec) for site, spec in PLAN.specs.items() if site.endswith(":weight")}
    one = "int8_narrow per-channel (axis 0) minmax symmetric"
    assert weights == dict.fromkeys(["stem:weight", "conv:weight", "fc:weight"], one)
    others = {str(spec) for site, spec in PLAN.specs.items() if site not in weights}
    assert others == {"uint8 per-tensor mse"}


def test_choices():
    plan = hs.make_plan(
        GRAPH,
        weights="int4",
        activations="uint6",
        per_channel=False,
        calibrator="percentile",
        weight_calibrator="mse",
    )
    assert str(plan.specs["conv:weight"]) == "int4 per-tensor mse symmetric"
    assert str(plan.specs["conv:out"]) == "uint6 per-tensor percentile"


def test_edit_by_glob():
    plan = PLAN.edit("*:weight", qtype="int4")
    assert changed(plan) == {"stem:weight", "conv:weight", "fc:weight"}
    assert all(plan.specs[site].qtype == QType(4) for site in changed(plan))
    assert plan.specs["fc:weight"].axis == 0
    assert not changed(PLAN), "a plan is a value"


@pytest.mark.parametrize("site", ["global_avg_pool:out", "reshape:out"])
def test_edit_takes_the_sharing_group_along(site):
    assert PLAN.groups == (("global_avg_pool:out", "reshape:out"),)
    assert changed(PLAN.edit(site, qtype="uint4")) == {"global_avg_pool:out", "reshape:out"}


def test_groups_join_across_copies():
    model = Call(lambda x: torch.relu(x + 1.0).transpose(1, 2).flatten(1)[:, 2:])
    (group,) = hs.make_plan(hs.capture(model, normal(2, 3, 4))).groups
    assert group == ("add:out", "transpose:out", "reshape:out", "slice:out")


def test_keep_float():
    plan = PLAN.keep_float("*conv", "too sensitive")
    assert plan.executions["conv"] is Execution.FLOAT
    assert dict(plan.floats) == {"conv": "too sensitive"}
    assert "not integer: conv: too sensitive" in str(plan)
    assert plan.executions["stem"] is PLAN.executions["stem"]


def test_diff():
    plan = PLAN.edit("stem:out", qtype="uint4").keep_float("fc")
    assert PLAN.diff(plan) == [
        "stem:out: uint8 per-tensor mse -> uint4 per-tensor mse",
        "fc: float (None) -> float (asked for in the plan)",
    ]
    assert plan.diff(PLAN) == [
        "stem:out: uint4 per-tensor mse -> uint8 per-tensor mse",
        "fc: float (asked for in the plan) -> float (None)",
    ]
    assert PLAN.diff(PLAN) == []


def test_yaml_round_trip(tmp_path):
    plan = PLAN.edit("stem:out", calibrator="percentile", options={"percentile": 99.0})
    plan = plan.edit("*:weight", pow2=True, axis=None).keep_float("fc")
    plan.save(tmp_path / "plan.yaml")
    loaded = hs.Plan.load(tmp_path / "plan.yaml")
    assert loaded.to_dict() == plan.to_dict()
    assert str(loaded) == str(plan)
    assert loaded.specs == plan.specs
    hs.prepare(GRAPH, loaded)


CORRUPT = {
    "no yaml": b"specs: [unclosed",
    "no text": b"\xff\xfe\x00plan",
    "empty": b"",
    "a list": b"- 1\n- 2\n",
    "no specs": b"target: onnxruntime\n",
    "a spec that is a number": b"{target: onnxruntime, specs: {a: 3}, copies: {}, floats: {}, "
    b"executions: {}}",
    "an unknown execution": b"{target: onnxruntime, specs: {}, copies: {}, floats: {}, "
    b"executions: {a: fast}}",
    "a python object": b"!!python/object/apply:os.getcwd []",
}


@pytest.mark.parametrize("data", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_file_is_no_plan(tmp_path, data):
    (tmp_path / "plan.yaml").write_bytes(data)
    with pytest.raises(PlanError) as raised:
        hs.Plan.load(tmp_path / "plan.yaml")
    path, said, _ = str(raised.value).partition(": this is not a saved plan: ")
    assert path == str(tmp_path / "plan.yaml") and said
    assert str(raised.value).count(path) == 1 and "\n" not in str(raised.value)


def test_first_last():
    plan = hs.make_plan(GRAPH, weights="int4", activations="uint4", first_last="int8")
    eight = {site for site, spec in plan.specs.items() if spec.qtype.bits == 8}
    assert eight == {
        "x:in",
        "stem:weight",
        "global_avg_pool:out",  # shares its grid with what the last linear layer reads
        "reshape:out",
        "fc:weight",
        "fc:out",
    }
    assert plan.specs["x:in"].qtype == QType.parse("uint8")
    assert {spec.qtype.bits for site, spec in plan.specs.items() if site not in eight} == {4}


def test_first_last_of_a_single_layer():
    graph = hs.capture(seeded(nn.Linear(4, 3)), normal(2, 4))
    plan = hs.make_plan(graph, weights="int2", activations="uint2", first_last="int8")
    assert {spec.qtype.bits for spec in plan.specs.values()} == {8}


def test_first_last_without_any_layer_changes_nothing():
    graph = hs.capture(Call(lambda x: x + x), normal(2, 4))
    assert hs.make_plan(graph, first_last="int4").diff(hs.make_plan(graph)) == []


ERRORS = {
    "weight bits": (
        lambda: PLAN.edit("stem:weight", qtype="int16"),
        (
            r"^stem:weight: asked for int16 per-channel \(axis 0\) minmax symmetric; target "
            r"'onnxruntime' accepts signed symmetric weights of 2 to 8 bits, per-tensor or "
            r"per-channel \(axis 0\)\. Change the plan with plan\.edit\('stem:weight', qtype="
        ),
    ),
    "weight axis": (lambda: PLAN.edit("fc:weight", axis=1), r"^fc:weight: asked for .*\(axis 1\)"),
    "activation bits": (
        lambda: PLAN.edit("stem:out", qtype="int16"),
        (
            r"^stem:out: asked for int16 per-tensor mse; target 'onnxruntime' accepts activations "
            r"of 2 to 8 bits, per-tensor\."
        ),
    ),
    "per-channel activation": (lambda: PLAN.edit("stem:out", axis=1), r"^stem:out: asked for"),
    "no such field": (
        lambda: PLAN.edit("stem:out", bits=3),
        r"^a spec has no field bits; it has qtype, axis,",
    ),
    "unsigned weights": (
        lambda: hs.make_plan(GRAPH, weights="uint8"),
        r"^a symmetric spec needs a signed type, found uint8$",
    ),
    "no type": (lambda: hs.make_plan(GRAPH, activations="byte"), r"^'byte' is no type: write"),
    "another graph": (
        lambda: hs.prepare(hs.capture(Call(lambda x: x + x), normal(2, 4)), PLAN),
        r"^the plan is of another graph: it disagrees about \['conv', 'fc',",
    ),
}


@pytest.mark.parametrize(("action", "text"), ERRORS.values(), ids=ERRORS)
def test_what_is_refused(action, text):
    with pytest.raises(PlanError, match=text):
        action()


UNKNOWN = {
    "site": (lambda: PLAN.edit("stm:out"), r"^unknown site 'stm:out': did you mean 'stem:out'"),
    "operation": (lambda: PLAN.keep_float("none*"), r"^unknown operation 'none\*': known are add"),
    "target": (lambda: hs.make_plan(GRAPH, "onnx"), r"^unknown target 'onnx'"),
    "calibrator": (lambda: hs.make_plan(GRAPH, calibrator="mes"), r"did you mean 'mse'"),
}


@pytest.mark.parametrize(("action", "text"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_names(action, text):
    with pytest.raises(UnknownNameError, match=text):
        action()


def test_the_reasons_of_float_operations():
    model = seeded(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    plan = hs.make_plan(hs.capture(model, normal(2, 4)))
    assert plan.floats["1"] == "ONNX Runtime has no integer kernel for it"
    model = Call(lambda x: torch.cumsum(x, 1))
    plan = hs.make_plan(hs.capture(model, normal(2, 4)))
    (reason,) = plan.floats.values()
    assert reason == "aten::cumsum is not in the op table, and no program can hold it"


def test_a_product_that_sums_over_the_batch_stays_float_and_says_why():
    attention = nn.MultiheadAttention(8, 2)  # the sequence on axis 0, the batch on axis 1
    model = seeded(Call(lambda m, x: m(x, x, x, need_weights=False)[0], attention))
    plan = hs.make_plan(hs.capture(model, normal(4, 3, 8)))
    ((name, reason),) = plan.floats.items()
    assert name == "part.0.matmul_1"
    assert reason.startswith("it sums over the samples of a batch") and "batch_first" in reason


class Product(nn.Module):
    """``x @ f(y)^T``: the sites of the second operand share one grid."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ self.function(y).transpose(1, 2)


def symmetric_sites(function: nn.Module, **choices: str) -> set[str]:
    graph = hs.capture(seeded(Product(function)), (normal(2, 3, 8), normal(2, 4, 8)))
    plan = hs.make_plan(graph, **choices)
    return {site for site, spec in plan.specs.items() if spec.symmetric}


def test_second_operands_are_symmetric_where_a_better_kernel_wants_that():
    found = symmetric_sites(nn.Identity(), target="litert_xnnpack")
    assert found == {"y:in", "transpose:out"}
    assert not symmetric_sites(nn.Identity(), target="litert_ref")


def test_a_grid_that_a_kernel_dictates_is_not_made_symmetric():
    assert not symmetric_sites(nn.Softmax(-1), target="litert_xnnpack")


def test_a_plan_is_shown_as_it_is_printed():
    assert repr(PLAN) == str(PLAN)
