"""Weights that are computed, and parameters with two roles."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import halfstep as hs
from halfstep.errors import PlanError
from halfstep.graph.ops import describe, is_computation
from tests.models import Call, normal, seeded
from tests.pipeline import lowered, normal_inputs

IMAGE = (3, 6, 6)


class Tied(nn.Module):
    """The table of words is the weight of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, index: Tensor) -> Tensor:
        result: Tensor = self.head(self.hidden(self.words(index)).relu())
        return result


def words(n: int, seed: int) -> tuple[Tensor]:
    return (torch.randint(0, 11, (n, 4), generator=torch.Generator().manual_seed(seed)),)


def kinds(graph: hs.Graph) -> list[str]:
    return [describe(node).kind for node in graph.module.graph.nodes if is_computation(node)]


def assert_exact(verdict: hs.Verdict) -> None:
    assert verdict.status is hs.Status.EXACT, str(verdict)
    assert verdict.integer_in_runtime == 1


@pytest.mark.parametrize(
    "normalized",
    [
        lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        lambda: parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
    ],
    ids=["weight norm", "spectral norm"],
)
def test_a_normalized_weight_is_a_weight(normalized, tmp_path: Path) -> None:
    made = lowered(Call(lambda m, x: m(x).relu(), normalized()), normal_inputs(IMAGE))
    assert kinds(made.graph) == ["conv", "relu"]
    assert_exact(made.prove(tmp_path))


def test_a_weight_that_two_layers_compute_is_one() -> None:
    def twice(m: nn.Module, x: Tensor) -> Tensor:
        weight = m.weight.t() * 0.5
        return F.linear(F.linear(x, weight), weight, m.bias + 1)

    graph = hs.capture(seeded(Call(twice, nn.Linear(6, 6))), normal(2, 6))
    assert kinds(graph) == ["linear", "linear"]
    first, second = (
        describe(node) for node in graph.module.graph.nodes if node.op == "call_function"
    )
    assert first.weight is second.weight
    assert second.bias is not None


def test_a_folded_weight_is_trained() -> None:
    graph = hs.capture(
        seeded(Call(lambda m, x: F.linear(x, m.weight.t()), nn.Linear(6, 6))), normal(2, 6)
    )
    model = hs.prepare(graph, hs.make_plan(graph))
    hs.calibrate(model, [normal(8, 6)])
    model(normal(8, 6)).square().sum().backward()
    (weight,) = (p for p in model.parameters() if p.shape == (6, 6))
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


def test_a_weight_that_depends_on_the_input_stays_float(tmp_path: Path) -> None:
    def generated(m: nn.Module, x: Tensor) -> Tensor:
        return m(F.linear(x, x.mean(0, keepdim=True).expand(5, 6)))

    made = lowered(Call(generated, nn.Linear(5, 4)), normal_inputs((6,)))
    assert made.plan.floats["linear"] == "its weight is computed, not a parameter"
    verdict = made.prove(tmp_path)
    assert verdict.status is hs.Status.EXACT, str(verdict)


def test_a_table_that_is_a_weight_too_has_a_grid_for_each_role(tmp_path: Path) -> None:
    made = lowered(Tied(), words)
    table, weight = (made.program.grid(site) for site in ("head.weight:constant", "head:weight"))
    assert (table.qtype.name, table.axis) == ("uint8", None)
    assert (weight.qtype.name, weight.axis) == ("int8_narrow", 0)
    assert_exact(made.prove(tmp_path))


def test_both_roles_are_one_parameter() -> None:
    graph = hs.capture(seeded(Tied()), words(2, 0)[0])
    model = hs.prepare(graph, hs.make_plan(graph))
    assert sum(p.shape == (11, 8) for p in model.parameters()) == 1


class Numbered(nn.Module):
    """A layer that is called twice, and one with the name that its second call would get."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.fc_1 = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc_1(self.fc(self.fc(x)))
        return result


def test_no_two_operations_have_one_name(tmp_path: Path) -> None:
    made = lowered(Numbered(), normal_inputs((6,)))
    assert list(made.plan.executions) == ["fc", "fc_1", "fc_1_1"]
    assert_exact(made.prove(tmp_path))


class Ambiguous(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Module()
        self.a.b = nn.Linear(6, 6)
        self.a_b = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.a_b(self.a.b(x))
        return result


def test_names_that_no_quantizer_can_tell_apart_are_refused() -> None:
    graph = hs.capture(seeded(Ambiguous()), normal(2, 6))
    wanted = r"a_b:\w+: its quantizer would be called .*, as that of a\.b:\w+ is; rename"
    with pytest.raises(PlanError, match=wanted):
        hs.prepare(graph, hs.make_plan(graph))
