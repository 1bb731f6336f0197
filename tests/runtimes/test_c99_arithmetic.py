"""The rounding of the runtime in C against numpy's: millions of sums, generic ones and ties."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from halfstep.core.requant import fixed_point_multiplier, multiply_double_rounding
from halfstep.export.c99.writer import runtime_files
from halfstep.runtimes.c_compiler import compiler
from tests.runtimes.c99_builds import WARNINGS

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
]
Array = NDArray[Any]
FAR = 2**30
DRIVER = """\
#include <stdio.h>
#include "halfstep_arithmetic.h"

int main(int count, char **words)
{
    int32_t line[3];
    (void)words;
    while (fread(line, sizeof line, 1, stdin) == 1) {
        const int32_t found = hs_rescale(line[0], line[1], line[2],
                                         count > 1 ? HS_DOUBLE_ROUNDING : HS_FLOAT_ROUNDING);
        fwrite(&found, sizeof found, 1, stdout);
    }
    return 0;
}
"""
# (what is right, what stands for it, which arithmetic)
BROKEN = {
    "half up": ("(rest == half && (quotient & 1) != 0)", "rest == half", "float"),
    "one rounding": ("size = hs_float_mantissa(size, &exponent);", "", "float"),
    "23 bits": ("hs_significant_bits(value) - 24", "hs_significant_bits(value) - 23", "float"),
    "cut off": ("exponent < -30", "exponent < -23", "float"),
    "ties up": ("(mask >> 1) + (x < 0)", "(mask >> 1)", "double_rounding"),
    "wraps": ("low > INT32_MAX ? INT32_MAX : low", "low", "double_rounding"),
    "floor": ("1 - (INT64_C(1) << 30)", "0", "double_rounding"),
}  # fmt: skip


def sums(n: int, seed: int) -> Array:
    """All magnitudes, both ends of int32, and neighbours of powers of two."""
    rng = np.random.default_rng(seed)
    sizes = (2.0 ** rng.uniform(0, 31, n)).astype(np.int64)
    powers = 2 ** rng.integers(0, 32, n) + rng.integers(-3, 4, n)
    mixed = np.where(rng.random(n) < 0.7, sizes, powers) * rng.choice([-1, 1], n)
    return np.clip(mixed, -(2**31) + 1, 2**31 - 1).astype(np.int32)


def multipliers(n: int, seed: int) -> Array:
    """Float32, generic ones, powers of two, and small odd multiples of them, which make ties."""
    rng = np.random.default_rng(seed)
    generic = 2.0 ** rng.uniform(-40, 6, n)
    exact = rng.choice([1, 3, 5, 7], n) * 2.0 ** rng.integers(-40, 5, n)
    return np.where(rng.random(n) < 0.5, generic, exact).astype(np.float32)


def of_numpy(acc: Array, m: Array, name: str) -> Array:
    if name == "float":
        return np.clip(np.rint(acc.astype(np.float32) * m), -FAR, FAR)
    q, shift = fixed_point_multiplier(m)
    return multiply_double_rounding(acc.astype(np.int64), q, shift)


def in_c(acc: Array, m: Array, name: str) -> Array:
    if name == "double_rounding":
        return np.stack([acc, *fixed_point_multiplier(m)], axis=1)
    mantissa, exponent = np.frexp(m.astype(np.float64))
    return np.stack([acc, mantissa * 2**24, exponent - 24], axis=1)


def driver(folder: Path, change: Callable[[str], str] = lambda text: text) -> Path:
    for name, text in runtime_files().items():
        (folder / name).write_text(change(text) if name == "halfstep_arithmetic.h" else text)
    (folder / "driver.c").write_text(DRIVER)
    flags = ["-std=c99", "-O2", *WARNINGS, "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    out = folder / "driver"
    subprocess.run([compiler(), *flags, str(folder / "driver.c"), "-o", str(out)], check=True)
    return out


def mismatches(program: Path, name: str, n: int) -> int:
    acc, m = sums(n, 1), multipliers(n, 2)
    lines = in_c(acc, m, name).astype(np.int32)
    arguments = [str(program)] + ["fixed"] * (name == "double_rounding")
    done = subprocess.run(arguments, input=lines.tobytes(), capture_output=True, check=True)
    found = np.frombuffer(done.stdout, np.int32)
    expected = of_numpy(acc, m, name)
    if name == "float":
        # Beyond what any code can be, both only have to be far out, on the same side.
        found = np.clip(found, -(2**29), 2**29)
        expected = np.clip(expected, -(2**29), 2**29)
    return int(np.count_nonzero(found != expected))


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return driver(tmp_path_factory.mktemp("driver"))


@pytest.mark.parametrize("name", ["float", "double_rounding"])
def test_three_million_sums_are_rescaled_as_in_numpy(name: str, right: Path) -> None:
    assert mismatches(right, name, 3_000_000) == 0


@pytest.mark.parametrize("specimen", BROKEN)
def test_broken_arithmetic_is_found(specimen: str, tmp_path: Path) -> None:
    good, bad, name = BROKEN[specimen]

    def change(text: str) -> str:
        assert good in text
        return text.replace(good, bad, 1)

    try:
        found = mismatches(driver(tmp_path, change), name, 200_000)
    except subprocess.CalledProcessError:
        return  # undefined behaviour: the sanitizer stopped it, or the compiler saw it
    assert found > 0
