"""A model that cannot run on its data says so itself: which module, in which words, on what."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import CaptureError, DataError
from halfstep.graph.eager import original
from tests.models import Call, CallTwo, Residual, normal, seeded


def words_of(model: nn.Module, *inputs: Tensor) -> list[str]:
    """The lines of the error that ``quantize`` raises."""
    with pytest.raises(DataError) as caught:
        hs.quantize(model, [inputs])
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("images", "said", "found"),
    [
        (normal(4, 1, 6, 6), "to have 3 channels, but got 1 channels", "float32 (N, 1, 6, 6)"),
        (normal(4, 6, 6, 3), "to have 3 channels, but got 6 channels", "float32 (N, 6, 6, 3)"),
        (normal(3, 6, 6), "to have 3 channels, but got 2 channels", "float32 (N, 6, 6)"),
        (torch.zeros(4, 3, 6, 6, dtype=torch.uint8), "RuntimeError: ", "uint8 (N, 3, 6, 6)"),
    ],
    ids=["grey", "channels last", "no batch", "uint8"],
)
def test_images_of_another_kind(images: Tensor, said: str, found: str) -> None:
    first, second = words_of(seeded(Residual()), images)
    assert first.startswith(
        "batch 0: the model itself cannot run on it: stem = Conv2d(3, 4, kernel_size=(3, 3), "
        "stride=(1, 1), padding=(1, 1), bias=False): RuntimeError: "
    )
    assert said in first
    models = Path(__file__).parent.parent / "models.py"
    assert f"({models}:" in first and "self.stem(x)" in first
    assert second == f"The data is x: {found}; axis 0 is the batch."


def test_words_that_the_vocabulary_lacks() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    first, second = words_of(model, torch.full((3, 6), 7))
    assert first.endswith("0 = Embedding(5, 4): IndexError: index out of range in self")
    assert second.startswith("The data is input: int64 (N, 6);")


def test_several_inputs_are_all_described() -> None:
    *_, last = words_of(CallTwo(torch.matmul), normal(4, 2, 3), normal(4, 5, 2, seed=1))
    assert last == "The data is x: float32 (N, 2, 3), y: float32 (N, 5, 2); axis 0 is the batch."


def test_a_failure_outside_of_any_layer_names_the_line() -> None:
    def forward(x: Tensor) -> Tensor:
        raise KeyError("classes")  # the line that the message names

    line = next(i for i, t in enumerate(Path(__file__).read_text().splitlines(), 1) if "# the" in t)
    first, _ = words_of(Call(forward), normal(4, 3))
    assert first.startswith("batch 0: the model itself cannot run on it: Call")
    assert f": KeyError: 'classes' ({__file__}:{line}: raise KeyError" in first


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_refused_like_those_of_later_batches(dtype: torch.dtype) -> None:
    (line,) = words_of(seeded(Residual()), normal(4, 3, 6, 6).to(dtype))
    assert line == f"x:in: batch 0: asked for torch.float32, found {dtype}; convert it"


def fixed(size: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.reshape(size, 6)


@pytest.mark.parametrize("size", [1, 4])
def test_a_model_for_batches_of_one_size_is_not_the_datas_fault(size: int) -> None:
    wanted = (
        rf"(?s)^Call: it runs on a batch of {size} samples, and not on one of 2: Call.*RuntimeError"
        r".*Make it do the same for every size\.$"
    )
    with pytest.raises(CaptureError, match=wanted):
        hs.capture(Call(fixed(size)), normal(size, 3, 2))


def test_buffers_that_a_forward_changes_stay_as_they_were() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            raise ValueError("never")

    model = Counting()
    with pytest.raises(DataError, match="ValueError: never"):
        hs.capture(model, normal(2, 3))
    assert model.calls == 0


of_torchs_own = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def exported() -> nn.Module:
    return torch.export.export(nn.Linear(4, 2), (normal(2, 4),)).module()


@of_torchs_own
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.Linear, r"found the class Linear; make one of it: Linear\(\.\.\.\)"),
        (lambda: [normal(2, 4)], "found list; write a module with a forward"),
        (lambda: torch.relu, "found builtin_function_or_method; write a module with a forward"),
        (
            torch.jit.ScriptModule,
            "found one that torch.jit compiled; give the module that it was made from",
        ),
        (exported, "found one that torch.export made; give the module that it was made from"),
    ],
    ids=["class", "list", "function", "jit", "export"],
)
def test_what_is_no_module_to_capture(make: Callable[[], Any], text: str) -> None:
    model = make()
    for verb in (lambda: hs.capture(model, normal(2, 4)), lambda: hs.quantize(model, [])):
        with pytest.raises(CaptureError, match=f"^model: asked for a torch.nn.Module, {text}"):
            verb()


@of_torchs_own
def test_a_compiled_model_is_captured_as_what_it_wraps() -> None:
    model = seeded(nn.Linear(4, 2))
    assert original(torch.compile(model, backend="eager")) is model
    assert original(model) is model


def test_complex_inputs_are_refused() -> None:
    text = r"^input:in: batch 0: asked for real numbers, found torch.complex64; give both parts"
    with pytest.raises(DataError, match=text):
        hs.capture(nn.Identity(), torch.zeros(2, 3, dtype=torch.complex64))
