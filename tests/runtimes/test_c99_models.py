"""Whole networks in C, from a module to a verdict; what is refused, and by which name."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import DataError, ExportError, PlanError, RuntimeUnavailableError
from halfstep.export.c99.writer import export, runtime_files
from halfstep.images import Preprocessing
from halfstep.job import run_job
from halfstep.runtimes import c_compiler, cc
from halfstep.saved import open_saved
from halfstep.sources import load_data, load_model
from halfstep.verify import verify
from tests.models import Call, CallTwo, Residual, normal, seeded
from tests.pipeline import arrays, lowered, normal_inputs
from tests.runtimes.c99_builds import WARNINGS, differences, written

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
]
TARGETS = ("c99", "c99_fixed")
CIFAR10 = Path(__file__).parents[2] / "examples" / "cifar10"
every_target = pytest.mark.parametrize("target", TARGETS)


class Moves(nn.Module):
    """Every move between two convolutions, where images lie channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(8))
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2)
        self.tokens = nn.Linear(4, 4)
        self.mask = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.convs[0](x).relu(), 3, 2, 1)
        x = x + self.convs[1](F.pad(x, (1, 1, 0, 2), mode="reflect"))[:, :, :-2, 1:-1]
        n, c, h, w = x.shape
        shuffled = x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = self.convs[2](shuffled) - self.convs[3](x).sigmoid()
        tokens = F.gelu(self.tokens(x.flatten(2).transpose(1, 2)))
        x = x * tokens.transpose(1, 2).reshape(n, c, h, w) * (self.mask + 1)
        gate = F.hardsigmoid(self.convs[4](x.mean((2, 3), keepdim=True)))
        x = F.avg_pool2d(self.convs[5](x * gate), 3, 1, 1)
        x = torch.cat([self.up(x), F.interpolate(self.convs[6](x), scale_factor=2.0)], 1)
        return self.last(F.leaky_relu(x, 0.1))


class Means(nn.Module):
    """Means and sums of pixels, of channels and of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.mixed = nn.Conv2d(6, 4, 1)
        self.tokens = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        x = self.mixed(x * x.mean(1, keepdim=True) + x.mean(3, keepdim=True))
        tokens = self.tokens(x.flatten(2).transpose(1, 2))
        return tokens.mean(1), tokens.sum((1, 2)), x.sum(2), x.mean((1, 2), keepdim=True)


class Attention(nn.Module):
    """Two inputs, two outputs, products of activations and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 12)
        self.qkv = nn.Linear(12, 36)
        self.norm = nn.LayerNorm(12)
        self.out = nn.Linear(12, 7)

    def forward(self, ids: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.table(ids) + x)
        q, k, v = self.qkv(x).reshape(-1, 5, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q @ k.transpose(-2, -1)) / 6**0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(-1, 5, 12)
        return self.out(mixed), torch.tanh(mixed)


def ids_and_reals(n: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 11, (n, 5), generator=generator), normal(n, 5, 12, seed=seed)


@every_target
@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (Moves, normal_inputs((4, 12, 10))),
        (Attention, ids_and_reals),
        (Means, normal_inputs((3, 5, 7))),
    ],
    ids=["moves", "attention", "means"],
)
def test_a_network_gives_the_engine_s_codes(
    module: Any, inputs: Any, target: str, tmp_path: Path
) -> None:
    made = lowered(module(), inputs, target=target)
    folder = written(made.program, tmp_path)
    assert differences(made.program, arrays(inputs(3, 9)), folder) == {}
    verdict = verify(made.program, folder, made.samples())
    assert verdict.status == "exact"
    assert verdict.integer_in_runtime == 1.0


def test_the_trained_example_is_exact(tmp_path: Path) -> None:
    batches = load_data(f"{CIFAR10 / 'data.py'}:calibration", Preprocessing())
    images = next(iter(batches))[0]
    graph = hs.capture(load_model(f"{CIFAR10 / 'resnet.py'}:resnet20"), images)
    for target in TARGETS:
        model = hs.prepare(graph, hs.make_plan(graph, target, calibrator="minmax"))
        hs.calibrate(model, [images])
        program = hs.lower(model)
        folder = written(program, tmp_path / target)
        verdict = verify(program, folder, [images[:4]])
        assert verdict.status == "exact", str(verdict)
        assert verdict.samples == 4


