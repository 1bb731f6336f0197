"""Which operations a target sees: their names, and what is fused into them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import halfstep as hs
from halfstep.catalog import find
from halfstep.graph.match import Unit, Units, find_units
from tests.models import Call, CallTwo, Residual, normal, seeded

IMAGE = (3, 8, 8)


def units_of(model: nn.Module, *shapes: tuple[int, ...]) -> Units:
    inputs = tuple(normal(2, *shape, seed=i) for i, shape in enumerate(shapes))
    graph = hs.capture(seeded(model), inputs)
    return find_units(graph.module, find("target", "onnxruntime").fused_activations)


def kinds(units: Units) -> list[str]:
    return [unit.kind for unit in units.units]


def by_name(units: Units) -> dict[str, Unit]:
    return {unit.name: unit for unit in units.units}


def test_names_of_units_and_sites():
    units = units_of(Residual(), IMAGE)
    names = ["stem", "conv", "add", "global_avg_pool", "reshape", "fc"]
    assert [unit.name for unit in units.units] == names
    sites = list(units.sites.values())
    assert {f"{name}:out" for name in names} < set(sites)
    assert {"x:in", "stem:weight", "conv:weight", "fc:weight"} < set(sites)
    assert len(sites) == len(set(sites)), "names are unique"


def test_nested_modules_give_their_paths():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Flatten())
    assert list(by_name(units_of(model, IMAGE))) == ["0.0", "1"]


def test_repeated_operations_are_numbered():
    units = units_of(Call(lambda x: (x + x) * x + x), IMAGE)
    assert list(by_name(units)) == ["add", "mul", "add_1"]


def test_a_module_that_is_called_twice_is_numbered_and_has_one_weight():
    units = units_of(Call(lambda fc, x: fc(fc(x)), nn.Linear(4, 4)), (4,))
    first, second = units.units
    assert (first.name, second.name) == ("part.0", "part.0_1")
    assert units.sites[first.weight] == units.sites[second.weight] == "part.0:weight"


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float | None, float | None]]] = {
    "relu": (torch.relu, (0.0, None)),
    "relu6": (functional.relu6, (0.0, 6.0)),
    "hardtanh": (lambda x: functional.hardtanh(x, -0.5, 2.0), (-0.5, 2.0)),
    "clamp": (lambda x: x.clamp(-0.25, 3.0), (-0.25, 3.0)),
    "clamp below": (lambda x: x.clamp(min=-0.25), (-0.25, None)),
    "clamp above": (lambda x: x.clamp(max=3.0), (None, 3.0)),
}


@pytest.mark.parametrize(("activation", "limits"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_an_activation_is_fused(activation, limits):
    model = Call(lambda conv, x: activation(conv(x)), nn.Conv2d(3, 4, 3))
    (unit,) = units_of(model, IMAGE).units
    assert unit.kind == "conv"
    assert unit.limits == limits
    assert unit.tail is not unit.head


@pytest.mark.parametrize("kind", ["add", "mul", "sub", "linear", "matmul"])
def test_other_operations_that_fuse(kind):
    functions = {
        "add": lambda x: torch.relu(x + x),
        "mul": lambda x: torch.relu(x * x),
        "sub": lambda x: torch.relu(x - 1.5 * x),
        "linear": lambda x: torch.relu(functional.linear(x, torch.eye(8))),
        "matmul": lambda x: torch.relu(x @ x),
    }
    last = units_of(Call(functions[kind]), IMAGE).units[-1]
    assert (last.kind, last.limits) == (kind, (0.0, None))


def test_no_fusion_where_the_output_has_two_readers():
    model = Call(lambda conv, x: (y := conv(x)) + torch.relu(y), nn.Conv2d(3, 4, 3))
    units = units_of(model, IMAGE)
    assert kinds(units) == ["conv", "relu", "add"]
    assert units.units[0].limits == (None, None)


def test_no_fusion_into_an_operation_without_it():
    units = units_of(Call(lambda x: torch.relu(torch.sigmoid(x))), IMAGE)
    assert kinds(units) == ["sigmoid", "relu"]


def test_only_one_activation_is_fused():
    model = Call(lambda conv, x: torch.relu(conv(x)).clamp(max=1.0), nn.Conv2d(3, 4, 3))
    assert kinds(units_of(model, IMAGE)) == ["conv", "clamp"]


def test_zeros_in_front_of_a_convolution_are_its_padding():
    model = nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), nn.Conv2d(3, 4, 3, padding=1))
    units = units_of(model, IMAGE)
    (unit,) = units.units
    assert unit.attrs["padding"] == ((3, 4), (1, 2))
    assert [node.op for node in unit.inputs] == ["placeholder"]


PADDINGS = {
    "a value": nn.ConstantPad2d(1, 0.5),
    "a mirror": nn.ReflectionPad2d(1),
    "cropping": nn.ZeroPad2d((-1, 0, 0, 0)),
}


@pytest.mark.parametrize("pad", PADDINGS.values(), ids=PADDINGS)
def test_other_padding_stays_an_operation(pad):
    units = units_of(nn.Sequential(pad, nn.Conv2d(3, 4, 3)), IMAGE)
    assert len(units.units) == 2
    assert units.units[1].attrs["padding"] == ((0, 0), (0, 0))


def test_padding_that_another_reads_too_stays_and_is_absorbed():
    def forward(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = functional.pad(x, (1, 1, 1, 1))
        return conv(padded), padded * padded

    units = units_of(Call(forward, nn.Conv2d(3, 4, 3)), IMAGE)
    assert sorted(kinds(units)) == ["conv", "mul", "pad"]
    assert by_name(units)["part.0"].attrs["padding"] == ((1, 1), (1, 1))


def test_a_scale_behind_a_product_is_absorbed():
    units = units_of(CallTwo(lambda x, y: (x @ y) * 0.25), (4, 5), (5, 3))
    (unit,) = units.units
    assert (unit.kind, unit.attrs["alpha"]) == ("matmul", 0.25)


def test_a_division_behind_a_product_is_absorbed():
    (unit,) = units_of(CallTwo(lambda x, y: x @ y / 4), (4, 5), (5, 3)).units
    assert unit.attrs["alpha"] == 0.25


@pytest.mark.parametrize("scale", [-0.25, 0.0])
def test_a_scale_that_is_not_positive_is_not_absorbed(scale):
    units = units_of(CallTwo(lambda x, y: (x @ y) * scale), (4, 5), (5, 3))
    assert kinds(units) == ["matmul", "mul"]
    assert units.units[0].attrs["alpha"] == 1.0


def test_a_scale_of_a_product_with_two_readers_is_not_absorbed():
    units = units_of(CallTwo(lambda x, y: (z := x @ y) + z * 0.25), (4, 5), (5, 3))
    assert kinds(units) == ["matmul", "mul", "add"]


def test_dropout_is_seen_through():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.ReLU(), nn.Dropout2d(0.5))
    units = units_of(nn.Sequential(*model, nn.Conv2d(4, 2, 3)), IMAGE)
    first, second = units.units
    assert (first.name, first.limits) == ("0", (0.0, None))
    assert second.inputs == (first.tail,)


def test_multiply_accumulates_a_sample():
    units = by_name(units_of(Residual(), IMAGE))
    assert units["stem"].macs == 4 * 8 * 8 * 3 * 3 * 3
    assert units["fc"].macs == 4 * 5
    assert units["add"].macs == 0
