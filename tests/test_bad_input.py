"""Bad data, models, names, files and disks: refused by name, or handled exactly; never silent."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import CaptureError, DataError, ExportError, PlanError, UnknownNameError
from halfstep.quant.bias import LARGEST_BIAS_CODE
from tests.models import Call, Residual, normal, seeded
from tests.pipeline import Lowered, lowered, normal_inputs

IMAGE = (3, 6, 6)
NO_BATCH = "the data has no batch: it is empty, or an iterator that was used before"


def batch(seed: int = 0) -> Tensor:
    return normal(4, *IMAGE, seed=seed)


def prepared() -> hs.QuantizedModel:
    graph = hs.capture(seeded(Residual()), batch())
    return hs.prepare(graph, hs.make_plan(graph))


def quantized(model: nn.Module, data: Any = None, **choices: Any) -> hs.Result:
    return hs.quantize(model, [batch()] if data is None else data, **choices)


def assert_exact(verdict: hs.Verdict | None) -> None:
    assert verdict is not None
    assert (str(verdict.status), verdict.mismatches) == ("exact", 0), str(verdict)


# Data ----------------------------------------------------------------------------------------


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(DataError, match=NO_BATCH):
        hs.calibrate(prepared(), [])
    with pytest.raises(DataError, match=NO_BATCH):
        quantized(seeded(Residual()), [])


def test_a_used_up_iterator_is_refused() -> None:
    data = iter([batch(), batch(1)])
    model = prepared()
    assert hs.calibrate(model, data) == 8
    with pytest.raises(DataError, match=NO_BATCH):
        hs.calibrate(model, data)


def test_a_wrong_shape_is_named_with_its_batch_and_site() -> None:
    wanted = r"^x:in: batch 2: asked for shape \(N, 3, 6, 6\), found \(4, 3, 6, 5\)$"
    with pytest.raises(DataError, match=wanted):
        hs.calibrate(prepared(), [batch(), batch(1), batch(2)[..., :5]])


def test_a_wrong_dtype_is_named_with_its_batch_and_site() -> None:
    wanted = r"^x:in: batch 1: asked for torch.float32, found torch.float64; convert it$"
    with pytest.raises(DataError, match=wanted):
        hs.calibrate(prepared(), [batch(), batch(1).double()])


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_batch_is_named(value: float, index: int) -> None:
    data = [batch(seed) for seed in range(3)]
    data[index][1, 2, 3, 4] = value  # not a sample that the capture takes as its example
    wanted = f"^x:in: batch {index}: it holds NaN or infinity; clean the data$"
    with pytest.raises(DataError, match=wanted):
        quantized(seeded(Residual()), data)


def test_a_non_finite_example_is_named() -> None:
    data = batch()
    data[0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"^x:in: batch 0: it holds NaN or infinity"):
        quantized(seeded(Residual()), [data])


def test_an_empty_batch_is_refused_by_the_engine_and_by_verify(tmp_path: Path) -> None:
    made = lowered(Residual(), normal_inputs(IMAGE))
    empty = np.zeros((0, *IMAGE), np.float32)
    wanted = "^x: asked for at least one sample, found an empty batch; leave it out$"
    for backend in ("numpy", "torch"):
        with pytest.raises(DataError, match=wanted):
            hs.Engine(made.program, backend).run([empty])
    with pytest.raises(DataError, match=wanted):
        hs.verify(made.program, made.export(tmp_path), [batch(), empty])


@pytest.mark.parametrize("labels", [["cat"] * 4, [{"box": 1}] * 4, "cat"])
def test_labels_that_are_no_numbers_are_refused(labels: Any) -> None:
    wanted = "^batch 1: labels: asked for numbers, such as a class index a sample, found "
    with pytest.raises(DataError, match=wanted):
        quantized(seeded(Residual()), [(batch(), torch.arange(4)), (batch(1), labels)])


def test_a_negative_number_of_samples_is_refused() -> None:
    with pytest.raises(DataError, match=r"^verify_samples: asked for 0 or more, found -3$"):
        quantized(seeded(Residual()), verify_samples=-3)


def test_a_model_with_nothing_to_quantize_says_so() -> None:
    verdict = quantized(nn.Identity()).verdict
    assert verdict is not None and verdict.status is hs.Status.FAILED
    assert verdict.cause == "nothing was compared: no operation makes codes from codes"


def test_infinity_that_arises_inside_the_model_is_named_by_its_site() -> None:
    model = Residual()
    seeded(model)
    with torch.no_grad():
        model.fc.weight.fill_(1e30)
    # Everything before the classifier stays finite in the second batch.
    with pytest.raises(DataError, match=r"^fc:out: non-finite value \(-?(inf|nan)\) .* in batch 1"):
        quantized(model, [batch(), batch(1) * 1e12])


# Models --------------------------------------------------------------------------------------


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that the message names
            return x
        return -x


def test_a_model_that_export_refuses_is_named_by_its_source_line() -> None:
    lines = Path(__file__).read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "# the line that the message" in text)
    with pytest.raises(CaptureError) as caught:
        hs.capture(Branches(), batch())
    message = str(caught.value)
    assert message.startswith("Branches: torch.export refuses the model at ")
    assert Path(__file__).name in message
    assert f"line {line}" in message or f":{line}:" in message
    assert "torch.where" in message


def test_a_module_that_is_called_twice_works(tmp_path: Path) -> None:
    model = Call(lambda conv, x: conv(conv(x).relu()), nn.Conv2d(3, 3, 3, padding=1))
    made = lowered(model, normal_inputs(IMAGE))
    assert sum(op.kind == "conv" for op in made.program.ops) == 2
    assert_exact(made.prove(tmp_path))


def test_weights_that_two_modules_share_work(tmp_path: Path) -> None:
    model = Call(lambda a, b, x: b(a(x).relu()), nn.Linear(6, 6), nn.Linear(6, 6))
    seeded(model)
    model.part[1].weight = model.part[0].weight
    made = lowered(model, normal_inputs((6,)), redraw=False)
    assert sum(op.kind == "linear" for op in made.program.ops) == 2
    assert_exact(made.prove(tmp_path))


def dead_channel() -> Lowered:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    seeded(model)
    conv = model[0]
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    with torch.no_grad():
        conv.weight[1].fill_(1e-20)
        conv.bias[1] = 5.0
    return lowered(model, normal_inputs(IMAGE), redraw=False)


def dequantized_bias(made: Lowered) -> float:
    codes = made.program.constant("0:bias")
    return float(codes[1] * made.program.grid("0:bias").scale[1].astype(np.float64))


def test_a_dead_channel_keeps_its_bias(tmp_path: Path) -> None:
    made = dead_channel()
    assert dequantized_bias(made) == pytest.approx(5.0, rel=1e-6)
    assert_exact(made.prove(tmp_path))


def test_without_the_guard_the_bias_of_a_dead_channel_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("halfstep.graph.calibrate.widen_for_bias", lambda weight, *others: weight)
    made = dead_channel()
    assert abs(int(made.program.constant("0:bias")[1])) == LARGEST_BIAS_CODE
    assert dequantized_bias(made) < 1.0


def test_an_all_zero_weight_is_exact() -> None:
    model = Residual()
    seeded(model)
    nn.init.zeros_(model.conv.weight)
    result = quantized(model)
    assert_exact(result.verdict)
    assert not result.program.constant("conv:weight").any()


def test_a_constant_activation_is_exact() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    seeded(model)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(0.7)
    result = quantized(model, [normal(8, 6)])
    assert_exact(result.verdict)
    output = hs.Engine(result.program).run([normal(2, 6, seed=1).numpy()]).outputs[0]
    with torch.no_grad():
        wanted = model(normal(2, 6, seed=1)).numpy()
    step = float(result.program.grid("2:out").scale)
    np.testing.assert_allclose(output, wanted, atol=2 * step)


def test_an_all_zero_input_is_exact() -> None:
    result = quantized(seeded(Residual()), [torch.zeros(4, *IMAGE)])
    assert_exact(result.verdict)
    scales = [t.grid.scale for t in result.program.tensors.values() if t.grid is not None]
    assert all(np.isfinite(scale).all() and (scale > 0).all() for scale in scales)


# Names and widths ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "wanted"),
    [
        (
            {"weights": "int16"},
            r"stem:weight: asked for int16 .*; target 'onnxruntime' accepts signed .* 2 to 8 bits",
        ),
        (
            {"activations": "uint16"},
            r"x:in: asked for uint16 .*; target 'onnxruntime' accepts activations of 2 to 8 bits",
        ),
    ],
)
def test_a_width_that_the_runtime_has_no_kernel_for_is_refused(
    choices: dict[str, str], wanted: str
) -> None:
    with pytest.raises(PlanError, match=wanted):
        quantized(seeded(Residual()), **choices)


@pytest.mark.parametrize(
    ("choices", "wanted"),
    [
        ({"target": "onxruntime"}, "unknown target 'onxruntime': did you mean 'onnxruntime'"),
        ({"recipe": "ptk"}, r"unknown recipe 'ptk': did you mean 'ptq'\?"),
        ({"calibrator": "mes"}, "unknown calibrator 'mes': did you mean 'mse'"),
        ({"weight_calibrator": "minmx"}, "unknown calibrator 'minmx': did you mean 'minmax'"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest(choices: dict[str, str], wanted: str) -> None:
    with pytest.raises(UnknownNameError, match=wanted):
        quantized(seeded(Residual()), **choices)


def test_an_unknown_site_or_operation_comes_with_the_nearest() -> None:
    plan = hs.make_plan(hs.capture(seeded(Residual()), batch()))
    with pytest.raises(UnknownNameError, match="unknown site 'stm:weight': did you mean 'stem:we"):
        plan.edit("stm:weight", calibrator="mse")
    with pytest.raises(UnknownNameError, match="unknown operation 'stm': did you mean 'stem'"):
        plan.keep_float("stm")


@pytest.mark.parametrize("choice", ["weights", "activations", "first_last"])
def test_an_unknown_type_comes_with_examples_of_types(choice: str) -> None:
    with pytest.raises(PlanError, match=r"^'itn8' is no type: write 'int8', 'uint8', 'int4_na"):
        quantized(seeded(Residual()), **{choice: "itn8"})


# Files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result() -> hs.Result:
    return quantized(seeded(Residual()))


@pytest.fixture(scope="module")
def other() -> hs.Result:
    return quantized(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_output_folder_that_is_a_file_is_refused(result: hs.Result, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("mine")
    with pytest.raises(ExportError, match=r"out: cannot be written \(exists and is not a folder\)"):
        result.save(path)
    assert contents(tmp_path) == {"out": b"mine"}


def interrupted(write: Callable[..., int], error: BaseException) -> Callable[..., int]:
    """``write`` that gets half of the program's listing onto the disk, and no further."""

    def half(path: Path, text: str, *args: Any, **kwargs: Any) -> int:
        if path.name != "program.txt":
            return write(path, text, *args, **kwargs)
        write(path, text[: len(text) // 2], *args, **kwargs)
        raise error

    return half


@pytest.mark.parametrize(
    ("error", "raised", "wanted"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            ExportError,
            r"out: cannot be written \(No space left on device\); nothing was changed",
        ),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
    ids=["full disk", "interrupt"],
)
def test_a_save_that_breaks_off_leaves_the_previous_result(
    result: hs.Result,
    other: hs.Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
    wanted: str,
) -> None:
    folder = tmp_path / "out"
    result.save(folder)
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", interrupted(Path.write_text, error))
        with pytest.raises(raised, match=wanted):
            other.save(folder)
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]
    other.save(folder)
    assert contents(folder) != before


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()],
    ids=["full disk", "interrupt"],
)
def test_an_export_that_breaks_off_leaves_the_previous_file(
    result: hs.Result,
    other: hs.Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    path = tmp_path / "model.onnx"
    hs.export(result.program, path)
    before = contents(tmp_path)

    def fails(descriptor: int) -> None:
        del descriptor
        raise error

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises((ExportError, KeyboardInterrupt)):
        hs.export(other.program, path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[:5]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no weights at all"),
        lambda path: torch.save({"stem.weight": torch.zeros(1)}, path),
    ],
    ids=["truncated", "truncated header", "empty", "text", "pickle"],
)
def test_a_weights_file_that_is_not_whole_is_refused(
    damage: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(Residual().state_dict(), path)
    damage(path)
    with pytest.raises(DataError, match=r"weights.safetensors: not a complete safetensors file"):
        hs.load_weights(Residual(), path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(nn.Linear(4, 5).state_dict(), path)
    wanted = r"weights of another model: \d+ missing \(bn1.bias, .*\), 2 unknown \(bias, weight\)"
    with pytest.raises(DataError, match=wanted):
        hs.load_weights(Residual(), path)


def test_weights_of_a_wrong_shape_are_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(Residual(classes=7).state_dict(), path)
    model = Residual()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DataError, match=r"fc.\w+: asked for shape \(5.*\), found \(7.*\)"):
        hs.load_weights(model, path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_truncated_onnx_file_is_refused(result: hs.Result, tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.onnx"
    hs.export(result.program, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ExportError, match=r"model.onnx: (not a complete ONNX|ONNX Runtime refus)"):
        hs.verify(result.program, path, [batch()])


def test_an_onnx_file_of_another_program_is_refused(
    result: hs.Result, other: hs.Result, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    hs.export(other.program, path)
    with pytest.raises(ExportError, match=r"model.onnx: it has no tensor .*made from this program"):
        hs.verify(result.program, path, [batch()])


def test_an_onnx_file_for_other_inputs_is_refused(result: hs.Result, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    hs.export(quantized(seeded(Residual()), [normal(4, 3, 8, 8)]).program, path)
    with pytest.raises(ExportError, match=r"model.onnx: ONNX Runtime refuses the inputs: "):
        hs.verify(result.program, path, [batch()])


def test_an_onnx_file_without_the_output_is_refused(result: hs.Result, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    hs.export(result.program, path)
    model = onnx.load(path)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "renamed"
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"model.onnx: it has no tensor output; was it made"):
        hs.verify(result.program, path, [batch()])


def test_an_onnx_file_of_the_same_model_with_other_weights_fails(
    result: hs.Result, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    hs.export(quantized(seeded(Residual(), seed=1)).program, path)
    onnx.checker.check_model(onnx.load(path))
    verdict = hs.verify(result.program, path, [batch()])
    assert str(verdict.status) == "failed"
    assert verdict.exit_code == 1