def test_sums_have_the_codes_of_onnx_runtime(tmp_path: Path) -> None:
    """One convolution, the same grids but for 128: the float formula, emulated."""
    module = seeded(nn.Conv2d(3, 8, 3, padding=1))
    inputs = normal_inputs((3, 20, 20))
    signed = lowered(module, inputs, target="c99", redraw=False)
    unsigned = lowered(module, inputs, target="onnxruntime", redraw=False)
    x = arrays(inputs(6, 4))
    in_c = cc.CModel(written(signed.program, tmp_path), signed.program.sites).run(x)
    hs.export(unsigned.program, tmp_path / "model.onnx")
    from halfstep.runtimes.ort import OnnxRuntimeModel

    in_ort = OnnxRuntimeModel(tmp_path / "model.onnx", unsigned.program.sites).run(x)
    site = signed.program.sites[-1]
    np.testing.assert_array_equal(in_c[site].astype(int) + 128, in_ort[site].astype(int))


@pytest.mark.parametrize("weights", ["int3_narrow", "int4_narrow", "int2_narrow", "int6_narrow"])
def test_weights_take_the_bits_of_their_type(weights: str, tmp_path: Path) -> None:
    made = lowered(Residual(), normal_inputs((3, 8, 8)), target="c99", weights=weights)
    folder = written(made.program, tmp_path)
    assert differences(made.program, arrays(made.inputs(2, 3)), folder, ("-O1",)) == {}
    rom = json.loads((folder / "cost.json").read_text())["rom"]["weights"]
    bits = {"int2_narrow": 2, "int6_narrow": 8}.get(weights, 4)
    rows = {27: 4, 36: 4, 4: 5}  # values in a row: rows
    assert rom == sum(n * -(-length * bits // 8) for length, n in rows.items())


# Files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = lowered(Moves(), normal_inputs((4, 12, 10)), target="c99")
    path = tmp_path_factory.mktemp("files") / "net"
    hs.export(made.program, path, name="Key-word spotter")
    return path


def test_files_have_the_sanitized_name(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    model = {f"key_word_spotter{end}" for end in (".c", ".h", "_data.c", "_data.h")}
    assert names == model | runtime_files().keys() | {"sites.json", "cost.json", "cost.md"}
    header = (folder / "key_word_spotter.h").read_text()
    assert "void key_word_spotter_run(const int8_t *x, int8_t *output);" in header
    assert "x: 12 (height) x 10 (width) x 4 (channels), int8_t" in header
    assert re.search(r"#define KEY_WORD_SPOTTER_X_SCALE 0x1\.\w+p-\d+f /\* 0\.\d+ \*/", header)


def test_a_name_without_letters_is_refused(tmp_path: Path) -> None:
    made = lowered(nn.Linear(3, 2), normal_inputs((3,)), target="c99")
    with pytest.raises(ExportError, match=r"name '--': asked for a name with a letter or a digit"):
        export(made.program, tmp_path / "net", name="--")
    assert not (tmp_path / "net").exists()


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    made = lowered(nn.Linear(3, 2), normal_inputs((3,)), target="c99")
    words = "prefix='a': the writer of target 'c99' has the options name"
    with pytest.raises(ExportError, match=words):
        hs.export(made.program, tmp_path / "net", prefix="a")
    made = lowered(nn.Linear(3, 2), normal_inputs((3,)))
    with pytest.raises(ExportError, match="the writer of target 'onnxruntime' has no options"):
        hs.export(made.program, tmp_path / "net", name="a")


def test_integer_sources_have_no_floats_and_no_allocation(folder: Path, tmp_path: Path) -> None:
    assert cc.floats_in(folder) == []
    for file in folder.glob("*.[ch]"):
        code = re.sub(r"/\*.*?\*/|#ifdef HALFSTEP_FLOAT.*?#endif", "", file.read_text(), flags=re.S)
        found = re.findall(r"\b(float|double|malloc|calloc|free|\d+\.\d+)\b", code)
        assert found == [], file.name
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    file = broken / "halfstep_pool.c"
    file.write_text(file.read_text() + "\nfloat half(int x);\n")
    assert cc.floats_in(broken) == ["halfstep_pool.c"]
    assert cc.CModel(folder).integer_kernel_of(["a"]) == {"a": True}


def test_the_compiler_makes_no_floating_point_instructions(folder: Path, tmp_path: Path) -> None:
    """Without the registers of floats, the compiler refuses whatever needs one."""
    flags = ["-std=c99", "-O2", *WARNINGS, "-mgeneral-regs-only", "-c"]
    asked = [c_compiler.compiler(), "-mgeneral-regs-only", "-E", "-"]
    known = subprocess.run(asked, input=b"", capture_output=True, check=False).returncode == 0
    if not known:
        pytest.skip("this compiler does not know -mgeneral-regs-only")
    for file in folder.glob("*.c"):
        compile_it = [
            c_compiler.compiler(),
            *flags,
            str(file),
            "-o",
            str(tmp_path / f"{file.stem}.o"),
        ]
        assert subprocess.run(compile_it, check=False).returncode == 0, file.name
    if shutil.which("objdump"):
        disassemble = ["objdump", "-d", *map(str, tmp_path.glob("*.o"))]
        text = subprocess.run(disassemble, capture_output=True, text=True, check=True).stdout
        assert "imul" in text
        assert not re.search(r"%[xyz]mm|\bf(ld|mul|add)|__(add|mul|div)[sd]f3", text)


def test_the_cost_is_counted(folder: Path) -> None:
    cost = json.loads((folder / "cost.json").read_text())
    header = (folder / "key_word_spotter.h").read_text()
    assert f"ARENA_BYTES {cost['arena']}\n" in header
    assert cost["live"] <= cost["arena"] <= 1.5 * cost["live"]
    assert cost["totals"]["macs"] == sum(layer["macs"] for layer in cost["layers"]) > 0
    assert "cycles, estimated" in (folder / "cost.md").read_text()
    assert 1000 < cc.code_bytes(folder) < 100_000


def test_a_damaged_folder_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not a complete model in C"):
        cc.CModel(tmp_path)
    with pytest.raises(ExportError, match="it has no site nowhere; was it made from this program"):
        cc.CModel(folder, ["nowhere"])
    with pytest.raises(ExportError, match=r"x: asked for samples of shape \[4, 12, 10\], found"):
        cc.CModel(folder).run([np.zeros((2, 4, 3, 3), np.float32)])
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "cost.json").write_text('{"totals": {}}')
    with pytest.raises(ExportError, match=r"broken/cost.json: it says nothing of cycles; export"):
        cc.CModel(broken)
    (broken / "sites.json").write_text('{"schema": 1}')
    with pytest.raises(ExportError, match=r"sites\.json: asked for schema 2, found 1; export"):
        cc.CModel(broken)
    with pytest.raises(ExportError, match="asked for 1 inputs, found 2"):
        cc.CModel(folder).run([np.zeros((2, 4, 12, 10), np.float32)] * 2)


class Unread(nn.Module):
    """The second of three inputs is read, or none."""

    def __init__(self, read: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.read = read
        self.register_buffer("constant", torch.ones(1, 8))

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        del x, z
        return self.linear(y if self.read else self.constant)


@every_target
def test_inputs_that_nothing_reads_are_no_arguments(target: str, tmp_path: Path) -> None:
    data = [tuple(normal(2, size, seed=seed) for size in (3, 8, 2)) for seed in range(2)]
    result = hs.quantize(seeded(Unread(read=True)), data, target=target)
    assert result.verdict is not None and result.verdict.status is hs.Status.EXACT
    result.save(tmp_path / "out")
    header = (tmp_path / "out" / "c99" / "model.h").read_text()
    assert "void model_run(const int8_t *y, int8_t *output);" in header
    assert " * x is no argument: nothing reads it." in header


def test_a_model_that_reads_no_input_is_refused() -> None:
    data = [tuple(normal(2, size) for size in (3, 8, 2))]
    with pytest.raises(ExportError, match="x, y, z: nothing reads them, so that the outputs are"):
        hs.quantize(seeded(Unread(read=False)), data, target="c99")


def test_what_does_not_compile_is_named_by_its_own_file(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    manifest = (broken / "sites.json").read_text()
    prefix = json.loads(manifest)["name"]
    for name, text, said in (
        ("halfstep_conv.c", "int", "/halfstep_conv.c: {} refuses it: .*error"),
        (f"{prefix}.c", f'#include "{prefix}.h"\n', ": {} refuses it: .*undefined reference"),
        (
            "sites.json",
            manifest.replace('"x"', '"9"'),
            ": the program around the model: {} refuses",
        ),
    ):
        right = (broken / name).read_text()
        (broken / name).write_text(text)
        compiler = re.escape(c_compiler.compiler())
        with pytest.raises(ExportError, match=f"^{broken}{said.format(compiler)}") as raised:
            cc.CModel(broken)
        assert f"{tempfile.gettempdir()}/tmp" not in str(raised.value)
        (broken / name).write_text(right)


def test_a_model_that_never_ends_is_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = tmp_path / "endless"
    shutil.copytree(folder, endless)
    prefix = json.loads((endless / "sites.json").read_text())["name"]
    model = endless / f"{prefix}.c"
    called = model.read_text().replace(
        "    memcpy(", "    for (volatile int i = 1; i;) {}\n    memcpy("
    )
    model.write_text(called)
    monkeypatch.setattr(cc, "_START_SECONDS", 0.5)
    said = f"^{endless}: the compiled model did not end: asked for 2 samples within . seconds"
    with pytest.raises(ExportError, match=said):
        cc.CModel(endless).run([np.zeros((2, 4, 12, 10), np.float32)])
    assert cc.CModel(folder).run([np.zeros((2, 4, 12, 10), np.float32)])


def test_the_header_says_what_its_conversions_are_linked_with(folder: Path) -> None:
    header = (folder / "key_word_spotter.h").read_text()
    assert "Compile with\n * -DHALFSTEP_FLOAT, and link with -lm. */" in header


def test_a_missing_compiler_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RuntimeUnavailableError, match="there is no no-such-compiler: install gcc"):
        cc.CModel(folder)


# Plans and results


@pytest.mark.parametrize(
    ("module", "shape", "reason"),
    [
        (
            nn.Sequential(nn.Linear(8, 1025), nn.LayerNorm(1025)),
            (8,),
            "1: a layer normalization of",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.PReLU(3)),
            (3, 4, 4),
            "1: no formula on integers for it; take leaky_relu, with one constant slope. Change",
        ),
        (Call(lambda x: x.softmax(-1)), (1024,), "a softmax of 1024 values has a sum"),
        (Call(lambda x: x.softmax(0)), (4,), "a softmax over the samples of a batch"),
        (Call(lambda x: x.mean(0)), (4,), "a mean over the samples of a batch has no kernel"),
        (Call(lambda x: x.sum((0, 1))), (4,), "a sum over the samples of a batch has no kernel"),
        (
            Call(lambda x: x.mean((1, 2))),
            (2053, 4103),
            "a mean of more than 8421504 values may leave 32 bits",
        ),
    ],
    ids=[
        "layer_norm",
        "prelu",
        "long softmax",
        "softmax over the batch",
        "mean over the batch",
        "sum over the batch",
        "long mean",
    ],
)
@every_target
def test_what_integers_cannot_is_refused_by_name(
    module: nn.Module, shape: tuple[int, ...], reason: str, target: str
) -> None:
    graph = hs.capture(seeded(module), normal(2, *shape))
    with pytest.raises(PlanError, match=rf"target '{target}' runs integers only, but .*{reason}"):
        hs.make_plan(graph, target)


def test_a_refused_operation_is_named_with_its_line_and_what_to_take_instead() -> None:
    def forward(x: Tensor) -> Tensor:
        return x / x

    line = forward.__code__.co_firstlineno + 1
    graph = hs.capture(Call(forward), normal(2, 3, 4, 5))
    with pytest.raises(PlanError) as raised:
        hs.make_plan(graph, "c99")
    assert str(raised.value) == (
        f"target 'c99' runs integers only, but div ({__file__}, line {line}): no formula on "
        "integers for it; take a product with the reciprocal, where that is a constant. Change "
        "them in the model, capture a part without them (capture(..., only=...)), or take a "
        "target that leaves them in float, such as 'onnxruntime'"
    )


def test_products_that_repeat_some_batches_are_refused() -> None:
    graph = hs.capture(CallTwo(lambda a, b: a @ b), (normal(2, 3, 2, 4, 5), normal(2, 3, 1, 5, 6)))
    with pytest.raises(PlanError, match="repeats a part of its batches has no kernel"):
        hs.make_plan(graph, "c99")


def test_a_program_with_floats_is_refused(tmp_path: Path) -> None:
    made = lowered(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), normal_inputs((8,)))
    with pytest.raises(ExportError, match=r"plan for a target|Plan for a target"):
        export(made.program, tmp_path / "net")


def test_a_result_is_saved_and_verified_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = normal(8, 3, 6, 6)
    out = tmp_path / "out"
    model = seeded(Residual())
    for _ in range(2):  # the second replaces the first
        assert run_job(model, [images], None, out, 4, quiet=False, target="c99") == 0
    printed = capsys.readouterr().out
    assert "exact: 0 of" in printed
    assert re.search(r"code: [\d,]+ bytes, for this machine with -Os", printed)
    assert "- RAM: " in printed
    for path in (out, out / "c99"):
        opened = open_saved(path)
        assert opened.artifact == out / "c99"
        assert verify(opened.program, opened.artifact, [images]).status == "exact"
    shutil.rmtree(out / "c99")
    with pytest.raises(DataError, match="it is missing from the saved folder"):
        open_saved(out)
    (out / "c99").mkdir()
    (out / "c99" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="it holds files of others"):
        run_job(model, [images], None, out, 4, quiet=True, target="c99")


def test_a_module_may_have_any_letters(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("größe", nn.Linear(3, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.get_submodule("größe")(x)  # type: ignore[no-any-return]

    made = lowered(Named(), normal_inputs((3,)), target="c99")
    hs.export(made.program, tmp_path / "net")
    verdict = hs.verify(made.program, tmp_path / "net", made.samples(1))
    assert verdict.status is hs.Status.EXACT
