"""The catalog is true: every entry loads and is what its family says, and the pages list it."""

import inspect
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from halfstep.catalog import CATALOG, Entry, family, find
from halfstep.core.execution import Execution
from halfstep.core.qtype import INT8
from halfstep.core.spec import QuantSpec
from halfstep.core.target import OpRule, Target, resolve
from halfstep.errors import DataError, UnknownNameError
from halfstep.export import litert_ops, onnx_ops
from halfstep.export.c99 import emitters
from halfstep.functions import TABLES as FUNCTIONS
from halfstep.program.formulas import FORMULAS
from halfstep.program.kernels import KERNELS
from halfstep.quant.calibrators.base import Calibrator
from halfstep.quant.quantizer import Quantizer
from halfstep.report.catalog_table import TABLES, main, updated

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EMITTERS = {
    "halfstep.export.onnx_qdq:export": onnx_ops.EMITTERS,
    "halfstep.export.onnx_openvino:export": onnx_ops.EMITTERS,
    "halfstep.export.onnx_tensorrt:export": onnx_ops.EMITTERS,
    "halfstep.export.litert:export": litert_ops.EMITTERS,
    "halfstep.export.c99.writer:export": emitters.EMITTERS,
}
QUANTIZED = (Execution.INTEGER, Execution.DEQUANTIZED)
TARGETS = [entry.load() for entry in family("target").values()]

every_entry = pytest.mark.parametrize("entry", CATALOG, ids=lambda e: f"{e.family}-{e.name}")
every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


# Entries


def assert_described(entry: Entry) -> None:
    for text in (entry.name, entry.summary, entry.source):
        assert text.strip(), f"{entry.family} {entry.name!r}: something is missing"
        assert "\n" not in text, f"{entry.family} {entry.name!r}: one line, please"


def assert_of_its_family(entry: Entry) -> None:
    found = entry.load()
    if entry.family == "calibrator":
        assert issubclass(found, Calibrator)
        assert found(INT8).name.replace("_", "") == entry.name.replace("_", "")
    elif entry.family == "quantizer":
        assert isinstance(found("a:out", QuantSpec(INT8), None), Quantizer)
    elif entry.family == "recipe":
        parameters = inspect.signature(found).parameters
        assert {"model", "example", "data", "target", "journal", "progress"} <= parameters.keys()
    elif entry.family == "target":
        assert isinstance(found, Target)
        assert found.name == entry.name
    else:
        pytest.fail(f"{entry.family} is no family")


def assert_unique(entries: Iterable[Entry]) -> None:
    twice = [key for key, n in Counter((e.family, e.name) for e in entries).items() if n > 1]
    assert not twice, f"in the catalog twice: {twice}"


@every_entry
def test_entry_is_described(entry: Entry) -> None:
    assert_described(entry)


@every_entry
def test_entry_loads_and_is_of_its_family(entry: Entry) -> None:
    assert_of_its_family(entry)
    assert find(entry.family, entry.name) is entry.load()


def test_names_are_unique() -> None:
    assert_unique(CATALOG)


def test_broken_entries_are_rejected() -> None:
    good = CATALOG[0]
    for broken in (replace(good, source=" "), replace(good, summary="a\nb")):
        with pytest.raises(AssertionError):
            assert_described(broken)
    for wrong in (replace(good, name="maxmin"), replace(good, family="target")):
        with pytest.raises(AssertionError):
            assert_of_its_family(wrong)
    with pytest.raises(AssertionError, match="twice"):
        assert_unique([*CATALOG, replace(good, summary="another")])


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown calibrator 'minmx': did you mean 'minmax'"):
        find("calibrator", "minmx")


# Rules of targets: what is planned by them can be run and written


def assert_can_be_run(kind: str, rule: OpRule) -> None:
    stored = "lookup" if rule.execution in QUANTIZED and kind in FUNCTIONS else kind
    assert (rule.execution, stored) in KERNELS, f"{kind}: the engine has no {rule.execution} kernel"
    formulas = FORMULAS.get(stored, ())
    if rule.execution in QUANTIZED and formulas:
        named = {rule.formula, rule.symmetric_formula or rule.formula}
        assert named <= {*formulas}, f"{kind}: {named} are not all in {sorted(formulas)}"
    else:
        assert rule.formula is None, f"{kind}: {rule.formula!r} for what needs no formula"


