"""Folders that are nearly right: dumps of a device, golden files and saved results."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

Damage = Callable[[Path], object]


def _change_code(folder: Path) -> None:
    file = folder / "002.bin"
    codes = np.fromfile(file, np.int8)
    codes[150] += 1 if codes[150] < 127 else -1
    codes.tofile(file)


def _cut(name: str, size: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def _append(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b"\n")


def _remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


# A device's dumps of ``Residual`` for c99, three samples: name -> damage, site, words of both.
DUMP_SPECIMENS: dict[str, tuple[Damage, str, str]] = {
    "one code changed": (
        _change_code,
        "conv:out",
        "1 of 432 values differ, by at most 1; the first in sample 1, value 6 of it",
    ),
    "missing": (_remove("003.bin"), "add:out", "the device dumped no such file"),
    "of fewer samples": (
        _cut("004.bin", 8),
        "global_avg_pool:out",
        "asked for 12 bytes (3 samples of ",
    ),
    "truncated": (_cut("001.bin", 431), "stem:out", "found 431"),
    "longer": (_append("006.bin"), "fc:out", "found 16"),
    "empty": (_cut("005.bin", 0), "reshape:out", "found 0"),
}

# Golden files: name -> damage, words of check.py, words of check.c (empty where C cannot see it).
GOLDEN_SPECIMENS: dict[str, tuple[Damage, str, str]] = {
    "missing": (_remove("002.bin"), "002.bin: the golden file is missing", "002.bin: the golden"),
    "truncated": (_cut("002.bin", 9), "002.bin: the golden file was changed", "002.bin: the gold"),
    "one code changed": (_change_code, "002.bin: the golden file was changed", ""),
    "no index": (
        lambda folder: [_remove(name)(folder) for name in ("golden.json", "golden.txt")],
        "golden.json: it cannot be read",
        "golden.txt: it cannot be read (No such",
    ),
    "another schema": (
        lambda folder: [
            (folder / name).write_text('{"schema": 9}') for name in ("golden.json", "golden.txt")
        ],
        "asked for an index of schema 1",
        "asked for 'halfstep golden 1'",
    ),
}

# Saved results against their lock: name -> damage, what must be said first.
LOCK_SPECIMENS: dict[str, tuple[Damage, str]] = {
    "artifact": (
        _append("c99/model_data.c"),
        "c99/model_data.c: the artifact is not the locked one",
    ),
    "artifact missing": (_remove("c99/model.h"), "found no such file"),
    "another file": (
        lambda folder: (folder / "c99" / "extra.c").write_text("int x;"),
        "c99/extra.c: the artifact is not the locked one: asked for SHA-256 of no such file",
    ),
    "artifact and program": (
        lambda folder: [_append(name)(folder) for name in ("program.json", "c99/model.c")],
        "c99/model.c: the artifact",
    ),
    "program": (_append("program.json"), "program.json: the program is not the locked one"),
    "arrays": (_append("program.safetensors"), "program.safetensors: the program is not"),
    "plan": (_append("plan.yaml"), "plan.yaml: the plan is not the locked one"),
}
