"""``report.html``: well formed, complete, self-contained, and safe whatever things are called."""

import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from torch import nn

import halfstep as hs
from halfstep.core.execution import Execution
from halfstep.journal import Journal, Record
from halfstep.program.ir import IntProgram, Op, Tensor
from halfstep.report.chart import Bar, bar_chart
from halfstep.report.markup import Markup, join, tag
from halfstep.report.page import report_page
from halfstep.verdict import SiteReport, Verdict
from tests.models import Call, Residual, normal, seeded
from tests.pipeline import lowered, normal_inputs

WITHOUT_END = {"meta", "wbr"}
HOSTILE = "</code><script>alert('x')</script>&\"<img src=//example.org>"


class Reader(HTMLParser):
    """Checks that elements nest, and keeps them, with the texts of rows by their first cell."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, Mapping[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in WITHOUT_END:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open, f"never closed: {reader.open}"
    assert page.startswith('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">')
    for name, attributes in reader.elements:
        assert name not in ("script", "link", "img", "iframe", "object", "form", "base")
        assert not any(key.startswith("on") or key in ("src", "href") for key in attributes)
    (style,) = re.findall("<style>(.*)</style>", page, re.DOTALL)
    assert not re.search(r"//|@import|url\(|<", style)
    return reader


def page_of(
    program: IntProgram,
    verdict: Verdict | None = None,
    journal: Journal | None = None,
    versions: Mapping[str, str] | None = None,
) -> str:
    return report_page(
        program, verdict, journal or Journal(), ("model.onnx", 1_234_567), versions or {}
    )


def rows_of(reader: Reader, first: str) -> list[list[str]]:
    return [row for row in reader.rows if row[0] == first]


@pytest.fixture(scope="module")
def result() -> hs.Result:
    """Of a model with a float island and labels."""
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3), nn.Hardswish())
    labels = normal(8, 3, seed=2).argmax(1)
    return hs.quantize(seeded(model), [(normal(8, 6), labels)], weights="int6_narrow")


@pytest.fixture(scope="module")
def saved(result: hs.Result, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("report") / "out"
    result.save(folder)
    return read((folder / "report.html").read_text(encoding="utf-8"))


def test_the_verdict_stands_first(result: hs.Result, saved: Reader) -> None:
    assert result.verdict is not None
    codes = sum(site.compared for site in result.verdict.comparable)
    assert f"exact0 of {codes:,} codes differ between what was simulated and what" in saved.text
    assert f"{len(result.verdict.comparable)} sites, 8 samples." in saved.text


def test_every_site_is_there_with_its_grid_and_what_differs(
    result: hs.Result, saved: Reader
) -> None:
    assert result.verdict is not None
    for report in result.verdict.sites:
        (row,) = rows_of(saved, report.site)
        different = "0" if report.comparable else f"({report.mismatches})"
        assert row[-3:] == [f"{report.compared:,}", different, str(report.largest)]
        grid = result.program.tensor(report.site).grid
        if grid is not None:
            assert row[4:7] == [
                grid.qtype.name,
                f"{float(grid.scale):#.3g}",
                str(int(grid.zero_point)),
            ]
    assert rows_of(saved, "3:out")[0][1:3] == ["hardswish", "dequantized"]


def test_every_weight_is_there(result: hs.Result, saved: Reader) -> None:
    for name, tensor in result.program.tensors.items():
        if tensor.data is not None and tensor.grid is not None:
            (row,) = rows_of(saved, name)
            assert row[2].startswith(tensor.grid.qtype.name)
    (weight,) = rows_of(saved, "0:weight")
    scale = result.program.grid("0:weight").scale
    assert weight[1:] == [
        "6x6",
        "int6_narrow, 6 scales (one a channel)",
        f"{scale.min():#.3g} to {scale.max():#.3g}",
        "0",
    ]


def test_decisions_reasons_steps_and_versions_are_there(result: hs.Result, saved: Reader) -> None:
    assert result.verdict is not None
    for stage in ("float", "fake-quantized", "engine", "runtime"):
        (row,) = rows_of(saved, stage)
        assert row[1] == f"{result.verdict.accuracy[stage]:.2%}"
    assert rows_of(saved, "runtime")[0][2] == "100.00%"
    assert rows_of(saved, "ONNX Runtime has no integer kernel for it")[0][1] == "1"
    steps = [record.verb for record in result.journal.records]
    assert steps == [
        "capture",
        "plan",
        "prepare",
        "calibrate",
        "scales",
        "lower",
        "export",
        "verify",
    ]
    for step in steps:
        assert rows_of(saved, step)
    assert "samples: 8" in rows_of(saved, "verify")[0][2]
    for package in ("halfstep", "torch", "onnxruntime"):
        assert re.search(rf"Made with .*{package} \d", saved.text)


def test_names_are_escaped_everywhere() -> None:
    op = Op("conv", ("x",), HOSTILE, Execution.FLOAT, module=HOSTILE, reason=HOSTILE)
    program = IntProgram(
        HOSTILE, ("x",), (HOSTILE,), {n: Tensor(n, (2,)) for n in ("x", HOSTILE)}, (op,)
    )
    site = SiteReport(HOSTILE, HOSTILE, HOSTILE, 5, 1, 1)
    shares = {HOSTILE: 0.5, "engine": 0.5, "runtime": 0.5}
    verdict = Verdict(
        HOSTILE,
        1,
        (site,),
        cause=HOSTILE,
        agreement={f"{name} and engine": 0.5 for name in (HOSTILE, "runtime")},
        accuracy=shares,
    )
    journal = Journal([Record(HOSTILE, 1.0, {HOSTILE: HOSTILE})])
    reader = read(page_of(program, verdict, journal, {HOSTILE: HOSTILE}))
    assert len(rows_of(reader, HOSTILE)) == 4, "a stage, a reason, a site and a step"
    assert f"First divergence: {HOSTILE}" in reader.text


def test_what_differs_is_marked_and_the_cause_is_named() -> None:
    made = lowered(Residual(), normal_inputs((3, 6, 6)))
    sites = tuple(
        SiteReport(name, "conv", "integer", 1000, 3 if name == "conv:out" else 0, 2)
        for name in made.program.sites
    )
    verdict = Verdict("onnxruntime", 4, sites, cause="conv:out: conv: rounding")
    page = page_of(made.program, verdict)
    reader = read(page)
    assert "First divergence: conv:out: conv: rounding" in reader.text
    assert rows_of(reader, "conv:out")[0][-3:] == ["1,000", "3", "2"]
    assert page.count('<tr class="differs">') == 1
    assert '<header class="failed">' in page and "Top-1" not in reader.text


def test_a_target_without_a_file_is_not_verified(tmp_path: Path) -> None:
    result = hs.quantize(seeded(Residual()), [normal(4, 3, 6, 6)], target="reference")
    result.save(tmp_path / "out")
    reader = read((tmp_path / "out" / "report.html").read_text())
    assert "not verifiedWhat was simulated was not compared with what runs." in reader.text
    assert "Integer MACs100.0%planned" in reader.text
    assert "codes" not in rows_of(reader, "site")[0]
    for name in result.program.sites:
        assert rows_of(reader, name)


def test_without_multiplications_there_is_no_chart_of_them() -> None:
    made = lowered(Call(lambda x: x.relu()), normal_inputs((6,)))
    page = page_of(made.program)
    assert "Integer MACsnone" in read(page).text and "<svg" not in page


def test_a_share_that_the_plan_did_not_promise_is_told() -> None:
    made = lowered(nn.Linear(6, 3), normal_inputs((6,)))
    verdict = Verdict("onnxruntime", 4, (), integer_coverage=1.0, integer_in_runtime=0.25)
    assert "Integer MACs25.0%found; 100.0% planned" in read(page_of(made.program, verdict)).text


# Charts and markup


def widths(chart: str, kind: str) -> list[float]:
    return [
        float(w) for w in re.findall(rf'width="([\d.]+)" height="\d+" rx="3" class="{kind}"', chart)
    ]


def test_bars_are_as_long_as_their_values() -> None:
    bars = [
        Bar("conv", {"integer": 30.0, "float": 10.0}, "40"),
        Bar("linear", {"integer": 20.0}, "20"),
        Bar("matmul", {"integer": 0.001}, "0"),
        Bar("none", {"integer": 0.0}, "0"),
    ]
    chart = bar_chart("work", bars)
    (track,) = set(widths(chart, "track"))
    first, second, third = widths(chart, "integer")
    assert first == pytest.approx(0.75 * track, abs=0.1)
    assert second == pytest.approx(0.5 * track, abs=0.1)
    assert third == 1.5, "what there is can be seen"
    assert widths(chart, "float") == [pytest.approx(0.25 * track, abs=0.1)]


def test_bars_without_length() -> None:
    chart = bar_chart("nothing", [Bar("capture", {"time": 0.0}, "0.00 s")])
    assert widths(chart, "time") == []


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "a < b", tag("b", "&"), class_='"') == (
        '<p class="&quot;">a &lt; b<b>&amp;</b></p>'
    )
    assert join("<", Markup("<i>"), ">") == "&lt;<i>&gt;"
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert tag("text", "1", text_anchor="end", x=1) == '<text text-anchor="end" x="1">1</text>'


def test_a_page_is_the_same_each_time(result: hs.Result) -> None:
    pages = {
        page_of(result.program, result.verdict, replace(result.journal), {"torch": "1"})
        for _ in range(2)
    }
    assert len(pages) == 1
