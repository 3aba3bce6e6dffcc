"""The report holds everything itself and escapes what it is given."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from eval.reports.report import Report, format_cell, interval_bars, line_plot, write_json
from faceclip.errors import DataError
from faceclip.statistics import Estimate
from tests.full_disk import largest_file

ESTIMATE = Estimate(value=0.5, low=0.25, high=0.75, count=8, identities=4)


def test_written_report_is_one_escaped_file(tmp_path):
    report = Report("A <b> title", "sub")
    report.section("Numbers & more")
    report.text("1 < 2")
    report.table(["arm", "rank-1"], [["face", ESTIMATE], ["text", None]], caption="All", emphasized=[0])
    report.figure(interval_bars(["a", "b"], [("x", [ESTIMATE, None]), ("y", [ESTIMATE, ESTIMATE])], label="r"))
    report.figure(line_plot([("x", [1, 2], [3, 4])], x_label="step", y_label="loss"))
    path = report.write(tmp_path / "deep" / "report.html")
    text = path.read_text()
    assert "A &lt;b&gt; title" in text and "Numbers &amp; more" in text and "1 &lt; 2" in text
    assert 'href="#s0"' in text and 'id="s0"' in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # nothing outside the file
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_definitions_are_escaped_and_folded_under_their_title():
    report = Report("a")
    report.definitions([("x<y", "A & B.")], title="Terms")
    report.definitions([("z", "C.")])
    page = report.to_html()
    assert "<summary>Terms</summary><dl><dt>x&lt;y</dt><dd>A &amp; B.</dd></dl></details>" in page
    assert page.count("<details>") == 1 and "<dt>z</dt>" in page


def test_every_series_is_in_the_legend_once():
    figure = interval_bars(["a", "b"], [("x", [ESTIMATE, ESTIMATE]), ("y", [None, ESTIMATE])], label="r")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["x", "y"]


def test_no_two_lines_look_alike():
    figure = line_plot([(str(n), [0, 1], [n, n]) for n in range(9)], x_label="x", y_label="y")
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(looks) == 9


def test_another_report_takes_over_sections(tmp_path):
    first = Report("first")
    first.section("Figures")
    first.text("of the first")
    first.save_parts(tmp_path / "parts.json")
    second = Report("second")
    second.section("Own")
    second.append_parts(tmp_path / "parts.json")
    page = second.to_html()
    assert page.index("Own</h2>") < page.index("Figures</h2>") < page.index("of the first")
    assert page.count("href=") == 2 and "first</h1>" not in page


def test_pictures_survive_embedding():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    report = Report("t")
    report.image_grid([[picture, None]], row_labels=["p"], column_labels=["a", "b"])
    data = re.search(r"base64,([^\"]+)", report.to_html()).group(1)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(data)))), picture)


def test_cells():
    assert format_cell(ESTIMATE) == '0.500<span class="interval">0.250 … 0.750</span>'
    assert format_cell(None) == format_cell(float("nan")) == "–"
    assert format_cell(12345) == "12,345"
    assert format_cell("<i>") == "&lt;i&gt;"


def test_wrong_rows_and_pictures_are_refused():
    with pytest.raises(ValueError, match=r"\b1 cells .*\b2 headers: \['x'\]"):
        Report("t").table(["a", "b"], [["x"]])
    with pytest.raises(ValueError, match=r"^pictures .*float64 \(2, 2, 3\)"):
        Report("t").image_grid([[np.zeros((2, 2, 3))]])


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with largest_file(5000), pytest.raises(DataError, match=r"/a\.json .*Errno 27"):
        write_json(path, {"a": "b" * 10_000})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict(tmp_path):
    path = tmp_path / "a.json"
    empty = Estimate(value=float("nan"), low=float("nan"), high=float("inf"), count=0, identities=0)
    write_json(path, {"a": empty, "b": [np.float64("nan"), (1.5, True, None)], "c": "NaN"})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["a"] == {"value": None, "low": None, "high": None, "count": 0, "identities": 0}
    assert content["b"] == [None, [1.5, True, None]] and content["c"] == "NaN"
