"""Transformers on every target that runs here: exact, within its bound, or refused by name."""

import platform
import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import halfstep as hs
from halfstep.errors import PlanError
from tests.encoders import TOKENS, WORDS, Encoder, OneLength, Shares, Vision, sentences
from tests.models import normal, seeded

pytest.importorskip("ai_edge_litert")
pytest.importorskip("openvino")
pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="measured on x86-64 only"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
]
INTEGER_ONLY = ("c99", "c99_fixed")
WITH_FLOATS = ("litert_ref", "litert_xnnpack", "openvino", "onnxruntime_any")


def words(n: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(1, WORDS, (n, TOKENS), generator=generator),)


def words_and_shares(n: int, seed: int) -> tuple[Tensor, ...]:
    kept = sentences(n, seed)[1].unsqueeze(-1).float()
    return (*words(n, seed), kept / kept.sum(1, keepdim=True))


MODELS: dict[str, tuple[Callable[[], Any], Callable[[int, int], tuple[Tensor, ...]]]] = {
    "vision": (lambda: seeded(Vision()), lambda n, seed: (normal(n, 3, 4, 20, seed=seed),)),
    "one length": (OneLength, words),
    "shares": (Shares, words_and_shares),
    "masked": (Encoder, sentences),
}


def proven(name: str, target: str) -> hs.Verdict:
    model, draw = MODELS[name][0](), MODELS[name][1]
    data = [draw(4, seed) for seed in range(2)]
    verdict = hs.quantize(model, data, target=target, calibrator="minmax").verdict
    assert verdict is not None
    assert verdict.samples == 8
    return verdict


@pytest.mark.parametrize("name", ["vision", "one length", "shares"])
@pytest.mark.parametrize("target", INTEGER_ONLY)
def test_an_encoder_without_a_mask_is_integers_throughout(name: str, target: str) -> None:
    verdict = proven(name, target)
    assert verdict.status is hs.Status.EXACT, str(verdict)
    assert verdict.integer_in_runtime == 1.0
    assert not verdict.floats


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", WITH_FLOATS)
def test_an_encoder_is_proven_around_its_float_operations(name: str, target: str) -> None:
    verdict = proven(name, target)
    wanted = ("exact", "bounded") if target == "openvino" else ("exact",)
    assert verdict.status in wanted, str(verdict)
    assert verdict.floats
    assert sum(site.compared for site in verdict.comparable) > 0


@pytest.mark.parametrize("target", INTEGER_ONLY)
def test_a_mask_is_refused_by_name_with_what_to_do(target: str) -> None:
    graph = hs.capture(Encoder(), sentences(2))
    with pytest.raises(PlanError) as refused:
        hs.make_plan(graph, target)
    words = str(refused.value)
    assert f"target '{target}' runs integers only, but " in words
    assert re.search(r"blocks.0.softmax \(.*\): an attention mask is among its values", words)
    assert re.search(r"div \(.*\): no formula on integers for it; take a product with", words)
    assert "sum: " not in words
    assert "capture a part without them (capture(..., only=...)), or take a target" in words
