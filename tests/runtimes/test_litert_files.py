"""The ``.tflite`` file itself: ends, names, layouts, wrong formulas, and files that are none."""

import builtins
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import DataError, ExportError, ProgramError, RuntimeUnavailableError
from halfstep.formats.layout import Layout, channels_last
from halfstep.formats.tflite import LiteRTFile
from halfstep.runtimes.litert import DefaultKernels, ReferenceKernels
from tests.models import CallTwo, Residual, seeded
from tests.pipeline import Lowered, arrays, lowered, normal_inputs

pytest.importorskip("ai_edge_litert")
pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="measured on x86-64 only"),
]
TARGETS = ("litert_ref", "litert_xnnpack")
IMAGE = (3, 9, 9)


class Network(nn.Module):
    """Residual and depthwise, uneven padding, dilation, concatenation, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.dilated = nn.Conv2d(6, 4, 3, padding=2, dilation=2)
        self.pointwise = nn.Conv2d(10, 8, 1)
        self.flat, self.pooled = nn.Linear(8 * 2 * 2, 5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, 9, 9) to two vectors and a map."""
        x = F.relu6(self.stem(F.pad(x, (0, 1, 1, 0))))
        x = x + self.depthwise(x)
        x = self.pointwise(torch.cat([self.dilated(x), x], 1)).relu()
        return (
            self.flat(F.max_pool2d(x, 2).flatten(1)),
            self.pooled(F.adaptive_avg_pool2d(x, 1).flatten(1)),
            F.hardswish(x),
        )


@pytest.fixture(scope="module")
def made() -> dict[str, Lowered]:
    first = lowered(Network(), normal_inputs(IMAGE), target=TARGETS[0])
    second = lowered(first.module, first.inputs, target=TARGETS[1], graph=first.graph)
    return {"litert_ref": first, "litert_xnnpack": second}


def exported(made: Lowered, folder: Path, **options: Any) -> Path:
    path = folder / "model.tflite"
    hs.export(made.program, path, **options)
    return path


