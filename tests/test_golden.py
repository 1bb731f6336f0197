"""Golden files and the lock: what is in them, and what their checkers must reject."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from typer.testing import CliRunner
from typer.testing import Result as Ended

import halfstep as hs
from halfstep import cli
from halfstep.errors import DataError, ExportError, UnknownNameError
from halfstep.lock import LOCK, Lock
from halfstep.origin import DataHash
from halfstep.result import versions
from tests.broken.golden import DUMP_SPECIMENS, GOLDEN_SPECIMENS, LOCK_SPECIMENS
from tests.models import Residual, normal, seeded
from tests.pipeline import lowered, normal_inputs

COMPILER = shutil.which("cc")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wshadow"]
C99_PAGE = Path(__file__).parent.parent / "docs" / "c99.md"
IMAGES = [normal(4, 3, 6, 6), normal(4, 3, 6, 6, seed=1)]
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def result() -> hs.Result:
    return hs.quantize(seeded(Residual()), IMAGES, target="c99", verify_samples=0)


@pytest.fixture(scope="module")
def saved(result: hs.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "out"
    result.save(folder)
    return folder


@pytest.fixture(scope="module")
def golden(result: hs.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "golden"
    hs.write_golden(result.program, IMAGES, folder, samples=3)
    return folder


@pytest.fixture(scope="module")
def check_c(golden: Path) -> Path:
    assert COMPILER is not None
    program = golden.parent / "check"
    compile_it = [COMPILER, *STRICT, "-fsanitize=undefined,address", str(golden / "check.c")]
    subprocess.run([*compile_it, "-o", str(program)], check=True)
    return program


@pytest.fixture
def dumps(golden: Path, tmp_path: Path) -> Path:
    """What a device would dump that computes as the program does."""
    (tmp_path / "dumps").mkdir()
    for file in golden.glob("[0-9]*.bin"):
        shutil.copy(file, tmp_path / "dumps")
    return tmp_path / "dumps"


def run(*command: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)


def in_python(golden: Path, dumps: Path, *name: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, golden / "check.py", dumps, *name)


def halfstep(*arguments: object) -> Ended:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def read_back(folder: Path, entry: Any, samples: int) -> NDArray[Any]:
    """The values of a file in the order of the program, samples first."""
    values = np.fromfile(folder / entry["file"], np.dtype(entry["dtype"]).newbyteorder("<"))
    in_memory = [entry["shape"][axis] for axis in entry["order"]]
    back = np.argsort(entry["order"])
    return values.reshape(samples, *in_memory).transpose(0, *(1 + back))[:, 0]


# What is written


@pytest.mark.parametrize("target", ["c99", "c99_fixed", "onnxruntime", "reference"])
def test_files_hold_the_codes_of_the_engine(target: str, tmp_path: Path) -> None:
    made = lowered(Residual(), normal_inputs((3, 6, 6)), target=target)
    hs.write_golden(made.program, IMAGES, tmp_path / "golden", samples=5)
    index = json.loads((tmp_path / "golden" / "golden.json").read_text())
    x = torch.cat(IMAGES)[:5].numpy()
    found = hs.Engine(made.program).run([x], keep=made.program.sites)
    assert [site["name"] for site in index["sites"]] == list(made.program.sites)
    for site in index["sites"]:
        grid = made.program.grid(site["name"])
        values = read_back(tmp_path / "golden", site, 5)
        codes = values.astype(int) + int(grid.zero_point) - site["zero_point"]
        np.testing.assert_array_equal(codes, found.kept[site["name"]], site["name"])
        assert np.float32(site["scale"]) == grid.scale
        assert site["exact"]
    (entry,), (out,) = index["inputs"], index["outputs"]
    np.testing.assert_array_equal(read_back(tmp_path / "golden", entry, 5), x)
    np.testing.assert_array_equal(read_back(tmp_path / "golden", out, 5), found.outputs[0])


def test_the_two_indices_say_the_same(golden: Path) -> None:
    index = json.loads((golden / "golden.json").read_text())
    head, *lines = (golden / "golden.txt").read_text().splitlines()
    assert head == "halfstep golden 1"
    for line, site in zip(lines, index["sites"], strict=True):
        file, dtype, samples, values, exact, name = line.split(" ", 5)
        assert (file, dtype, name) == (site["file"], site["dtype"], site["name"])
        assert (int(samples), int(values), exact) == (3, np.prod(site["shape"]), "1")
        assert (golden / file).stat().st_size == 3 * int(values)


def test_inputs_are_named_and_order_is_that_of_execution(golden: Path) -> None:
    index = json.loads((golden / "golden.json").read_text())
    seen = {entry["name"] for entry in index["inputs"]}
    for site in [*index["sites"], *index["outputs"]]:
        assert set(site["inputs"]) <= seen, site["name"]
        seen.add(site["name"])
    (add,) = (site for site in index["sites"] if site["name"] == "add:out")
    assert sorted(add["inputs"]) == ["conv:out", "stem:out"]


def test_a_glob_keeps_the_numbers_of_files(result: hs.Result, golden: Path, tmp_path: Path) -> None:
    index = hs.write_golden(result.program, IMAGES, tmp_path / "some", samples=3, sites="*o*v:out")
    assert [(site.name, site.file) for site in index.sites] == [("conv:out", "002.bin")]
    assert (tmp_path / "some" / "002.bin").read_bytes() == (golden / "002.bin").read_bytes()
    with pytest.raises(UnknownNameError, match="unknown site 'convv:out': did you mean 'conv:out'"):
        hs.write_golden(result.program, IMAGES, tmp_path / "none", sites="convv:out")
    assert not (tmp_path / "none").exists()


def test_what_lies_behind_a_float_kernel_is_not_compared(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    made = lowered(module, normal_inputs((6,)))
    index = hs.write_golden(made.program, [normal(3, 6)], tmp_path / "golden")
    assert index.samples == 3, "all that there are"
    exact = {site.name: site.exact for site in index.sites}
    assert exact.pop("2:out") is exact.pop("1:out") is False
    assert set(exact.values()) == {True}
    (tmp_path / "dumps").mkdir()
    for name in exact:
        file = next(site.file for site in index.sites if site.name == name)
        shutil.copy(tmp_path / "golden" / file, tmp_path / "dumps")
    found = in_python(tmp_path / "golden", tmp_path / "dumps")
    assert found.returncode == 0
    assert "; 2 behind float kernels were not compared" in found.stdout


@pytest.mark.parametrize(
    ("data", "samples", "text"),
    [
        ([], 4, "the data has no batch"),
        ([normal(2, 3, 5, 6)], 4, "x: asked for shape Nx3x6x6, found 2x3x5x6"),
        ([normal(2, 3, 6, 6).double()], 4, "x: asked for float32, found float64"),
        ([normal(2, 3, 6, 6) * torch.nan], 4, "x:in: batch 0: it holds NaN or infinity"),
        (normal(2, 3, 6, 6), 4, "the data is one Tensor of shape"),
        (IMAGES, 0, "samples: asked for 1 or more, found 0"),
    ],
)
def test_data_that_is_refused(
    data: Any, samples: int, text: str, result: hs.Result, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=text):
        hs.write_golden(result.program, data, tmp_path / "golden", samples=samples)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_others_is_left_alone(result: hs.Result, tmp_path: Path) -> None:
    for _ in range(2):  # the second replaces the first
        hs.write_golden(result.program, IMAGES, tmp_path / "golden", samples=1)
    (tmp_path / "golden" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"files of others, such as notes\.txt, and the whole"):
        hs.write_golden(result.program, IMAGES, tmp_path / "golden")
    assert (tmp_path / "golden" / "notes.txt").read_text() == "mine"


# Checkers


@needs_compiler
def test_equal_dumps_are_accepted(golden: Path, dumps: Path, check_c: Path) -> None:
    for found in (in_python(golden, dumps), run(check_c, golden, dumps)):
        assert found.returncode == 0, found
        assert found.stdout.startswith("equal: 7 sites")


@needs_compiler
@pytest.mark.parametrize("name", DUMP_SPECIMENS)
def test_other_dumps_are_rejected(name: str, golden: Path, dumps: Path, check_c: Path) -> None:
    damage, site, words = DUMP_SPECIMENS[name]
    damage(dumps)
    for found in (in_python(golden, dumps), run(check_c, golden, dumps)):
        assert found.returncode == 1, found
        assert words in found.stdout
        assert "failed: 1 of 7 sites differ" in found.stdout
        assert f"\nfirst divergence: {site}" in found.stdout


@needs_compiler
@pytest.mark.parametrize("name", GOLDEN_SPECIMENS)
def test_damaged_golden_files_are_not_used(
    name: str, golden: Path, dumps: Path, check_c: Path, tmp_path: Path
) -> None:
    damage, in_py, in_c = GOLDEN_SPECIMENS[name]
    broken = tmp_path / "broken"
    shutil.copytree(golden, broken)
    damage(broken)
    found = in_python(broken, dumps)
    assert (found.returncode, found.stdout) == (2, "") and in_py in found.stderr
    found = run(check_c, broken, dumps)
    assert found.returncode == (2 if in_c else 1) and in_c in found.stderr


@needs_compiler
@pytest.mark.parametrize("what", ["no folder", "an empty folder", "a file"])
def test_no_dumps_at_all_are_told_alike(
    what: str, golden: Path, check_c: Path, tmp_path: Path
) -> None:
    dumps = tmp_path / "dumps"
    if what == "an empty folder":
        dumps.mkdir()
    elif what == "a file":
        dumps.write_text("codes")
    said = f"error: {dumps}: asked for a folder of the device's dumps, found none of them\n"
    for found in (in_python(golden, dumps), run(check_c, golden, dumps)):
        assert (found.returncode, found.stdout, found.stderr) == (2, "", said)


@needs_compiler
def test_no_golden_files_at_all_are_told_alike(golden: Path, check_c: Path, tmp_path: Path) -> None:
    shutil.copy(golden / "check.py", tmp_path)
    for found, index in (
        (in_python(tmp_path, golden), "golden.json"),
        (run(check_c, tmp_path, golden), "golden.txt"),
    ):
        said = f"error: {tmp_path / index}: it cannot be read (No such file or directory)\n"
        assert (found.returncode, found.stdout, found.stderr) == (2, "", said)


@needs_compiler
def test_one_file_is_compared_alone(golden: Path, dumps: Path, check_c: Path) -> None:
    DUMP_SPECIMENS["one code changed"][0](dumps)
    for name, code in (("002.bin", 1), ("001.bin", 0), ("900.bin", 2)):
        assert in_python(golden, dumps, name).returncode == code
        assert run(check_c, golden, dumps, name).returncode == code
    found = in_python(golden, dumps, "conv:out").stdout
    assert "first divergence: conv:out: its inputs stem:out were not compared" in found


def test_a_cause_is_said_where_all_inputs_are_equal(golden: Path, dumps: Path) -> None:
    DUMP_SPECIMENS["one code changed"][0](dumps)
    found = in_python(golden, dumps).stdout
    assert "its inputs stem:out are equal: the cause lies in this operation itself" in found
    index = json.loads((golden / "golden.json").read_text())
    mine, theirs = (read_back(f, index["sites"][2], 3) for f in (golden, dumps))
    ((place,),) = [np.argwhere(mine != theirs).tolist()]
    assert f"in sample {place[0]}, value 6 of it, at {[0, *place[1:]]}: golden" in found


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "mine", "theirs", "largest"),
    [
        ("int8", [-128, 0], [127, 0], 255),
        ("uint8", [0, 255], [0, 1], 254),
        ("int16", [-32768, 5], [32767, 5], 65535),
        ("uint16", [65535, 0], [0, 0], 65535),
        ("int32", [-(2**31), 1], [2**31 - 1, 1], 2**32 - 1),
        ("int64", [-(2**40), 1], [2**40, 1], 2**41),
        ("float32", [1.0, -1.5], [np.nextafter(np.float32(1), np.float32(2)), -1.5], 1),
        ("float32", [1e-45, 2.0], [-1e-45, 2.0], 2),
    ],
)
def test_every_type_is_read_as_it_is(
    dtype: str, mine: Any, theirs: Any, largest: int, golden: Path, check_c: Path, tmp_path: Path
) -> None:
    little = np.dtype(dtype).newbyteorder("<")
    for folder, values in (("a", mine), ("b", theirs)):
        (tmp_path / folder).mkdir()
        np.array(values, little).tofile(tmp_path / folder / "000.bin")
    index = json.loads((golden / "golden.json").read_text())
    (site,) = index["sites"][:1]
    digest = hashlib.sha256((tmp_path / "a" / "000.bin").read_bytes()).hexdigest()
    site |= {"dtype": dtype, "shape": [1, 1], "order": [0, 1], "sha256": digest}
    changed = {**index, "samples": 2, "sites": [site]}
    (tmp_path / "a" / "golden.json").write_text(json.dumps(changed))
    (tmp_path / "a" / "golden.txt").write_text(f"halfstep golden 1\n000.bin {dtype} 2 1 1 x:in\n")
    shutil.copy(golden / "check.py", tmp_path / "a")
    folders = tmp_path / "a", tmp_path / "b"
    for found in (in_python(*folders), run(check_c, *folders)):
        assert found.returncode == 1
        assert f"1 of 2 values differ, by at most {largest}; " in found.stdout


def firmware_dumps(model: Path, golden: Path, folder: Path) -> Path:
    """What the firmware test of docs/c99.md dumps, compiled with the model in C."""
    (code,) = re.findall(r"```c\n(#include <stdio\.h>.*?)```", C99_PAGE.read_text(), re.S)
    (folder / "firmware_test.c").write_text(code)
    shutil.copytree(golden, folder / "golden", dirs_exist_ok=True)
    (folder / "dumps").mkdir()
    sources = [folder / "firmware_test.c", *sorted(model.glob("*.c"))]
    flags = [*STRICT[:5], "-O1", "-DHALFSTEP_TRACE", f"-I{model}"]
    assert COMPILER is not None
    compiled = run(COMPILER, *flags, *sources, "-o", folder / "firmware_test")
    assert compiled.returncode == 0, compiled.stderr
    assert run(folder / "firmware_test", folder=folder).returncode == 0
    return folder / "dumps"


@needs_compiler
def test_the_firmware_test_of_the_page_finds_no_difference(
    saved: Path, golden: Path, check_c: Path, tmp_path: Path
) -> None:
    dumped = firmware_dumps(saved / "c99", golden, tmp_path)
    for found in (in_python(golden, dumped), run(check_c, golden, dumped)):
        assert (found.returncode, found.stderr) == (0, "")
        assert found.stdout.startswith("equal: 7 sites")


@needs_compiler
@pytest.mark.parametrize("layer", ["stem", "conv", "fc"])
def test_the_layer_of_a_corrupted_weight_is_named(
    layer: str, saved: Path, golden: Path, check_c: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "c99"
    shutil.copytree(saved / "c99", broken)
    data = broken / "model_data.c"
    head, start, rest = data.read_text().partition(f"model_{layer}_weight[")
    size, opened, values = rest.partition("{\n    ")
    first, comma, others = values.partition(",")
    flipped = -64 if int(first) > 0 else 64
    data.write_text(f"{head}{start}{size}{opened}{flipped}{comma}{others}")
    dumped = firmware_dumps(broken, golden, tmp_path)
    found = run(check_c, golden, dumped)
    assert found.returncode == 1
    assert f"first divergence: {layer}:out\n" in found.stdout
    found = in_python(golden, dumped)
    assert found.returncode == 1
    assert re.search(f"first divergence: {layer}:out: its inputs .* are equal", found.stdout)


# The lock


def test_two_runs_give_the_same_lock_and_files(
    result: hs.Result, saved: Path, golden: Path, tmp_path: Path
) -> None:
    arrays = [batch.numpy() for batch in IMAGES]
    again = hs.quantize(seeded(Residual()), arrays, target="c99", verify_samples=0)
    again.save(tmp_path / "out")
    assert (tmp_path / "out" / LOCK).read_bytes() == (saved / LOCK).read_bytes()
    hs.write_golden(again.program, arrays, tmp_path / "golden", samples=3)
    for file in golden.iterdir():
        assert (tmp_path / "golden" / file.name).read_bytes() == file.read_bytes(), file.name
    index = json.loads((golden / "golden.json").read_text())
    assert index["program"] == Lock.load(saved / LOCK).program


def test_a_lock_says_what_was_asked_and_read(tmp_path: Path) -> None:
    plan = lowered(Residual(), normal_inputs((3, 6, 6)), target="reference").plan
    for choices, said in (({"plan": plan}, "plan.yaml"), ({"weights": "int4"}, None)):
        made = hs.quantize(seeded(Residual()), IMAGES, target="reference", **choices)
        made.save(tmp_path / "out")
        lock = Lock.load(tmp_path / "out" / LOCK)
        assert (lock.target, lock.recipe, lock.artifact) == ("reference", "ptq", {})
        assert lock.choices == ({"plan": said} if said else choices)
        assert (lock.calibration["batches"], lock.calibration["samples"]) == (2, 8)
        assert lock.versions == versions()
        assert lock.seeds["adaround"] == 0
        assert lock.first_difference(tmp_path / "out") == ""


def test_data_that_no_recipe_read_is_not_in_the_lock() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    made = hs.quantize(seeded(module), IMAGES, recipe="dfq", verify_samples=8)
    assert made.origin is not None
    assert (made.origin.data.batches, made.origin.data.samples) == (0, 0)


@pytest.mark.parametrize("name", LOCK_SPECIMENS)
def test_what_is_not_as_locked_is_named(name: str, saved: Path, tmp_path: Path) -> None:
    damage, words = LOCK_SPECIMENS[name]
    shutil.copytree(saved, tmp_path / "out")
    damage(tmp_path / "out")
    assert words in Lock.load(saved / LOCK).first_difference(tmp_path / "out")
    found = halfstep("verify", tmp_path / "out", "--lock", saved / LOCK)
    assert found.exit_code == 1 and words in found.output
    np.savez(tmp_path / "data.npz", inputs=IMAGES[0].numpy())
    data = ["--data", tmp_path / "data.npz", "--golden", tmp_path / "golden"]
    found = halfstep("export", tmp_path / "out", *data)
    assert found.exit_code == 2
    assert not (tmp_path / "golden").exists()


def test_a_result_as_locked_is_accepted(saved: Path, tmp_path: Path) -> None:
    found = halfstep("verify", saved, "--lock", saved / LOCK)
    assert (found.exit_code, found.stdout) == (
        0,
        "lock: artifact, program and plan are the locked ones\n",
    )
    other = json.loads((saved / LOCK).read_text())
    other["versions"]["numpy"] = "1.0"
    (tmp_path / "lock.json").write_text(json.dumps(other))
    found = halfstep("verify", saved / "c99", "--lock", tmp_path / "lock.json")
    assert found.exit_code == 0
    assert f"lock: numpy: 1.0 made it, {np.__version__} is installed" in found.stdout
    found = halfstep("verify", saved)
    assert found.exit_code == 2 and "give --data to run it on, or a --lock" in found.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "a damaged lock"),
        ("[]", "asked for a lock of schema 1, found None"),
        ('{"schema": 2}', "asked for a lock of schema 1, found 2"),
        ('{"schema": 1}', r"a damaged lock \(it lacks 'artifact'\); save the result again"),
        ('{"schema": 1, "aa": 2}', r"a damaged lock \(it has an unknown 'aa'\); save"),
        ("plan", "plan: asked for files and their SHA-256"),
        ("versions", "versions: asked for names and values"),
    ],
)
def test_a_damaged_lock_is_refused(text: str, words: str, saved: Path, tmp_path: Path) -> None:
    whole = json.loads((saved / LOCK).read_text())
    damaged = json.dumps({**whole, text: ["x"]}) if text in whole else text
    (tmp_path / LOCK).write_text(damaged)
    with pytest.raises(DataError, match=words):
        Lock.load(tmp_path / LOCK)
    with pytest.raises(DataError, match=r"absent\.json: no lock \(No such file"):
        Lock.load(tmp_path / "absent.json")


def test_the_hash_of_data_is_that_of_its_numbers_in_order() -> None:
    def of(*batches: Any) -> str:
        hashed = DataHash()
        assert len(list(hashed.watch(iter(batches)))) == len(batches)
        return hashed.found().sha256

    x, y = IMAGES[0], torch.arange(4)
    same = of((x, y))
    assert same == of((x.numpy(), y.numpy())) == of([x.clone().requires_grad_(), [0, 1, 2, 3]])
    swapped = x.numpy().astype(">f4")
    assert same == of((swapped, y))
    assert of({"labels": y, "x": x}) == of({"x": x, "labels": y})
    others = [
        of((x, y), (x, y)),
        of((y, x)),
        of((x,)),
        of((x, y.flip(0))),
        of((x.flip(0), y)),
        of((x.double(), y)),
        of((x.reshape(4, 3, 36), y)),
        of((x[:2], y[:2]), (x[2:], y[2:])),
        of({"x": x, "labels": y}),
        of((x, None)),
        of((x, "names")),
    ]
    assert len({same, *others}) == len(others) + 1


# The command


def test_a_saved_result_is_exported(saved: Path, golden: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", inputs=torch.cat(IMAGES).numpy())
    data = ["--data", tmp_path / "data.npz", "--golden", tmp_path / "golden"]
    found = halfstep("export", saved, *data, "--samples", 3)
    assert (found.exit_code, found.stderr) == (0, "")
    assert found.stdout == f"7 sites of 3 samples written to {tmp_path / 'golden'}\n"
    for file in golden.iterdir():
        assert (tmp_path / "golden" / file.name).read_bytes() == file.read_bytes(), file.name
    for name in (LOCK, "plan.yaml"):
        assert (tmp_path / "golden" / name).read_bytes() == (saved / name).read_bytes()
    found = halfstep("export", saved, *data, "--sites", "conv:*", "--samples", 1)
    assert found.stdout.startswith("1 site of 1 sample written")
    for arguments, words in (
        ([saved, *data, "--sites", "nowhere"], "unknown site 'nowhere'"),
        ([tmp_path, *data], "no saved program"),
        ([saved, "--data", "absent.npz", *data[2:]], "absent.npz"),
    ):
        found = halfstep("export", *arguments)
        assert found.exit_code == 2 and words in found.stderr


def test_a_result_of_before_there_were_locks_is_exported(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "out")
    (tmp_path / "out" / LOCK).unlink()
    np.savez(tmp_path / "data.npz", inputs=IMAGES[0].numpy())
    data = ["--data", tmp_path / "data.npz", "--golden", tmp_path / "golden"]
    found = halfstep("export", tmp_path / "out", *data)
    assert found.exit_code == 0 and "without lock.json" in found.stdout
    assert not (tmp_path / "golden" / LOCK).exists()