@every_target
def test_every_rule_has_a_kernel_and_a_formula(target: Target) -> None:
    for kind, rule in target.rules.items():
        assert_can_be_run(kind, rule)
    assert target.quantize_formula in FORMULAS["quantize"]


@every_target
def test_every_rule_off_the_integer_kernels_says_why(target: Target) -> None:
    for kind, rule in target.rules.items():
        slow = rule.execution in (Execution.DEQUANTIZED, Execution.FLOAT)
        assert bool(rule.reason) == slow, f"{kind}: {rule.execution} with reason {rule.reason!r}"


@every_target
def test_every_rule_of_a_target_with_an_artifact_can_be_written(target: Target) -> None:
    if target.artifact is None:
        assert target.export is None
        assert target.run is None
        return
    assert target.export is not None
    assert callable(resolve(target.export))
    assert target.run is None or callable(resolve(target.run))
    written = EMITTERS[target.export].keys()
    for kind, rule in target.rules.items():
        if target.integer_only and rule.execution is Execution.FLOAT:
            continue  # refused by name, never written
        as_table = rule.execution in QUANTIZED and kind in FUNCTIONS and "lookup" in written
        assert kind in written or as_table, f"{kind}: no form in {target.artifact}"


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("conv", OpRule(Execution.INTEGER, "half_up")),
        ("conv", OpRule(Execution.INTEGER)),
        ("conv", OpRule(Execution.COPY)),
        ("reshape", OpRule(Execution.COPY, "float")),
        ("fft", OpRule(Execution.FLOAT)),
    ],
)
def test_a_rule_that_cannot_be_run_is_rejected(kind: str, rule: OpRule) -> None:
    with pytest.raises(AssertionError, match=kind):
        assert_can_be_run(kind, rule)


# Pages


def marked() -> str:
    return "".join(f"<!-- {name}:begin -->\nSTALE\n<!-- {name}:end -->\n" for name in TABLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tables_of_the_page_are_current(page: Path) -> None:
    text = page.read_text()
    command = "python -m halfstep.report.catalog_table --write README.md docs/*.md"
    assert updated(text, page.name) == text, f"run {command}"


def test_every_table_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert all(f"<!-- {name}:begin -->" in text for name in TABLES)


def test_tables_name_every_entry_and_every_rule() -> None:
    catalog, operations = (TABLES[name]() for name in ("catalog", "operations"))
    assert all(f"| `{e.name}` |" in catalog and e.source in catalog for e in CATALOG)
    assert all(f"| `{kind}` |" in operations for target in TARGETS for kind in target.rules)
    widths = [line.replace("\\|", "").count("|") for line in catalog.splitlines()]
    assert set(widths) == {0, 5, 7}


def test_a_stale_page_is_found_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n{marked()}end\n")
    assert main([str(page)]) == 1
    assert "not current" in capsys.readouterr().out
    assert "STALE" in page.read_text()
    assert main(["--write", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("# Page\n")
    assert text.endswith("end\n")
    assert "STALE" not in text
    assert all(make() in text for make in TABLES.values())
    assert main([str(page)]) == 0
    assert updated(text, "page.md") == text


def test_a_page_without_markers_stays() -> None:
    assert updated("# Page\n", "page.md") == "# Page\n"


@pytest.mark.parametrize(
    "text",
    [
        "<!-- catalog:begin -->\n",
        "<!-- catalog:end -->\n",
        "<!-- catalog:end --> <!-- catalog:begin -->",
        "<!-- catalog:begin --> <!-- catalog:end --> <!-- catalog:end -->",
        "<!-- catalog:begin --> <!-- catalog:begin --> <!-- catalog:end -->",
    ],
)
def test_half_a_marker_is_an_error(text: str) -> None:
    with pytest.raises(DataError, match=r"page\.md: asked for one <!-- catalog:begin --> with one"):
        updated(text, "page.md")


def test_no_pages_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--write"]) == 2
    assert "usage:" in capsys.readouterr().out
