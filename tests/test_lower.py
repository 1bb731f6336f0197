"""Lowering: codes of bounds, tables and biases are what their grids say; the rest is refused."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import halfstep as hs
from halfstep.core.qtype import UINT8
from halfstep.errors import CalibrationError, CaptureError, LowerError
from halfstep.functions import TABLES
from halfstep.lower import clamp_codes
from halfstep.program.engine import Engine
from halfstep.quant.bias import bias_codes
from tests.models import Call, Residual, normal, seeded
from tests.pipeline import lowered, normal_inputs

IMAGE = normal_inputs((3, 8, 8))


def op_of(program: hs.IntProgram, kind: str):
    (op,) = [op for op in program.ops if op.kind == kind]
    return op


@pytest.mark.parametrize("reduce", [torch.mean, torch.sum])
def test_a_reduction_over_no_axes_is_over_all(reduce):
    model = Call(lambda x: reduce(x, dim=(), keepdim=True))
    program = lowered(model, IMAGE, target="reference").program
    (found,) = Engine(program).run([np.ones((5, 3, 8, 8), np.float32)]).outputs
    wanted = reduce(torch.ones(5, 3, 8, 8), dim=(), keepdim=True)
    np.testing.assert_array_equal(found, wanted.numpy())


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_multiple_of_the_batch_is_expanded_as_it_is(n):
    model = Call(lambda x: x.reshape(-1, 1, 8).expand(-1, 3, -1) + 1)
    program = lowered(model, IMAGE, target="reference").program
    assert Engine(program).run([np.ones((n, 3, 8, 8), np.float32)]).outputs[0].shape == (
        24 * n,
        3,
        8,
    )


def test_what_is_repeated_by_a_multiple_of_the_batch_is_refused():
    model = Call(
        lambda m, x: x.reshape(-1, 8) + m.bias.expand(3 * x.shape[0] * 8, -1), nn.Linear(8, 8)
    )
    with pytest.raises(CaptureError, match=r"expand: it repeats a value 24\*\w+ times, a multiple"):
        lowered(model, IMAGE)


def grid_of(low: float, high: float) -> hs.Affine:
    return hs.Affine.from_range(np.asarray(low), np.asarray(high), UINT8)


CLAMPS = [
    ((0.0, None), (-1.0, 2.0), (85, 255)),
    ((0.0, None), (0.0, 2.0), None),
    ((0.0, 6.0), (0.0, 12.75), (0, 120)),
    ((None, 1.0), (-1.0, 1.55), (0, 200)),
    ((-9.0, 9.0), (-1.0, 1.0), None),
    ((None, None), (-1.0, 1.0), None),
]


@pytest.mark.parametrize(("limits", "ends", "codes"), CLAMPS)
def test_clamp_codes(limits, ends, codes):
    assert clamp_codes(grid_of(*ends), limits) == codes


@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [(torch.relu, 0, None), (functional.relu6, 0, 6), (lambda x: x.clamp(-0.1, 0.2), -0.1, 0.2)],
)
def test_a_fused_activation_bounds_its_codes(activation, low, high):
    model = Call(lambda conv, x: activation(conv(x)), nn.Conv2d(3, 4, 3))
    program = lowered(
        model, IMAGE, edit=lambda p: p.edit("part.0:out", calibrator="minmax")
    ).program
    op = op_of(program, "conv")
    grid = program.tensors[op.output].grid
    bounds = op.clamp or (grid.qtype.qmin, grid.qtype.qmax)
    real = grid.dequantize(np.asarray(bounds))
    assert real[0] == pytest.approx(low, abs=float(grid.scale) / 2)
    assert high is None or real[1] <= high + float(grid.scale) / 2


FUNCTIONS = {
    "sigmoid": (torch.sigmoid, {}),
    "tanh": (torch.tanh, {}),
    "gelu": (functional.gelu, {"approximate": "none"}),
    "hardswish": (functional.hardswish, {}),
    "hardsigmoid": (functional.hardsigmoid, {}),
    "leaky_relu": (lambda x: functional.leaky_relu(x, 0.1), {"slope": 0.1}),
    "relu": (torch.relu, {}),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_lookup_is_the_function_for_every_code(name):
    function, attrs = FUNCTIONS[name]
    program = lowered(Call(function), normal_inputs((7,))).program
    op = op_of(program, "lookup")
    source, _ = op.inputs
    table = program.tensors[op.inputs[1]].data
    before, after = program.tensors[source].grid, program.tensors[op.output].grid
    real = before.dequantize(np.arange(before.qtype.qmin, before.qtype.qmax + 1))
    assert len(table) == 256
    np.testing.assert_array_equal(table, after.quantize(TABLES[name](real, **attrs)))
    by_torch = function(torch.from_numpy(real)).numpy()
    assert np.abs(table.astype(int) - after.quantize(by_torch).astype(int)).max() <= 1


def test_biases_are_on_the_scale_of_the_accumulator():
    found = lowered(Residual(), IMAGE)
    tensors = found.program.tensors
    for unit in found.quantized.units.units:
        if unit.bias is None:
            continue
        bias, weight = tensors[f"{unit.name}:bias"], tensors[f"{unit.name}:weight"]
        source = tensors[found.quantized.units.sites[unit.inputs[0]]]
        assert bias.grid.qtype.name == "int32"
        np.testing.assert_array_equal(bias.grid.scale, source.grid.scale * weight.grid.scale)
        real = found.quantized.parameter_of(unit.bias).detach().numpy()
        np.testing.assert_array_equal(bias.data, bias_codes(real, bias.grid))
        step = bias.grid.scale.astype(np.float64)
        assert (np.abs(bias.data * step - real) <= step * 0.5000001).all()


def test_weights_are_the_codes_of_their_grid():
    found = lowered(Residual(), IMAGE)
    for unit in found.quantized.units.units:
        if unit.weight is not None:
            weight = found.program.tensors[f"{unit.name}:weight"]
            real = found.quantized.parameter_of(unit.weight).detach().numpy()
            np.testing.assert_array_equal(weight.data, weight.grid.quantize(real))


def test_an_operation_without_a_place_is_refused():
    text = (
        r"^aten::cumsum: aten::cumsum is not in the op table and has no place in a program\. "
        r"Replace it in the model, or capture a part without it: capture\(\.\.\., only=\.\.\.\)\.$"
    )
    model = Call(lambda x: torch.cumsum(x + x, 1))
    with pytest.raises(LowerError, match=text):
        lowered(model, normal_inputs((7,)))


def test_all_operations_without_a_place_are_named():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 3, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0].cumsum(1)

    text = (
        r"^lstm\.aten::zeros: .* nor have (?=.*lstm\.aten::lstm)(?=.*aten::cumsum).*\. Replace it"
    )
    with pytest.raises(LowerError, match=text):
        lowered(Recurrent(), normal_inputs((5, 4)), redraw=False)


def test_a_model_that_is_not_calibrated_is_refused():
    graph = hs.capture(seeded(Residual()), normal(2, 3, 8, 8))
    text = r"^x:in: it has no range yet; run halfstep\.calibrate\(model, data\) first$"
    with pytest.raises(CalibrationError, match=text):
        hs.lower(hs.prepare(graph, hs.make_plan(graph)))


def test_a_float_plan_lowers_without_calibration():
    graph = hs.capture(seeded(Residual()), normal(2, 3, 8, 8))
    program = hs.lower(hs.prepare(graph, hs.make_plan(graph).keep_float("*")))
    assert {str(op.execution) for op in program.ops} == {"float"}
    x = normal(3, 3, 8, 8, seed=1)
    (found,) = hs.Engine(program, "numpy").run([x.numpy()]).outputs
    np.testing.assert_allclose(found, graph.module(x)[0].detach().numpy(), rtol=1e-4, atol=1e-5)
