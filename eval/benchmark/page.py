"""The benchmark's report: one HTML file with tables, charts, a picture wall and everything to run it again."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from eval.benchmark.compare import SLICED, Comparison
from eval.benchmark.drawing import Gallery, failures
from eval.benchmark.measure import Measured, metric_of, recognizer_of
from eval.benchmark.panel import Panel
from eval.benchmark.suite import Suite
from eval.benchmark.wall import wall
from eval.metrics.registry import FAMILIES, METRICS
from eval.reports.report import PALETTE, Best, Cell, Report, clean_axes, interval_bars
from eval.slices import FEW, TOO_FEW
from faceclip.statistics import Estimate

WIDE = 4  # columns of a table
ARROW = {"higher": " ↑", "lower": " ↓", "neither": ""}
TEXT = ("clip_t/l14@1", "clip_t/b16@1", "clip_t/shipped@1", "prompt/judge@1")
RULES = (
    "All methods draw the same references with the same prompts and seeds. Intervals are 95 %, from 2,000 resamples "
    "of whole persons. A value is bold only where its method leads the column and the permutation test over persons "
    "against every other method is below .05 after Holm's correction over all tests of the report. Rows of real photos "
    "say what the metrics give to them; they do not compete. ↑: higher is better; ↓: lower is better."
)


def make_report(
    suite: Suite,
    panel: Panel,
    protocol: Mapping[str, Any],
    galleries: Mapping[str, Gallery],
    measured: Mapping[str, Measured],
    comparison: Comparison,
    contenders: Sequence[str],
) -> Report:
    """Returns the whole page."""
    people = len({suite.references.photos[row].person for row in suite.references.chosen})
    report = Report(
        f"Benchmark: {suite.settings.name}",
        f"{_count(len(suite.jobs), 'picture')} per method of {_count(people, 'person')}, "
        f"{_count(len(suite.prompts), 'prompt')}.",
    )
    report.section("Results")
    report.text(RULES)
    _warnings(report, suite, panel, galleries, measured)
    add_tables(report, comparison)
    _sets(report, comparison)
    add_glossary(report, comparison)
    first = contenders[0] if contenders else next(iter(galleries))
    pareto = _pareto(comparison)
    if pareto is not None:
        report.section("Identity against text")
        report.figure(*pareto)
    report.section("Pictures")
    report.block(wall(suite, galleries, measured, first, comparison.columns))
    _differences(report, comparison)
    _categories(report, comparison)
    _slices(report, comparison)
    report.section("Protocol")
    report.text("Everything that is needed to run this again; values of every picture are in values.csv.")
    report.code(json.dumps(protocol, indent=1, ensure_ascii=False, default=str))
    _missing(report, panel)
    return report


def _warnings(
    report: Report,
    suite: Suite,
    panel: Panel,
    galleries: Mapping[str, Gallery],
    measured: Mapping[str, Measured],
) -> None:
    for name, shown in galleries.items():
        missing = int((shown.applies & ~shown.drawn).sum())
        if missing:
            most, count = next(iter(failures(shown.records).items()))
            text = f"{name}: {missing} of {int(shown.applies.sum())} pictures failed, {count} of them with {most}"
            report.text(
                f"{text}. They count as 0 in facesim/all, detection and gallery, and nowhere else.", warning=True
            )
        for note in measured[name].notes:
            report.text(f"{name}: {note}.", warning=True)
    if suite.references.without_face:
        names = ", ".join(suite.references.without_face[:5])
        count = len(suite.references.without_face)
        report.text(f"{count} photos without a face were left out: {names}{' …' if count > 5 else ''}.", warning=True)
    if suite.empty_lines:
        report.text(f"{suite.empty_lines} empty lines of the prompts file were skipped.", warning=True)
    if suite.references.rendered:
        report.text("The references are renders: figures say nothing about photographed people.", warning=True)
    else:
        report.text("Networks trained on renders do not know photographed people.", warning=True)


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _upper(text: str) -> str:
    """Returns a text that begins with a capital letter; the others stay."""
    return text[:1].upper() + text[1:]


def add_tables(report: Report, comparison: Comparison) -> None:
    """Adds one table per family and recognizer, of the columns in which some method has a value."""
    filled = [name for name in comparison.columns if any(_has_value(f.get(name)) for f in comparison.figures.values())]
    groups: dict[tuple[str, str], list[str]] = {}
    for family in FAMILIES:
        for name in filled:
            if METRICS[metric_of(name)].family == family:
                groups.setdefault((family, recognizer_of(name)), []).append(name)
    for (family, recognizer), columns in groups.items():
        title = family.capitalize() + (f", by {recognizer}" if recognizer else "")
        for start in range(0, len(columns), WIDE):
            part = columns[start : start + WIDE]
            rows = []
            for method, figures in comparison.figures.items():
                cells: list[Cell] = [method]
                for name in part:
                    found = figures.get(name)
                    lead = found is not None and comparison.best.get(name) == method
                    cells.append(Best(found) if lead and found is not None else found)
                rows.append(cells)
            headers = ["method", *(f"{metric_of(name)}{ARROW[METRICS[metric_of(name)].better]}" for name in part)]
            report.table(headers, rows, caption=title if not start else f"{title}, continued")
    if empty := [name for name in comparison.columns if name not in filled]:
        report.text(
            f"No picture of any method has a value of {', '.join(empty)}: the references do not allow it, as where "
            "persons have no other photo, or no face was found."
        )


def _has_value(found: Estimate | None) -> bool:
    return found is not None and not np.isnan(found.value)


def add_glossary(report: Report, comparison: Comparison) -> None:
    """Adds what each shown metric is, from the registry."""
    names = dict.fromkeys(metric_of(name) for name in comparison.columns)
    names |= dict.fromkeys(metric_of(name) for found in comparison.sets.values() for name in found)
    terms = []
    for name in names:
        m = METRICS[name]
        traps = "" if m.traps == "–" else f" {_upper(m.traps)}."
        terms.append((name, f"{_upper(m.formula)}; {m.aggregation}. Failures: {m.failures}.{traps}"))
    report.definitions(terms, title="What these metrics are")


def _sets(report: Report, comparison: Comparison) -> None:
    names = list(dict.fromkeys(name for found in comparison.sets.values() for name in found))
    if not names:
        return
    rows: list[list[Cell]] = []
    for method, found in comparison.sets.items():
        cells: list[Cell] = [method]
        for name in names:
            figure = found.get(name)
            if figure is None:
                cells.append("not measured")
            else:
                spread = "" if figure.deviation is None else f" ± {figure.deviation:.3f}"
                cells.append(f"{figure.value:.3f}{spread} (n {figure.n:,}, {figure.m:,} references)")
        rows.append(cells)
    report.table(["method", *(f"{name} ↓" for name in names)], rows, caption="Distances of whole sets")


def _missing(report: Report, panel: Panel) -> None:
    """Adds why each metric without its network is not measured, and by which command it can be."""
    rows = [
        (name, f"not measured: {panel.missing[metric.role]}")
        for name, metric in METRICS.items()
        if metric.role in panel.missing
    ]
    if rows:
        report.section("Not measured")
        report.text("These metrics need networks that are not on this machine, and count as not measured, never as 0.")
        report.definitions(rows)


def _pareto(comparison: Comparison) -> tuple[Figure, str] | None:
    identity = [name for name in comparison.columns if metric_of(name) == "facesim/all@1"]
    text = [name for name in comparison.columns if name in TEXT]
    if not identity or not text:
        return None
    x_name, y_name = text[0], identity[-1]
    figure = Figure(figsize=(7.0, 4.2))
    axes = figure.subplots()
    for number, (method, figures) in enumerate(comparison.figures.items()):
        x, y = figures.get(x_name), figures.get(y_name)
        if x is None or y is None or np.isnan(x.value) or np.isnan(y.value):
            continue
        color = PALETTE[number % len(PALETTE)]
        spread = [[[max(e.value - e.low, 0)], [max(e.high - e.value, 0)]] for e in (x, y)]
        axes.errorbar(x.value, y.value, xerr=spread[0], yerr=spread[1], fmt="o", color=color, capsize=2, lw=1)
        axes.annotate(_plain(method), (x.value, y.value), textcoords="offset points", xytext=(6, 6), color=color)
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    clean_axes(axes)
    return figure, "Further up and further right is better; bars are 95 % intervals over persons."


def _plain(text: str) -> str:
    """Returns a name as matplotlib shows it; a pair of dollars would be a formula."""
    return text.replace("$", r"\$")


def _differences(report: Report, comparison: Comparison) -> None:
    if not comparison.differences:
        return
    report.section("Paired differences")
    report.text("The leader of each column minus the others, on the pictures that both have.")
    rows: list[list[Cell]] = [[d.column, d.leader, d.other, d.estimate, d.p] for d in comparison.differences]
    report.table(["column", "leader", "other", "difference", "p, Holm"], rows)


def _categories(report: Report, comparison: Comparison) -> None:
    names = list(dict.fromkeys(part for found in comparison.categories.values() for part in found))
    columns = [name for name in comparison.columns if metric_of(name) in SLICED]
    if not names or not columns:
        return
    report.section("By category of prompts")
    for column in columns:
        series = [
            (_plain(method), [found[part].get(column) if part in found else None for part in names])
            for method, found in comparison.categories.items()
        ]
        report.figure(interval_bars([_plain(name) for name in names], series, label=column), column)


def _slices(report: Report, comparison: Comparison) -> None:
    if not any(comparison.slices.values()):
        return
    report.section("Slices")
    report.text(f"By the reference. Fewer than {FEW} pictures: {TOO_FEW}. Groups of a gap were picked as its extremes.")
    for column in [name for name in comparison.columns if metric_of(name) in SLICED]:
        report.subsection(column)
        kinds = list(dict.fromkeys(kind for found in comparison.slices.values() for kind in found.get(column, {})))
        for kind in kinds:
            methods = [method for method, found in comparison.slices.items() if kind in found.get(column, {})]
            labels = list(dict.fromkeys(s.label for m in methods for s in comparison.slices[m][column][kind].slices))
            rows: list[list[Cell]] = []
            for method in methods:
                found = comparison.slices[method][column][kind]
                by_label = {part.label: part for part in found.slices}
                cells: list[Cell] = [method]
                for label in labels:
                    part = by_label.get(label)
                    cells.append(None if part is None else part.estimate or f"{TOO_FEW} ({part.count})")
                cells.append(f"{found.gap.high} − {found.gap.low}" if found.gap else None)
                cells.append(found.gap.difference if found.gap else None)
                rows.append(cells)
            report.table(["method", *labels, "largest gap", "difference"], rows, caption=kind)
