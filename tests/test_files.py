"""What a save that was broken off leaves behind is removed by the next one, and nothing else."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from halfstep.files import read_contents, size_of, write_contents, write_folder_atomically


def fill(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "file").write_text(text) and None


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def ended() -> int:
    """The number of a process that does not run any more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for text in ("first", "second"):
        write_folder_atomically(folder, fill(text))
        assert (folder / "file").read_text() == text
        assert names(tmp_path) == {"out"}
    umask = os.umask(0)
    os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask, "readable by whom the user lets read"


def test_an_interrupted_deletion_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    write_folder_atomically(folder, fill("first"))

    def interrupted(path: Path, ignore_errors: bool) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_folder_atomically(folder, fill("second"))
    assert (folder / "file").read_text() == "second"
    (leftover,) = names(tmp_path) - {"out"}
    assert (tmp_path / leftover / "old" / "file").read_text() == "first"
    write_folder_atomically(folder, fill("third"))
    assert names(tmp_path) == {"out"}


def test_what_a_killed_process_left_is_removed(tmp_path: Path, ended: int) -> None:
    (tmp_path / f".out.{ended}.abc_1.part" / "new").mkdir(parents=True)
    write_folder_atomically(tmp_path / "out", fill("text"))
    assert names(tmp_path) == {"out"}


def test_a_failed_save_removes_nothing(tmp_path: Path, ended: int) -> None:
    leftover = tmp_path / f".out.{ended}.abc.part" / "old"
    leftover.mkdir(parents=True)

    def fails(folder: Path) -> None:
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        write_folder_atomically(tmp_path / "out", fails)
    assert leftover.is_dir(), "it may hold the only copy of the previous result"


def test_what_others_still_write_stays(tmp_path: Path, ended: int) -> None:
    kept = {
        f".out.{os.getppid()}.abc.part",  # that process runs
        f".out2.{ended}.abc.part",  # of another folder
        f".out.{ended}.abc.def.part",  # of a folder out.<number>.abc
        f".out.{ended}.part",  # of a single file
        ".out.abc.def.part",
        ".out.old-123",
    }
    for name in kept:
        (tmp_path / name).mkdir()
    write_folder_atomically(tmp_path / "out", fill("text"))
    assert names(tmp_path) == {"out", *kept}


def test_contents_of_files_and_folders_are_read_and_written_back(tmp_path: Path) -> None:
    folder = {"a.c": b"int a;", "b.h": b""}
    write_contents(tmp_path / "model", folder)
    write_contents(tmp_path / "model.onnx", b"123")
    assert read_contents(tmp_path / "model") == folder
    assert read_contents(tmp_path / "model.onnx") == b"123"
    assert [size_of(contents) for contents in (folder, b"123")] == [6, 3]
