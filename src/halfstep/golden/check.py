"""Compare what a device dumped with golden files; needs Python and numpy, nothing else.

    python check.py DUMPS [NAME] [--golden FOLDER]

DUMPS holds a file for each site, of the same name, type and order as the golden one. NAME, a site
or its file, compares that one alone. Exit codes: 0, all codes are equal; 1, some are not; 2, the
golden files themselves cannot be used, or there is no dump at all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any


class UnusableError(Exception):
    """The golden files are missing, damaged, or lack what is asked for; or there is no dump."""


def load_index(golden: Path) -> dict[str, Any]:
    """What ``golden.json`` says."""
    try:
        index: Any = json.loads((golden / "golden.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or error
        raise UnusableError(f"{golden / 'golden.json'}: it cannot be read ({words})") from error
    if not isinstance(index, dict) or index.get("schema") != 1:
        raise UnusableError(f"{golden / 'golden.json'}: asked for an index of schema 1")
    return index


def compare(site: dict[str, Any], samples: int, golden: Path, dumps: Path) -> str:
    """What differs at one site; empty if nothing does."""
    import numpy as np

    dtype = np.dtype(site["dtype"]).newbyteorder("<")
    shape = [samples, *(site["shape"][axis] for axis in site["order"])]
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    try:
        expected = (golden / site["file"]).read_bytes()
    except OSError as error:
        raise UnusableError(f"{site['file']}: the golden file is missing ({error})") from error
    if hashlib.sha256(expected).hexdigest() != site["sha256"] or len(expected) != size:
        raise UnusableError(f"{site['file']}: the golden file was changed; export it again")
    try:
        dumped = (dumps / site["file"]).read_bytes()
    except OSError:
        return "the device dumped no such file"
    if len(dumped) != size:
        each = "x".join(map(str, shape[1:])) or "1"
        return (
            f"asked for {size} bytes ({samples} samples of {each} {site['dtype']}), found "
            f"{len(dumped)}"
        )
    mine, theirs = (_codes(np.frombuffer(data, dtype), np) for data in (expected, dumped))
    distance = np.abs(mine - theirs)
    if not distance.any():
        return ""
    at = int((distance > 0).argmax())
    sample, *place = (int(i) for i in np.unravel_index(at, shape))
    index = [place[site["order"].index(axis)] for axis in range(len(place))]
    return (
        f"{int(np.count_nonzero(distance))} of {distance.size} values differ, by at most "
        f"{int(distance.max())}; the first in sample {sample}, value "
        f"{at % (distance.size // samples)} of it, at {index}: golden {mine[at]}, "
        f"device {theirs[at]}"
    )


def _codes(values: Any, np: Any) -> Any:
    """Codes as they are; floats as integers in the same order, so that neighbours are 1 apart."""
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    bits = values.view(np.dtype("<i4")).astype(np.int64)
    return np.where(bits < 0, -(2**31) - bits, bits)


def cause(site: dict[str, Any], compared: dict[str, str]) -> str:
    """What the inputs of the first site that differs say about it."""
    unseen = [name for name in site["inputs"] if name not in compared]
    if unseen:
        return f"its inputs {', '.join(unseen)} were not compared"
    inputs = ", ".join(site["inputs"])
    return f"its inputs {inputs} are equal: the cause lies in this operation itself"


def check(golden: Path, dumps: Path, name: str | None) -> int:
    """Compare in order of execution and print what is found; the exit code."""
    index = load_index(golden)
    sites = [s for s in index["sites"] if name is None or name in (s["name"], s["file"])]
    if not sites:
        raise UnusableError(f"{name}: no such site or file in {golden / 'golden.json'}")
    if not any((dumps / site["file"]).is_file() for site in index["sites"]):
        raise UnusableError(
            f"{dumps}: asked for a folder of the device's dumps, found none of them"
        )
    compared: dict[str, str] = {}
    left_out = 0
    for site in sites:
        if not site["exact"]:
            left_out += 1
            continue
        found = compare(site, index["samples"], golden, dumps)
        compared[site["name"]] = found
        if found:
            print(f"{site['name']} ({site['kind']}, {site['file']}): {found}")
    beside = f"; {left_out} behind float kernels were not compared" if left_out else ""
    wrong = [site for site in sites if compared.get(site["name"])]
    if wrong:
        print(f"failed: {len(wrong)} of {len(compared)} sites differ{beside}")
        print(f"first divergence: {wrong[0]['name']}: {cause(wrong[0], compared)}")
    elif compared:
        sites_, samples = (
            f"{n} {what}{'' if n == 1 else 's'}"
            for n, what in ((len(compared), "site"), (index["samples"], "sample"))
        )
        print(f"equal: {sites_} over {samples}{beside}")
    else:
        print(f"nothing was compared{beside}")
    return int(bool(wrong) or not compared)


def main(arguments: list[str]) -> int:
    """The exit code for these arguments."""
    parser = argparse.ArgumentParser(description="Compare a device's dumps with golden files.")
    parser.add_argument("dumps", type=Path, help="folder of the device's dumps")
    parser.add_argument("name", nargs="?", help="one site, or its file; all of them without")
    parser.add_argument("--golden", type=Path, default=Path(__file__).resolve().parent)
    given = parser.parse_args(arguments)
    try:
        return check(given.golden, given.dumps, given.name)
    except UnusableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