@pytest.mark.parametrize("io", ["float", "int8"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_network_is_exact(made: dict[str, Lowered], target: str, io: str, tmp_path: Path) -> None:
    this = made[target]
    path = exported(this, tmp_path, io=io)
    verdict = hs.verify(this.program, path, this.samples())
    assert verdict.status is hs.Status.EXACT, str(verdict)
    assert verdict.integer_in_runtime == 1
    assert all(report.comparable for report in verdict.sites)
    assert {report.site for report in verdict.sites} >= set(this.program.sites)


def test_ends_are_real_values_or_codes(made: dict[str, Lowered], tmp_path: Path) -> None:
    this = made["litert_ref"]
    for io, dtype in (("float", np.float32), ("int8", np.int8)):
        opened = ReferenceKernels(exported(this, tmp_path, io=io)).interpreter
        ends = [*opened.get_input_details(), *opened.get_output_details()]
        assert {end["dtype"] for end in ends} == {dtype}
        assert opened.get_signature_list() == {
            "serving_default": {"inputs": ["x"], "outputs": ["output_0", "output_1", "output_2"]}
        }
        (given,) = opened.get_input_details()
        assert given["shape"].tolist() == [1, 9, 9, 3], "channels last"
        kinds = {detail["op_name"] for detail in opened._get_ops_details()}
        assert "TRANSPOSE" not in kinds
        assert ("QUANTIZE" in kinds) == (io == "float")


def test_xnnpack_takes_the_whole_network(made: dict[str, Lowered], tmp_path: Path) -> None:
    path = exported(made["litert_xnnpack"], tmp_path)
    delegated = DefaultKernels(path).delegated()
    weights = {n for n in made["litert_xnnpack"].program.tensors if n.endswith(":weight")}
    assert weights <= delegated
    assert not ReferenceKernels(path).delegated()


def test_sites_come_in_the_order_of_the_program(made: dict[str, Lowered], tmp_path: Path) -> None:
    this = made["litert_ref"]
    found = ReferenceKernels(exported(this, tmp_path), ["stem:out"]).run(arrays(this.inputs(2, 0)))
    assert found["stem:out"].shape == (2, 6, 5, 5)
    assert found["stem:out"].dtype == np.int8
    assert found["output_0"].shape == (2, 5)


def test_layouts_go_both_ways() -> None:
    values = np.arange(2 * 3 * 4).reshape(1, 2, 3, 4)
    layout = Layout(values.shape, values.shape, channels_last(4), 0)
    assert layout.file_shape == (1, 3, 4, 2)
    assert np.array_equal(layout.to_file(values), values.transpose(0, 2, 3, 1))
    flat = Layout((1, 24), values.shape, channels_last(4), 0)
    for this, what in ((layout, values), (flat, values.reshape(1, 24))):
        assert np.array_equal(this.to_program(this.to_file(what)), what)


# What verify has to find

WRONG = {
    "litert_ref": {"conv": "float", "add": "twenty_bits"},
    "litert_xnnpack": {"conv": "double_rounding", "add": "double_rounding"},
}


def with_formula(program: hs.IntProgram, kind: str, formula: str) -> hs.IntProgram:
    ops = tuple(replace(op, formula=formula) if op.kind == kind else op for op in program.ops)
    return replace(program, ops=ops)


@pytest.mark.parametrize(
    ("target", "kind"), [(target, kind) for target, kinds in WRONG.items() for kind in kinds]
)
def test_a_wrong_formula_is_found(target: str, kind: str, tmp_path: Path) -> None:
    """On scales that are powers of two, where there are ties."""
    image = (3, 12, 12)
    module = {"conv": nn.Conv2d(3, 16, 3), "add": CallTwo(torch.add)}[kind]
    inputs = normal_inputs(image) if kind == "conv" else normal_inputs(image, image)
    this = lowered(module, inputs, target=target, edit=lambda plan: plan.edit("*", pow2=True))
    path = exported(this, tmp_path)
    assert hs.verify(this.program, path, this.samples()).status is hs.Status.EXACT
    wrong = with_formula(this.program, kind, WRONG[target][kind])
    verdict = hs.verify(wrong, path, this.samples(6))
    assert verdict.status is hs.Status.FAILED
    assert f": {kind}: rounding: another formula, one code apart" in verdict.cause


def test_the_kernels_of_the_other_target_are_found(
    made: dict[str, Lowered], tmp_path: Path
) -> None:
    path = exported(made["litert_ref"], tmp_path)
    other = replace(made["litert_ref"].program, target="litert_xnnpack")
    assert hs.verify(other, path, made["litert_ref"].samples(8)).status is hs.Status.FAILED


# What is refused


def test_options_of_the_writer_are_checked(made: dict[str, Lowered], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^io='int4': asked for one of 'float', 'int8'$"):
        exported(made["litert_ref"], tmp_path, io="int4")
    with pytest.raises(ExportError, match=r"^oi='int8': the writer of target 'litert_ref' has the "
                                          "options io$"):  # fmt: skip
        exported(made["litert_ref"], tmp_path, oi="int8")
    this = lowered(nn.Conv2d(3, 4, 1), normal_inputs(IMAGE))
    with pytest.raises(ExportError, match=r"the writer of target 'onnxruntime' has no options"):
        exported(this, tmp_path, io="int8")
    assert not list(tmp_path.iterdir())


def test_codes_outside_need_codes_at_the_ends(tmp_path: Path) -> None:
    module = seeded(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))
    this = lowered(module, normal_inputs((8,)), target="litert_ref", redraw=False)
    with pytest.raises(ExportError, match=r"^output: asked for io='int8', but a float operation"):
        exported(this, tmp_path, io="int8")


def test_a_weight_that_is_an_input_has_no_form(tmp_path: Path) -> None:
    """Its rows are samples, of which the file has one."""
    this = lowered(CallTwo(F.linear), normal_inputs((8,), (8,)), target="litert_ref")
    with pytest.raises(ProgramError, match=r"linear of .* reads several samples of a batch"):
        exported(this, tmp_path)


@pytest.mark.parametrize("function", [lambda x: x.sum(0), lambda x: x.softmax(0)])
def test_a_float_kernel_over_the_samples_is_refused(function: Any, tmp_path: Path) -> None:
    """It computes on one of them in the file, and what a float kernel makes is not compared."""
    made = lowered(
        CallTwo(lambda x, y: function(x + y)), normal_inputs((3, 4), (3, 4)), target=TARGETS[1]
    )
    with pytest.raises(ProgramError, match="reads several samples of a batch at once, and target"):
        exported(made, tmp_path)


def test_damaged_and_foreign_files_are_refused(made: dict[str, Lowered], tmp_path: Path) -> None:
    good = exported(made["litert_ref"], tmp_path).read_bytes()
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"")
    with pytest.raises(
        ExportError, match=r"bad\.tflite: not a complete .tflite file \(it is empty"
    ):
        ReferenceKernels(bad)
    for content in (b"TFL3", good[: len(good) // 2], good[:100], b"\x00" * 4000):
        bad.write_bytes(content)
        with pytest.raises(ExportError, match=r"bad\.tflite: LiteRT refuses it: "):
            ReferenceKernels(bad)
    with pytest.raises(ExportError, match=r"none\.tflite: it cannot be read \(No such file"):
        ReferenceKernels(tmp_path / "none.tflite")
    file = LiteRTFile()
    index = [file.tensor(name, (1, 4), "float32") for name in "xy"]
    file.operator("RELU", index[:1], index[1])
    file.sign({"x": index[0]}, {"y": index[1]})
    bad.write_bytes(file.to_bytes())
    with pytest.raises(ExportError, match=r"it has no metadata .* was it written by Halfstep\?"):
        ReferenceKernels(bad)


def test_the_file_of_another_program_is_refused(made: dict[str, Lowered], tmp_path: Path) -> None:
    this = lowered(Residual(), normal_inputs((3, 6, 6)), target="litert_ref")
    path = exported(made["litert_ref"], tmp_path)
    with pytest.raises(ExportError, match=r"it has no tensor .*; was it made from this program\?"):
        hs.verify(this.program, path, this.samples())


def test_inputs_that_do_not_fit_are_refused(made: dict[str, Lowered], tmp_path: Path) -> None:
    path = exported(made["litert_ref"], tmp_path)
    with pytest.raises(ExportError, match=r"LiteRT refuses the inputs"):
        ReferenceKernels(path).run([np.zeros((1, 3, 9, 8), np.float32)])
    with pytest.raises(DataError, match=r"x: asked for shape Nx3x9x9, found 1x3x9x8"):
        hs.verify(made["litert_ref"].program, path, [np.zeros((1, 3, 9, 8), np.float32)])


def test_a_missing_package_names_its_extra(
    made: dict[str, Lowered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported(made["litert_ref"], tmp_path)
    found = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("ai_edge_litert"):
            raise ImportError(name)
        return found(name, *arguments)

    for module in [name for name in sys.modules if name.startswith("ai_edge_litert")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    wanted = r"needs ai-edge-litert.*: pip install 'halfstep\[litert\]'"
    with pytest.raises(RuntimeUnavailableError, match=wanted):
        ReferenceKernels(path)
    with pytest.raises(RuntimeUnavailableError, match=wanted):
        exported(made["litert_ref"], tmp_path)


# From end to end


def test_quantize_saves_a_file_that_verifies_again(tmp_path: Path) -> None:
    from halfstep.saved import open_saved

    inputs = normal_inputs((3, 6, 6))
    batches = [inputs(4, seed) for seed in range(2)]
    result = hs.quantize(seeded(Residual()), batches, target="litert_xnnpack", verify_samples=4)
    assert result.verdict is not None and result.verdict.status is hs.Status.EXACT
    result.save(tmp_path / "out")
    saved = open_saved(tmp_path / "out")
    assert saved.artifact.name == "model.tflite"
    again = hs.verify(saved.program, saved.artifact, batches)
    assert again.status is hs.Status.EXACT, str(again)
    proof = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert proof["versions"]["ai-edge-litert"][0].isdigit()
    result.save(tmp_path / "out")  # what it wrote itself may be replaced
