"""Tables of the report: one per family and recognizer, glossary, and columns in which nothing has a value."""

import math

from eval.benchmark.compare import Comparison
from eval.benchmark.page import add_glossary, add_tables
from eval.metrics.registry import METRICS
from eval.reports.report import Report
from faceclip.statistics import Estimate

NONE = Estimate(value=math.nan, low=math.nan, high=math.nan, count=0, identities=0)
SOME = Estimate(value=0.5, low=0.25, high=0.75, count=8, identities=4)
COLUMNS = ("detection@1", "facesim/all@1 [dlib]", "sim_gt@1 [dlib]", "facesim/all@1 [other]", "cost/seconds@1")


def test_tables_stand_by_recognizer_and_name_columns_without_values():
    figures = {name: SOME for name in COLUMNS if name != "sim_gt@1 [dlib]"} | {"sim_gt@1 [dlib]": NONE}
    comparison = Comparison(
        columns=COLUMNS,
        figures={"ours": figures, "base": {"detection@1": SOME}},
        sets={"ours": {}, "base": {}},
        best={"facesim/all@1 [dlib]": "ours"},
        differences=(),
        categories={"ours": {}, "base": {}},
        slices={"ours": {}, "base": {}},
    )
    report = Report("a")
    add_tables(report, comparison)
    add_glossary(report, comparison)
    page = report.to_html()
    for title in ("Identity", "Identity, by dlib", "Identity, by other", "Cost"):
        assert page.count(f"<caption>{title}</caption>") == 1
    assert "facesim/all@1 ↑" in page and page.count("<strong>") == 1
    assert "sim_gt@1 ↑" not in page and "sim_gt@1 [dlib]" in page
    assert "<dt>sim_gt@1</dt>" in page and METRICS["sim_gt@1"].aggregation in page
