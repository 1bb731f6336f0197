from pathlib import Path

import pytest
import torch
from torch import Tensor

import halfstep as hs
from halfstep.recipes import best as best_module
from halfstep.recipes.trials import Trials
from tests.models import Residual, normal, seeded


def classifier(seed: int = 0) -> torch.nn.Module:
    """A small network that answers every class: the mean of its logits is taken off."""
    module = seeded(Residual(8), seed)
    with torch.no_grad():
        module.fc.bias -= module(normal(256, 3, 8, 8, seed=99)).mean(0)  # type: ignore[union-attr,operator]
    return module


def labelled(module: torch.nn.Module, n_batches: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Batches whose labels are what the float model answers."""
    found = []
    for seed in range(n_batches):
        x = normal(32, 3, 8, 8, seed=seed)
        with torch.no_grad():
            found.append((x, module(x).argmax(1)))
    return found


def records(result: hs.Result) -> dict[str, dict[str, object]]:
    return {record.verb: record.facts for record in result.journal.records}


def test_the_first_trial_that_is_shown_is_taken() -> None:
    module = classifier()
    result = hs.quantize(module, labelled(module), recipe="best", max_drop=0.3)
    found = records(result)
    assert found["take"]["trial"] == "minmax"
    assert found["take"]["because"] == "its drop is shown to be below"
    assert "mse" not in found
    assert set(found["estimate"]) == {"budget", "minmax", "mse", "corrected", "rounded", "partial"}
    assert result.verdict is not None and result.verdict.status is hs.Status.EXACT


def test_few_bits_need_rounding_and_the_journal_says_why() -> None:
    module = classifier()
    result = hs.quantize(module, labelled(module), recipe="best", weights="int3", max_drop=0.3)
    found = records(result)
    assert found["minmax"]["verdict"] == found["mse"]["verdict"] == "missed"
    assert found["take"]["trial"] in ("corrected", "rounded")
    assert found["judge"]["by"] == "labels"


def test_a_trial_over_the_budget_is_left_out() -> None:
    module = classifier()
    result = hs.quantize(
        module, labelled(module), recipe="best", weights="int2", max_drop=0.0, budget=0.0
    )
    found = records(result)
    assert "drop" in found["minmax"]
    for name in ("mse", "corrected", "rounded", "partial"):
        assert "0 s left" in str(found[name]["left out"])
    assert found["take"]["because"] == "no trial stays below, and its drop is the smallest"


def test_an_interrupted_search_goes_on_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = classifier()
    choices = {"recipe": "best", "weights": "int3", "max_drop": 0.01, "cache": str(tmp_path)}

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(best_module, "round_weights", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hs.quantize(module, labelled(module), **choices)  # type: ignore[arg-type]
    kept = {path.name.split("-")[0] for path in tmp_path.iterdir()}
    assert kept == {"minmax", "mse", "corrected"}
    resumed = hs.quantize(module, labelled(module), **choices)  # type: ignore[arg-type]
    assert records(resumed)["minmax"]["from"] == "the cache"
    assert "from" not in records(resumed)["rounded"]
    whole = hs.quantize(module, labelled(module), **{**choices, "cache": None})  # type: ignore[arg-type]
    assert str(resumed.program) == str(whole.program)


def test_a_damaged_outcome_is_made_again(tmp_path: Path) -> None:
    module = classifier()
    choices = {"recipe": "best", "max_drop": 0.2, "cache": str(tmp_path)}
    hs.quantize(module, labelled(module), **choices)  # type: ignore[arg-type]
    (stored,) = tmp_path.iterdir()
    whole = stored.read_bytes()
    for size in (0, 1000, len(whole) - 1000):
        stored.write_bytes(whole[:size])
        again = hs.quantize(module, labelled(module), **choices)  # type: ignore[arg-type]
        assert "from" not in records(again)["minmax"]
        assert len(stored.read_bytes()) == len(whole)
    assert "from" in records(hs.quantize(module, labelled(module), **choices))["minmax"]  # type: ignore[arg-type]


def test_other_weights_do_not_find_the_outcome(tmp_path: Path) -> None:
    for seed in (0, 1):
        module = classifier(seed)
        hs.quantize(module, labelled(module), recipe="best", max_drop=1.0, cache=str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2
    assert Trials.__doc__


def test_another_network_of_the_same_weights_does_not_find_the_outcome(tmp_path: Path) -> None:
    class Negated(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module, sign: float) -> None:
            super().__init__()
            self.inner, self.sign = inner, sign

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.sign  # type: ignore[no-any-return]

    data = labelled(classifier())
    for sign in (2.0, -2.0):
        module = Negated(classifier(), sign).eval()
        hs.quantize(module, data, recipe="best", max_drop=1.0, cache=str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_partial_outcome_is_that_of_its_drop(tmp_path: Path) -> None:
    module = classifier()
    for max_drop in (0.0, 0.01):
        hs.quantize(
            module, labelled(module), recipe="best", weights="int2", max_drop=max_drop,
            cache=str(tmp_path),
        )  # fmt: skip
    kept = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert kept.count("partial") == 2 and kept.count("rounded") == 1


def test_without_labels_the_float_model_is_right() -> None:
    module = classifier()
    result = hs.quantize(module, [x for x, _ in labelled(module)], recipe="best", max_drop=0.2)
    assert records(result)["judge"]["by"] == "the float model"


def test_what_best_cannot_judge_is_refused() -> None:
    module = classifier()
    with pytest.raises(hs.HalfstepError, match="1 batch: 'best' calibrates on one half"):
        hs.quantize(module, labelled(module, 1), recipe="best")
    with pytest.raises(hs.HalfstepError, match="calibrator: the trials of 'best' choose it"):
        hs.quantize(module, labelled(module), recipe="best", calibrator="mse")
    images = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)).eval()
    with pytest.raises(hs.HalfstepError, match=r"asked for class scores, \(N, classes\)"):
        hs.quantize(images, [normal(4, 3, 8, 8), normal(4, 3, 8, 8)], recipe="best")


@pytest.mark.parametrize(
    "choices",
    [
        {"recipe": "low_bit", "weights": "int4"},
        {"recipe": "qualcomm_ptq", "iterations": 500, "weights": "int4"},
        {"recipe": "qualcomm_ptq", "rounding": "together", "weights": "int4"},
        {"recipe": "qualcomm_ptq", "rounding": "nearest"},
    ],
)
def test_recipes_give_exact_artifacts(choices: dict[str, object]) -> None:
    module = classifier()
    result = hs.quantize(module, labelled(module), **choices)  # type: ignore[arg-type]
    assert result.verdict is not None and result.verdict.status is hs.Status.EXACT
    assert min(result.verdict.agreement.values()) > 0.5, "five classes: chance is 0.2"


def test_an_unknown_rounding_is_refused() -> None:
    module = classifier()
    with pytest.raises(hs.HalfstepError, match="rounding: asked for 'up', known are adaround"):
        hs.quantize(module, labelled(module), recipe="qualcomm_ptq", rounding="up")
