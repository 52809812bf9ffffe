"""Charts and pages: every figure on them, well-formed, nothing fetched, hostile names harmless; a matrix shown by the command report."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from bundle_maker import make_bundle
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from jetfleet_host.build_record import BuildRecord, LayerLine, StageSize
from jetfleet_host.bundles import open_bundle
from jetfleet_host.cli import app
from jetfleet_host.compress.guard import Verdict
from jetfleet_host.compress.recipe_file import Prune
from jetfleet_host.compress.stage_records import FloatRun, StageRecord, Try
from jetfleet_host.matrix.cells import Axis, Cell, Header, Matrix, Provenance, Way
from jetfleet_host.matrix.page import as_html
from jetfleet_host.matrix.store import MatrixStore
from jetfleet_host.pages.charts import Bar, Point, bars, scatter
from jetfleet_host.report import as_html as bundle_page
from jetfleet_host.report import record_charts

SVG = re.compile(r"<svg.*?</svg>", re.DOTALL)
FINITE = st.floats(1e-6, 1e6)


def _drawn(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314 - our own chart


def _marks(figure: str) -> list[ET.Element]:
    drawn = _drawn(SVG.findall(figure)[0])
    return [group for group in drawn.iter("g") if group.get("class", "").startswith("s")]


@given(st.lists(st.tuples(FINITE, st.floats(0, 100)), min_size=1, max_size=12))
def test_every_point_is_inside_the_picture_and_in_order(values: list[tuple[float, float]]) -> None:
    figure = scatter([Point(x, y, f"p{i}", "m") for i, (x, y) in enumerate(values)], "ms", "%", "title")
    places = [(float(mark[1].get("cx", "nan")), float(mark[1].get("cy", "nan"))) for mark in _marks(figure)]
    assert len(places) == len(values)
    assert all(0 <= x <= 440 and 0 <= y <= 320 for x, y in places)
    for (x0, y0), (px0, py0) in zip(values, places, strict=True):
        for (x1, y1), (px1, py1) in zip(values, places, strict=True):
            assert x0 >= x1 or px0 <= px1
            assert y0 >= y1 or py0 >= py1


def test_a_front_is_a_line_of_its_own_series_only() -> None:
    points = [Point(1, 80, "a", "m", True), Point(2, 90, "b", "m", True), Point(3, 70, "c", "n", True), Point(9, 10, "d", "m")]
    figure = scatter(points, "ms", "%", "t")
    lines = re.findall(r'class="front f(\d)" points="([^"]+)"', figure)
    assert [(number, len(places.split())) for number, places in lines] == [("0", 2)]  # one point makes no line


def test_nothing_to_draw_draws_nothing() -> None:
    assert scatter([Point(0.0, 1.0, "a", "m"), Point(float("nan"), 1.0, "b", "m")], "x", "y", "t") == ""
    assert bars([], "t") == ""
    assert record_charts(None) == []


def test_bars_are_as_long_as_their_values() -> None:
    drawn = _drawn(SVG.findall(bars([Bar("a", 2.0, "2 ms", "good", 4.0), Bar("b", 1.0, "1 ms", "bad")], "t"))[0])
    rows = {str(rect.get("class")): rect for rect in drawn.iter("rect")}
    assert float(rows["good"].get("width", 0)) == pytest.approx(2 * float(rows["bad"].get("width", 0)), abs=0.2)
    assert float(rows["mark"].get("x", 0)) > float(rows["good"].get("x", 0)) + float(rows["good"].get("width", 0))


def test_the_noisiest_layers_and_each_stages_size_are_drawn() -> None:
    layers = tuple(LayerLine(f"layer{index}", index / 100, index < 20) for index in range(40))
    sizes, noise = record_charts(BuildRecord((StageSize("as given", 4_000_000), StageSize("int8", 1_000_000)), layers))
    assert "4 MB" in sizes
    assert "1 MB" in sizes
    assert "layer39" in noise
    assert "layer3<" not in noise
    assert "24 of 40 layers" in noise


def test_what_the_guard_said_of_each_stage_is_on_a_bundles_page(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    verdict = Verdict("fail", 7.5, 5.0, 9.0, 0.5, 400, 30)
    stage = StageRecord("prune", "left-out", (Try(1.0, Prune(), verdict),), 0.91, "d")
    run = FloatRun(0.91, 0.91, 0.91, 400, (stage,))
    page = bundle_page(open_bundle(tmp_path / "b"), None, (), BuildRecord(floats=run))
    table = page[page.index('<table class="stages">'):]
    assert "left out; at its own strength: drop of 7.50 points on 400 samples" in table
    assert "400 validation samples: 0.9100" in page
    assert "Stages under the guard" not in bundle_page(open_bundle(tmp_path / "b"), None)


def _matrix(name: str = "m") -> Matrix:
    told = Provenance("Xeon", ("amx_int8",), provider="CPUExecutionProvider", ran_in="int8")
    full = Way("int8@onnxruntime:int8", "", 2_000_000, 0.91, 0.2, 0.99, "onnxruntime on Xeon", "accepted", "", 4.25, 5.5, provenance=told)
    floor = Way("int8@tensorrt:int8", "", 2_000_000, 0.91, 0.2, 0.99, "onnxruntime on Xeon", "accepted", "", floor_ms=0.125)
    cells = (Cell(Axis(name, "cpu-x86", "int8"), "a" * 64, "accuracy", 9, "measured", way=full),
             Cell(Axis(name, "orin-nano", "int8"), "b" * 64, "accuracy", 9, "floor", way=floor),
             Cell(Axis(name, "cpu-x86", "fp16"), "c" * 64, "", 0, "empty", "<b>no fp16</b> here", failed=True))
    return Matrix(Header((name,), ("cpu-x86", "orin-nano"), ("int8", "fp16"), "d", 0.5, 2), cells)


def test_a_page_is_one_file_with_every_cell_and_no_stranger_in_it() -> None:
    page = as_html(_matrix("<script>alert(1)</script>"), "lab & co")
    for absent in ("<script", "http://", "https://", "@import", "<b>no fp16", " src="):
        assert absent not in page
    assert "&lt;b&gt;no fp16&lt;/b&gt; here" in page
    assert "lab &amp; co" in page
    assert "prefers-color-scheme:dark" in page
    assert "width=device-width" in page
    assert page.count('<tr class="measured">') == page.count('<tr class="floor">') == page.count('<tr class="empty">') == 1
    assert "floor 0.125" in page
    for svg in SVG.findall(page):
        assert len(_drawn(svg))


def test_floors_and_measurements_are_on_different_plots() -> None:
    page = as_html(_matrix(), "lab")
    titles = re.findall(r'aria-label="(Accuracy[^"]+)"', page)
    assert titles == ["Accuracy against latency, cpu-x86", "Accuracy against latency, orin-nano"]
    assert "measured p50, ms" in page
    assert "floor, ms: computed, not measured" in page


def test_the_command_shows_a_matrix_in_words_in_json_and_as_a_page(tmp_path: Path) -> None:
    store, made = MatrixStore(tmp_path / "lab"), _matrix()
    store.begin(made.header)
    for cell in made.cells:
        store.keep(cell)
    words = CliRunner().invoke(app, ["report", str(store.folder), "--html", str(tmp_path / "lab.html")])
    assert words.exit_code == 0, words.output
    assert "1 measured, 1 floors, 1 empty, 1 not reached yet" in words.output
    assert "<b>no fp16</b>" in words.output
    assert (tmp_path / "lab.html").read_text().startswith("<!doctype html>")
    told = json.loads(CliRunner().invoke(app, ["report", str(store.folder), "--json"]).output)
    by_origin = {cell["origin"]: cell for cell in told["cells"]}
    assert by_origin["measured"]["way"]["p50_ms"] == 4.25
    assert by_origin["measured"]["on_front"]
    assert by_origin["floor"]["way"]["floor_ms"] == 0.125
    assert "p50_ms" not in by_origin["floor"]["way"] or by_origin["floor"]["way"]["p50_ms"] is None
    assert told["counts"]["missing"] == 1
