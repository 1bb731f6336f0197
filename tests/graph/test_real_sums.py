"""Sums that stay real: exact to the last bit, closer to the float model, refused on codes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import halfstep as hs
from halfstep.core.execution import Execution
from halfstep.errors import PlanError, UnknownNameError
from halfstep.graph.real_sums import keep_elementwise_float, leave_sums_real
from tests.encoders import Encoder, sentences
from tests.models import Call, CallTwo
from tests.pipeline import (
    Lowered,
    arrays,
    assert_backends_agree,
    lowered,
    normal_inputs,
    real_outputs,
)

ROW, TOKENS = (6,), (5, 6)


def real(made: Lowered) -> list[str]:
    return [name for name, how in made.plan.executions.items() if how is Execution.SCALED]


def with_real_sums(module: nn.Module, inputs, **choices) -> Lowered:
    graph = hs.capture(module.eval(), inputs(2, 0))

    def edit(plan: hs.Plan) -> hs.Plan:
        return leave_sums_real(graph, keep_elementwise_float(graph, plan))

    return lowered(module, inputs, graph=graph, edit=edit, **choices)


def normed(linear: nn.Module, norm: nn.Module, last: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return last(norm(linear(x)))


@pytest.mark.parametrize("shape", [ROW, TOKENS], ids=["rows", "tokens"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("per_channel", [True, False], ids=["channels", "tensor"])
def test_the_sums_of_a_linear_layer(shape, bias, per_channel, tmp_path: Path) -> None:
    module = Call(normed, nn.Linear(6, 7, bias=bias), nn.LayerNorm(7), nn.Linear(7, 4))
    made = with_real_sums(module, normal_inputs(shape), per_channel=per_channel)
    assert real(made) == ["part.0", "part.2"]
    verdict = made.prove(tmp_path)
    assert verdict.status is hs.Status.EXACT, str(verdict)
    assert verdict.integer_in_runtime == 1
    compared = {site.site for site in verdict.comparable}
    assert {"part.0:out:real", "part.2:out:real"} <= compared
    assert_backends_agree(made.program, arrays(made.inputs(3, 9)))


def test_the_sums_of_a_product_and_its_factor(tmp_path: Path) -> None:
    module = CallTwo(lambda norm, x, y: norm(x @ y.transpose(1, 2) * 0.37), nn.LayerNorm(5))
    made = with_real_sums(module, normal_inputs(TOKENS, TOKENS))
    assert real(made) == ["matmul"]
    verdict = made.prove(tmp_path)
    assert verdict.status is hs.Status.EXACT, str(verdict)
    assert verdict.integer_in_runtime == 1
    assert any(site.site == "matmul:out:real" for site in verdict.comparable)


NEIGHBOURS = {
    "add": lambda y, x: x + y,
    "sub": lambda y, x: x - y,
    "mul": lambda y, x: x * y,
    "softmax": lambda y, x: y.softmax(-1),
    "gelu": lambda y, x: F.gelu(y),
    "tanh": lambda y, x: y.tanh(),
    "sigmoid": lambda y, x: y.sigmoid(),
    "leaky": lambda y, x: F.leaky_relu(y, 0.2),
    "hardswish": lambda y, x: F.hardswish(y),
    "layer norm": lambda y, x: F.layer_norm(y + x, (6,)),
}


@pytest.mark.parametrize("shape", [ROW, TOKENS], ids=["rows", "tokens"])
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_no_float_operation_behind_it_takes_the_kernel_along(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    function = NEIGHBOURS[name]
    for bias in (True, False):
        module = Call(lambda linear, x: function(linear(x), x), nn.Linear(6, 6, bias=bias))
        made = with_real_sums(module, normal_inputs(shape))
        verdict = made.prove(tmp_path)
        assert real(made) == ["part.0"]
        assert verdict.status is hs.Status.EXACT, str(verdict)
        assert verdict.integer_in_runtime == 1


def test_a_fused_activation_keeps_the_codes() -> None:
    module = Call(lambda linear, norm, x: norm(linear(x).relu()), nn.Linear(6, 7), nn.LayerNorm(7))
    graph = hs.capture(module.eval(), normal_inputs(ROW)(2, 0))
    plan = hs.make_plan(graph)
    assert leave_sums_real(graph, plan).executions == plan.executions
    with pytest.raises(PlanError, match=r"part\.0: asked for real values, but its activation is"):
        hs.prepare(graph, plan.leave_real("part.0"))


def test_a_product_that_is_the_output_is_proven_bit_by_bit(tmp_path: Path) -> None:
    made = with_real_sums(Call(lambda linear, x: linear(x), nn.Linear(6, 7)), normal_inputs(ROW))
    verdict = made.prove(tmp_path)
    (output,) = [site for site in verdict.sites if site.site == "output"]
    assert output.comparable and verdict.status is hs.Status.EXACT
    seen = arrays(made.inputs(3, 9))
    codes = made.program.grid("x:in").quantize(seen[0]).astype(np.int64)
    weight, bias = (made.program.constant(f"part.0:{what}").astype(np.int64)
                    for what in ("weight", "bias"))  # fmt: skip
    sums = (codes - int(made.program.grid("x:in").zero_point)) @ weight.T + bias
    scale = made.program.grid("x:in").scale * made.program.grid("part.0:weight").scale
    (found,) = hs.Engine(made.program).run(seen).outputs
    np.testing.assert_array_equal(found, sums.astype(np.float32) * scale)


def test_a_bit_that_differs_is_found(tmp_path: Path) -> None:
    made = with_real_sums(Call(lambda linear, x: linear(x), nn.Linear(6, 7)), normal_inputs(ROW))
    path = made.export(tmp_path)
    other = lowered(
        made.module,
        made.inputs,
        graph=made.graph,
        per_channel=False,
        edit=lambda plan: leave_sums_real(made.graph, plan),
    )
    verdict = hs.verify(other.program, path, made.samples())
    assert verdict.status is hs.Status.FAILED
    (row,) = [site for site in verdict.sites if site.site == "part.0:out:real"]
    assert row.mismatches > 0 and row.largest > 0


def test_an_encoder_is_closer_to_float_and_exact(tmp_path: Path) -> None:
    module = Encoder()
    seen = sentences(16, 9)
    (wanted,) = real_outputs(module, seen)
    errors = []
    for make in (lambda *a, **k: lowered(*a, redraw=False, **k), with_real_sums):
        made = make(module, sentences)
        verdict = made.prove(tmp_path)
        assert verdict.status is hs.Status.EXACT, str(verdict)
        assert verdict.integer_in_runtime == 1
        (found,) = hs.Engine(made.program, "torch").run(arrays(seen)).outputs
        errors.append(float(np.square(found - wanted).mean()))
    assert errors[1] < errors[0] / 4


def test_float_readers_of_a_float_value_read_it_as_it_is() -> None:
    def residual(norm: nn.Module, linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(norm(x), 0.5, training=False)
        return y + linear(y)

    made = with_real_sums(Call(residual, nn.LayerNorm(6), nn.Linear(6, 6)), normal_inputs(ROW))
    made.quantized.module.get_submodule("quantizer_part_0__out").scale.fill_(1e6)
    (x,) = made.inputs(4, 9)
    # On so coarse a grid the linear layer reads zeros; the addition reads the norm's own values.
    assert torch.equal(made.quantized(x), made.module.part[0](x))
    made.quantized.enable(False)
    assert torch.equal(made.quantized(x), made.module(x))


def test_what_reads_codes_refuses_real_values() -> None:
    graph = hs.capture(
        Call(lambda a, b, x: b(a(x)), nn.Linear(6, 7), nn.Linear(7, 4)).eval(),
        normal_inputs(ROW)(2, 0),
    )
    plan = hs.make_plan(graph)
    with pytest.raises(PlanError, match=r"part\.0: asked for real values, but an operation on"):
        hs.prepare(graph, plan.leave_real("part.0"))
    assert [n for n, how in leave_sums_real(graph, plan).executions.items()
            if how is Execution.SCALED] == ["part.1"]  # fmt: skip


def test_a_kernel_that_gives_codes_alone_refuses() -> None:
    module = Call(lambda conv, x: conv(x), nn.Conv2d(3, 4, 3)).eval()
    graph = hs.capture(module, normal_inputs((3, 6, 6))(2, 0))
    plan = hs.make_plan(graph)
    assert leave_sums_real(graph, plan).executions == plan.executions
    with pytest.raises(PlanError, match="the conv of target 'onnxruntime' gives codes; keep it"):
        hs.prepare(graph, plan.leave_real("part.0"))


def test_a_float_operation_has_no_sums_to_leave() -> None:
    module = Call(lambda a, b, x: b(a(x)), nn.Linear(6, 7), nn.LayerNorm(7)).eval()
    plan = hs.make_plan(hs.capture(module, normal_inputs(ROW)(2, 0)))
    with pytest.raises(UnknownNameError, match=r"unknown operation on an integer kernel 'part\.1'"):
        plan.leave_real("part.1")


def test_a_plan_with_real_sums_is_saved(tmp_path: Path) -> None:
    module = Call(normed, nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 4)).eval()
    graph = hs.capture(module, normal_inputs(ROW)(2, 0))
    plan = leave_sums_real(graph, hs.make_plan(graph))
    plan.save(tmp_path / "plan.yaml")
    assert hs.Plan.load(tmp_path / "plan.yaml").executions == plan.executions
