"""MODEL and DATA of the command line: what is loaded is what the files hold, or a clear error."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from halfstep.errors import DataError, HalfstepError, UnknownNameError
from halfstep.images import ArrayBatches, FolderBatches, Preprocessing
from halfstep.sources import load_data, load_model, samples_of

INF = float("inf")
HALF = Preprocessing(mean=(0.5,), std=(0.25,), batch_size=4)
PLAIN = Preprocessing(batch_size=4)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (10, 3, 6, 6), dtype=np.uint8)
LABELS = np.arange(10) % 3
CIFAR10 = Path(__file__).parent.parent / "examples" / "cifar10"

MODULE = """
import torch
from sibling import WIDTH

def model():
    return torch.nn.Linear(WIDTH, 1)

def lazy_model():
    import lazy_sibling
    return lazy_sibling.model

def batches():
    return [torch.zeros(2, WIDTH), torch.ones(1, WIDTH)]

def failing():
    raise RuntimeError("no luck")

def number():
    return 3

constant = 3
instance = torch.nn.Linear(3, 2)
ready = [torch.zeros(2, 3)]
"""


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "sibling.py").write_text("WIDTH = 5\n")
    (tmp_path / "lazy_sibling.py").write_text("import torch\nmodel = torch.nn.ReLU()\n")
    (tmp_path / "net.py").write_text(MODULE)
    yield tmp_path / "net.py"
    for name in ("sibling", "lazy_sibling", "net"):  # the next test has files of its own
        sys.modules.pop(name, None)


def test_a_model_from_a_file_finds_the_modules_beside_it(module: Path) -> None:
    path = list(sys.path)
    model = load_model(f"{module}:model")
    assert isinstance(model, nn.Linear) and model.in_features == 5
    assert isinstance(load_model(f"{module}:lazy_model"), nn.ReLU)
    assert sys.path == path


def test_what_is_a_model_or_data_already_is_taken_as_it_is(module: Path) -> None:
    model = load_model(f"{module}:instance")
    assert isinstance(model, nn.Linear) and model.in_features == 3
    (batch,) = load_data(f"{module}:ready", PLAIN)
    assert batch.shape == (2, 3)


def test_a_file_is_imported_once(module: Path) -> None:
    load_model(f"{module}:model")
    module.write_text("raise SystemError")
    load_model(f"{module}:model")


def test_a_model_from_a_module_of_the_working_folder(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(module.parent)
    assert isinstance(load_model("net:model"), nn.Linear)


def test_weights_are_loaded(module: Path, tmp_path: Path) -> None:
    weights = {"weight": torch.arange(5.0)[None], "bias": torch.ones(1)}
    save_file(weights, tmp_path / "w.safetensors")
    model = load_model(f"{module}:model", tmp_path / "w.safetensors")
    assert torch.equal(model.state_dict()["weight"], weights["weight"])


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        (":modell", UnknownNameError, "unknown callable of .*net.py 'modell': .*mean 'model'"),
        (":failing", DataError, r"it failed: RuntimeError: no luck \(.*net.py, line 16\)"),
        (":number", DataError, "asked for a torch.nn.Module, found int"),
        (":constant", DataError, "asked for a torch.nn.Module, found int"),
        ("", DataError, "MODEL .*net.py: write package.module:callable or"),
        (":", DataError, "write package.module:callable or"),
    ],
)
def test_a_model_that_cannot_be_loaded(
    name: str, error: type[HalfstepError], text: str, module: Path
) -> None:
    with pytest.raises(error, match=text):
        load_model(f"{module}{name}")


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("absent.py:model", "MODEL absent.py:model: there is no file absent.py"),
        ("absent_module:model", "it cannot be imported: ModuleNotFoundError: .*absent_module"),
    ],
)
def test_a_module_that_is_not_there(where: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        load_model(where)


def test_a_file_that_fails_to_import_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("\nimport absent_module\n")
    for _ in range(2):
        with pytest.raises(DataError, match=r"ModuleNotFoundError: .*broken.py, line 2\)"):
            load_model(f"{file}:model")


def test_data_from_a_callable(module: Path) -> None:
    first, second = load_data(f"{module}:batches", PLAIN)
    assert first.shape == (2, 5) and second.sum() == 5
    with pytest.raises(DataError, match=r"number: the data is of type int: asked for an iterable"):
        load_data(f"{module}:number", PLAIN)


def test_data_that_is_not_there() -> None:
    with pytest.raises(DataError, match="DATA images: there is no such folder; give an image"):
        load_data("images", PLAIN)
    with pytest.raises(DataError, match=r"absent.npz: there is no such file"):
        load_data("absent.npz", PLAIN)


# Arrays


def write(folder: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
    return folder / "data.npz"


def test_uint8_images_are_normalized(tmp_path: Path) -> None:
    preprocessing = Preprocessing(None, (0.5, 0.25, 0.0), (0.25, 0.5, 1.0), 4)
    data = load_data(str(write(tmp_path, images=IMAGES, labels=LABELS)), preprocessing)
    assert isinstance(data, ArrayBatches) and len(data) == 3
    for _ in range(2):  # it can be read again
        found = list(data)
        assert [len(inputs) for inputs, _ in found] == [4, 4, 2]
        images = np.concatenate([inputs for inputs, _ in found])
        assert images.dtype == np.float32
        for channel, (mean, std) in enumerate(((0.5, 0.25), (0.25, 0.5), (0.0, 1.0))):
            wanted = (IMAGES[:, channel].astype(np.float64) / 255 - mean) / std
            assert np.abs(images[:, channel] - wanted).max() < 1e-6
        assert np.array_equal(np.concatenate([labels for _, labels in found]), LABELS)


def test_float_inputs_are_taken_as_they_are(tmp_path: Path) -> None:
    inputs = RNG.normal(size=(5, 7)).astype(np.float32)
    batches = list(load_data(str(write(tmp_path, inputs=inputs)), PLAIN))
    assert all(len(batch) == 1 for batch in batches)
    assert np.array_equal(np.concatenate([batch[0] for batch in batches]), inputs)


@pytest.mark.parametrize(
    ("arrays", "preprocessing", "text"),
    [
        ({"images": IMAGES}, PLAIN, "images in uint8 need --mean and --std"),
        ({"images": IMAGES}, Preprocessing(mean=(0.0, 0.1), std=(1.0,)), "mean has 2 values for"),
        ({"images": IMAGES.transpose(0, 2, 3, 1)}, HALF, r"\(N, channels, height, width\), found"),
        ({"images": IMAGES[0]}, HALF, r"\(N, channels, height, width\), found \(3, 6, 6\)"),
        ({"images": IMAGES[:0]}, HALF, "there is no sample in it"),
        ({"images": IMAGES.astype(np.float64)}, PLAIN, "float32 or uint8, found float64"),
        ({"images": IMAGES.astype(np.float32)}, HALF, "as they are, without --mean and --std"),
        ({"pictures": IMAGES}, HALF, r"array images or inputs, found \['pictures'\]"),
        ({"images": IMAGES, "labels": LABELS[:9]}, HALF, "asked for 10 integers, found int64 of"),
        ({"images": IMAGES, "labels": LABELS * 1.0}, HALF, "10 integers, found float64"),
        ({"images": np.array([{}], object)}, HALF, "not a complete .npz file of plain arrays"),
    ],
)
def test_arrays_that_do_not_fit(
    arrays: dict[str, NDArray[Any]], preprocessing: Preprocessing, text: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=text):
        list(load_data(str(write(tmp_path, **arrays)), preprocessing))


def test_a_truncated_file_of_arrays(tmp_path: Path) -> None:
    path = write(tmp_path, images=IMAGES)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"not a complete .npz file"):
        load_data(str(path), HALF)


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 0}, {"size": 0}, {"std": (1.0, 0.0)}, {"std": (INF,)}, {"mean": (INF,)}],
)
def test_impossible_preprocessing(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"1 or more|a std is positive|a mean is finite"):
        Preprocessing(**changes)


# Image folders


def write_image(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        write_image(tmp_path / f"{index}.png", IMAGES[index])
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_data(str(tmp_path), HALF)
    assert isinstance(data, FolderBatches) and len(data) == 1
    ((images,),) = list(data)
    assert np.array_equal(images, HALF.normalize(IMAGES[:3], tmp_path))


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    (tmp_path / "b_without_images").mkdir()
    for index, name in enumerate(("c", "a", "c", "c", "a", "c")):
        write_image(tmp_path / name / f"{index}.png", IMAGES[index])
    first, second = load_data(str(tmp_path), HALF)
    assert np.array_equal(first[1], [0, 0, 2, 2]) and np.array_equal(second[1], [2, 2])
    order = [1, 4, 0, 2, 3, 5]
    images = np.concatenate([first[0], second[0]])
    assert np.array_equal(images, HALF.normalize(IMAGES[order], tmp_path))


def test_images_are_resized_by_the_shorter_side_and_cropped_around_the_centre(
    tmp_path: Path,
) -> None:
    wide = np.zeros((3, 4, 12), np.uint8)
    wide[:, :, 4:8] = np.array([255, 128, 0], np.uint8)[:, None, None]
    write_image(tmp_path / "wide.png", wide)
    write_image(tmp_path / "tall.png", wide.transpose(0, 2, 1))
    for size in (4, 2):
        ((images,),) = list(load_data(str(tmp_path), Preprocessing(size, (0.0,), (1.0,))))
        assert images.shape == (2, 3, size, size)
        # Of the coloured square in the middle, what is not blurred with the black beside it.
        inside = images[:, :, 1:-1, 1:-1] if size == 4 else images.mean((2, 3), keepdim=True)
        colour = torch.tensor([255, 128, 0])[:, None, None] / 255
        assert (inside - colour).abs().max() < (1e-6 if size == 4 else 0.2)


def damaged(folder: Path) -> None:
    write_image(folder / "a.png", IMAGES[0])
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:60])


def several_sizes(folder: Path) -> None:
    write_image(folder / "a.png", IMAGES[0])
    write_image(folder / "b.png", IMAGES[0, :, :4])


def both(folder: Path) -> None:
    write_image(folder / "a.png", IMAGES[0])
    write_image(folder / "class" / "b.png", IMAGES[1])


@pytest.mark.parametrize(
    ("fill", "text"),
    [
        (damaged, "a.png: not a complete image"),
        (several_sizes, "images of several sizes; give one with --size"),
        (both, "sub-folders with images, found both"),
        (lambda folder: None, "found neither; images end in .bmp, .jpeg"),
    ],
)
def test_folders_that_do_not_fit(fill: Callable[[Path], None], text: str, tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(DataError, match=text):
        list(load_data(str(tmp_path), HALF))


# Samples to verify on


X = torch.arange(12.0).reshape(6, 2)
MASK = torch.tensor([True, False] * 3)
INPUTS = ("x", "mask")


def test_samples_are_cut_to_the_limit() -> None:
    data = [(X[:4], MASK[:4], torch.arange(4)), (X[4:], MASK[4:], torch.arange(2)), None]
    first, second = samples_of(data, INPUTS, 5)
    assert [len(value) for value in first] == [4, 4, 4]
    assert np.array_equal(second[0], X[4:5]) and np.array_equal(second[1], MASK[4:5])
    assert np.array_equal(second[2], [0])


def test_samples_without_one_label_each_have_none() -> None:
    (whole,) = samples_of([{"x": X, "mask": MASK, "labels": torch.eye(6)}], INPUTS)
    assert len(whole) == 2


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ((X / 0, MASK), "x:in: batch 1: it holds NaN or infinity"),
        ((X,), "batch 1: asked for 2 inputs"),
    ],
)
def test_samples_that_do_not_fit(batch: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        list(samples_of([(X, MASK), batch], INPUTS))


# The example


def test_the_example_provides_what_the_demo_asks_for() -> None:
    model = load_model(f"{CIFAR10 / 'resnet.py'}:resnet20")
    calibration = list(load_data(f"{CIFAR10 / 'data.py'}:calibration", PLAIN))
    test = list(load_data(f"{CIFAR10 / 'data.py'}:test", PLAIN))
    assert sum(len(images) for images, _ in calibration) == 256
    assert sum(len(images) for images, _ in test) == 1000
    assert np.array_equal(np.bincount(np.concatenate([labels for _, labels in test])), [100] * 10)
    images, labels = test[0]
    with torch.inference_mode():
        assert (model(images).argmax(1) == labels).float().mean() > 0.5
