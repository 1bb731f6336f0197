"""Functions that files hold as tables: exact on every target, and close to torch's in float."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import halfstep as hs
from halfstep.catalog import find
from halfstep.core.grid import Affine
from halfstep.core.qtype import INT8
from halfstep.core.target import resolve
from halfstep.errors import ExportError
from halfstep.functions import IN_TABLES
from tests.models import Call, normal, seeded

pytest.importorskip("ai_edge_litert")
pytestmark = pytest.mark.runtime
TARGETS = ("onnxruntime", "onnxruntime_any", "litert_ref", "litert_xnnpack", "openvino", "c99")
Function = Callable[[Tensor], Tensor]
FUNCTIONS: dict[str, Function] = {
    "abs": torch.abs,
    "elu": functional.elu,
    "elu of another slope": lambda x: functional.elu(x, 0.3),
    "selu": functional.selu,
    "celu": lambda x: functional.celu(x, 0.5),
    "softplus": functional.softplus,
    "softplus, steeper": lambda x: functional.softplus(x, 3.0),
    "mish": functional.mish,
    "log_sigmoid": functional.logsigmoid,
}
TABLES: dict[str, tuple[dict[str, Any], Function]] = {
    "abs": ({}, torch.abs),
    "elu": ({"alpha": 0.7, "scale": 1.0, "input_scale": 1.0}, lambda x: functional.elu(x, 0.7)),
    "softplus": ({"beta": 2.0}, lambda x: functional.softplus(x, 2.0, 500)),
    "mish": ({}, functional.mish),
    "log_sigmoid": ({}, functional.logsigmoid),
}


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.after(self.function(3 * self.before(x)))
        return made


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_codes_are_looked_up(function: Function, target: str) -> None:
    result = hs.quantize(seeded(Between(function)), [normal(4, 3, 6, 4)], target=target)
    assert not result.model.plan.floats
    assert result.verdict is not None and result.verdict.status is not hs.Status.FAILED
    assert max(site.largest for site in result.verdict.sites) == 0
    assert result.verdict.integer_in_runtime == 1.0


def test_signed_codes_are_looked_up_from_the_lowest_one_on(tmp_path: Path) -> None:
    graph = hs.capture(seeded(Between(functional.mish)), normal(4, 3, 6, 4))
    model = hs.prepare(graph, hs.make_plan(graph, activations="int6"))
    hs.calibrate(model, [normal(4, 3, 6, 4)])
    program = hs.lower(model)
    hs.export(program, tmp_path / "model.onnx")
    verdict = hs.verify(program, tmp_path / "model.onnx", [(normal(4, 3, 6, 4).numpy(),)])
    assert verdict.status is hs.Status.EXACT


@pytest.mark.parametrize("name", IN_TABLES)
def test_every_code_has_the_value_of_the_function(name: str) -> None:
    """Of torch in float64, rounded once; the largest inputs neither overflow nor lose digits."""
    attrs, function = TABLES[name]
    for scale in (0.01, 0.1, 10.0):
        codes = np.arange(-128, 128)
        x = Affine(INT8, np.float32(scale), np.int32(5)).dequantize(codes)
        found = IN_TABLES[name](x, **attrs)
        wanted = function(torch.from_numpy(x.astype(np.float64))).numpy().astype(np.float32)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=3e-7, atol=1e-12)


@pytest.mark.parametrize("target", ["onnxruntime", "litert_xnnpack"])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_in_float_they_are_torch_s(function: Function, target: str, tmp_path: Path) -> None:
    x = 40 * normal(3, 2, 50)
    graph = hs.capture(Call(function), x)
    program = hs.lower(hs.prepare(graph, hs.make_plan(graph, target).keep_float("*")))
    path = tmp_path / str(find("target", target).artifact)
    hs.export(program, path)
    (found,) = resolve(find("target", target).run)(path).run([x.numpy()]).values()
    (engine,) = hs.Engine(program).run([x.numpy()]).outputs
    for values in (found, engine):
        np.testing.assert_allclose(values, function(x).numpy(), rtol=1e-5, atol=5e-6)


def test_what_has_no_form_is_refused(tmp_path: Path) -> None:
    x = normal(2, 8)
    graph = hs.capture(Call(lambda x: torch.ops.aten.elu(x, 0.5, 2.0, 3.0)), x)
    program = hs.lower(hs.prepare(graph, hs.make_plan(graph).keep_float("*")))
    with pytest.raises(ExportError, match=r"an ELU with .* has no form in ONNX"):
        hs.export(program, tmp_path / "model.onnx")
    graph = hs.capture(Call(lambda x: functional.softplus(x, 1.0, 2.0)), x)
    assert "aten::softplus with threshold 2.0 is not in the op table" in str(hs.make_plan(graph))
