"""Quantizers on a graph: off they change nothing; on they learn, are saved and are copied."""

import copy

import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import CalibrationError, UnknownNameError
from tests.models import Residual, normal, seeded

X = normal(4, 3, 8, 8, seed=9)


def prepared(model: nn.Module | None = None) -> hs.QuantizedModel:
    graph = hs.capture(seeded(Residual() if model is None else model), normal(2, 3, 8, 8))
    return hs.prepare(graph, hs.make_plan(graph))


def calibrated(model: nn.Module | None = None) -> hs.QuantizedModel:
    quantized = prepared(model)
    hs.calibrate(quantized, [normal(8, 3, 8, 8, seed=seed) for seed in (1, 2)])
    return quantized


def test_off_the_output_is_unchanged():
    for model in (prepared(), calibrated()):
        model.enable(False)
        with torch.no_grad():
            assert torch.equal(model(X), model.graph.module(X)[0])
            model.enable(True)
    assert not torch.equal(model(X), model.graph.module(X)[0])


def test_before_calibration_it_refuses_with_the_site():
    with pytest.raises(CalibrationError, match=r"^x:in: it has no range yet; run halfstep"):
        prepared()(X)


def test_sites_that_share_codes_have_one_quantizer():
    model = prepared()
    assert model.quantizer("reshape:out") is model.quantizer("global_avg_pool:out")
    assert len(list(model.quantizers())) == len(model.plan.specs) - 1
    with pytest.raises(UnknownNameError, match=r"^unknown quantized site 'stem': did you mean"):
        model.quantizer("stem")


def test_outputs_lie_on_the_grid_of_their_site():
    model = calibrated()
    found = model(X).detach().numpy()
    grid = model.quantizer("fc:out").grid()
    assert (grid.dequantize(grid.quantize(found)) == found).all()


class ReadByAll(nn.Module):
    """What a float operation makes is read by one on codes, by another float one and outside."""

    def __init__(self) -> None:
        super().__init__()
        self.prelu = nn.PReLU(3)
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = self.prelu(x)
        return made, made / self.conv(made).sigmoid()


def test_what_codes_floats_and_the_caller_read_leaves_as_codes():
    model = calibrated(ReadByAll())
    assert "prelu" in model.plan.floats and "prelu:out" in model.site_quantizer
    outputs = hs.Engine(hs.lower(model)).run([X.numpy()]).outputs
    made, divided = (output.detach().numpy() for output in model(X))
    grid = model.quantizer("prelu:out").grid()
    assert (grid.dequantize(grid.quantize(made)) == made).all()
    assert (outputs[0] == made).all()
    assert abs(outputs[1] - divided).max() < 0.01 < abs(divided).max()


def test_the_state_dict_holds_parameters_and_grids():
    model, other = calibrated(), prepared()
    other.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    for site in model.site_quantizer:
        assert other.quantizer(site).grid().same_as(model.quantizer(site).grid())
    assert torch.equal(other(X), model(X))


def test_a_copy_is_independent():
    model = calibrated()
    before = model(X)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(X), before)
    with torch.no_grad():
        for name, value in copied.state_dict().items():
            if not name.endswith((".zero_point", ".found")):
                value.mul_(2)
    assert not torch.equal(copied(X), before)
    assert torch.equal(model(X), before)
    assert not set(map(id, model.quantizers())) & set(map(id, copied.quantizers()))


def test_the_biases_of_a_copy_follow_the_grids_of_the_copy():
    model = calibrated()
    copied = copy.deepcopy(model)
    old = model.quantizer("x:in").grid()
    copied.quantizer("x:in").set_grid(hs.Affine(old.qtype, old.scale * 2, old.zero_point))
    n = 4
    biases = [m.module.get_submodule("quantizer_stem__bias") for m in (model, copied)]
    first, second = (bias.grid(n).scale for bias in biases)
    assert (second == first * 2).all()


def test_train_and_eval_switch_dropout():
    model = calibrated()
    assert not model.training
    assert torch.equal(model(X), model(X))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(X), model(X))
    copied = copy.deepcopy(model)
    assert copied.training
    model.eval()
    assert torch.equal(model(X), model(X))
    assert not torch.equal(copied(X), copied(X)), "the copy has a mode of its own"


def test_gradients_reach_every_parameter():
    model = calibrated()
    model(X).square().sum().backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert value.grad.abs().sum() > 0, name


class Scaled(nn.Module):
    """An input, and one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result


def test_gradients_are_zero_where_a_value_saturated():
    graph = hs.capture(seeded(Scaled()), normal(2, 4))
    model = hs.prepare(graph, hs.make_plan(graph))
    hs.calibrate(model, [normal(16, 4, seed=1).clamp(-1, 1)])
    model.quantizer("linear:out").enabled = False
    x = torch.tensor([[0.3, 50.0, -50.0, -0.2]], requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).tolist() == [[True, False, False, True]]
    (weight,) = model.parameters()
    grid = model.quantizer("linear:weight").grid()
    assert (weight.grad != 0).all()
    with torch.no_grad():
        weight[0, 0] = 100 * float(grid.high[0])
    weight.grad = None
    model(normal(3, 4)).sum().backward()
    assert weight.grad[0, 0] == 0
    assert (weight.grad.flatten()[1:] != 0).all()
