"""Every operation in C: the engine's codes at every site, and broken runtimes are found."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from halfstep.core.target import Target
from halfstep.export.c99.emitters import EMITTERS
from halfstep.program.check import check
from halfstep.runtimes.cc import CModel
from halfstep.targets import c99, c99_fixed
from tests.runtimes.c99_builds import codes_of_engine, differences, differing, written
from tests.runtimes.c99_programs import Case, every_case, merged

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
]
TARGETS = {"c99": False, "c99_fixed": True}

# What is wrong, the file, what is right there, what stands for it, an operation that shows it.
BROKEN = [
    ("half up", "arithmetic.h", "half && (quotient & 1) != 0", "half", "conv_ties"),
    ("no float", "arithmetic.h", "if (excess <= 0)", "if (excess <= 40)", "mul_4"),
    ("offset", "arithmetic.h", "(int64_t)steps + codes", "(int64_t)steps + 1 + codes", "conv"),
    ("no clamp", "arithmetic.h", "code < codes->low ? codes->low", "code < -128 ? -128", "add_0"),
    ("ties up", "arithmetic.h", "(mask >> 1) + (x < 0)", "(mask >> 1)", "add_2"),
    ("nibbles", "conv.c", "(field ^ sign) - sign", "field", "conv_of_4_bits"),
    ("padding", "conv.c", "patch[i] = 0;", "patch[i] = (int16_t)c->in_zero;", "conv"),
    ("gaps", "conv.c", "position % spread != 0", "position % spread > 1", "transposed"),
    ("groups", "conv.c", "+ group * channels", "", "conv_grouped"),
    ("b sign", "elementwise.c", "p->b_sign * hs", "hs", "sub_0"),
    ("table", "elementwise.c", "table[in[i] - lowest]", "table[in[i] - lowest] + 1", "lookup"),
    ("zeros of terms", "elementwise.c", "terms->a[last]] - zero", "terms->a[last]]", "mean_apart"),
    ("one term", "elementwise.c", "} while (advance(&at, terms));", "} while (0);", "sum_apart"),
    ("counts", "pool.c", "row >= layer->top && ", "", "avg_pool"),
    ("no half", "pool.c", "(share + sum / 2) / sum", "share / sum", "softmax_rows"),
    ("no eps", "norm.c", " + layer->eps", "", "layer_norm"),
    ("half", "norm.c", " + root / 2", "", "layer_norm"),
    ("maximum", "pool.c", "tap[i] > pixel[i]", "tap[i] < pixel[i]", "max_pool"),
]  # fmt: skip


@pytest.fixture(scope="module", params=TARGETS)
def every_operation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Case, Path]]:
    case = merged(every_case(TARGETS[request.param]))
    yield case, written(check(case[0]), tmp_path_factory.mktemp(request.param))


def test_every_operation_gives_the_engine_s_codes(every_operation: tuple[Case, Path]) -> None:
    (program, inputs), folder = every_operation
    assert differences(program, inputs, folder) == {}


@pytest.mark.parametrize("target", [c99.TARGET, c99_fixed.TARGET], ids=lambda target: target.name)
def test_every_rule_on_integers_has_a_form_and_is_tried(target: Target) -> None:
    tried: dict[str, set[Any]] = {}
    for program, _ in every_case(TARGETS[target.name]).values():
        for op in program.ops:
            tried.setdefault(op.kind, set()).add(op.formula)
    for kind, rule in target.rules.items():
        if not rule.reason:
            stored = kind if kind in EMITTERS else "lookup"
            assert tried[stored] == {rule.formula}, kind


@pytest.fixture(scope="module")
def broken_case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    cases = every_case(fixed=False)
    case = merged({name: cases[name] for name in sorted({line[4] for line in BROKEN})})
    return case, written(case[0], tmp_path_factory.mktemp("broken"))


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: line[0])
def test_a_broken_runtime_is_found(
    line: tuple[str, ...], broken_case: tuple[Case, Path], tmp_path: Path
) -> None:
    (program, inputs), folder = broken_case
    _, name, right, wrong, shows = line
    copied = tmp_path / "model"
    shutil.copytree(folder, copied)
    file = copied / f"halfstep_{name}"
    text = file.read_text()
    assert text.count(right) == 1, f"{name} has no {right!r}"
    file.write_text(text.replace(right, wrong))
    found = CModel(copied, program.sites, ("-O0",)).run(inputs)
    assert f"{shows}.y" in differing(codes_of_engine(program, inputs), found)
