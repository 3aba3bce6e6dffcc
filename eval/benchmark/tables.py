"""Results as files: results.json, values.csv (every picture), table.csv and table.tex (every method)."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from eval.benchmark.compare import Comparison
from eval.benchmark.drawing import Gallery
from eval.benchmark.measure import Measured, metric_of
from eval.benchmark.suite import Suite
from eval.metrics.registry import METRICS
from eval.reports.report import write_json
from eval.slices import to_json as slices_to_json
from faceclip.statistics import Estimate
from faceclip.storage.files import write_text

_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
NOT_MEASURED = "not measured"


def write_all(
    out: Path,
    suite: Suite,
    protocol: Mapping,
    galleries: Mapping[str, Gallery],
    measured: Mapping[str, Measured],
    comparison: Comparison,
) -> None:
    """Writes all files beside the report. Raises DataError when the disk is full."""
    write_json(out / "results.json", to_json(protocol, galleries, measured, comparison))
    write_text(out / "values.csv", values_csv(suite, galleries, measured))
    write_text(out / "table.csv", table_csv(comparison))
    write_text(out / "table.tex", table_tex(comparison))


def to_json(
    protocol: Mapping,
    galleries: Mapping[str, Gallery],
    measured: Mapping[str, Measured],
    comparison: Comparison,
) -> dict:
    """Returns everything that the report shows, for `write_json`."""
    methods = {}
    for name, shown in galleries.items():
        methods[name] = {
            "drawn": int(shown.drawn.sum()),
            "failed": int((shown.applies & ~shown.drawn).sum()),
            "figures": comparison.figures[name],
            "sets": comparison.sets[name],
            "categories": comparison.categories[name],
            "slices": {column: slices_to_json(found) for column, found in comparison.slices[name].items()},
            "notes": measured[name].notes,
            "replies": measured[name].replies,
        }
    differences = [
        {"column": d.column, "leader": d.leader, "other": d.other, "difference": d.estimate, "p, Holm": d.p}
        for d in comparison.differences
    ]
    return {"protocol": protocol, "methods": methods, "best": comparison.best, "differences": differences}


def values_csv(suite: Suite, galleries: Mapping[str, Gallery], measured: Mapping[str, Measured]) -> str:
    """Returns one line per method and picture."""
    columns = list(dict.fromkeys(name for found in measured.values() for name in found.values))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", "job", "person", "category", "prompt", "seed", "status", *columns])
    for method, found in measured.items():
        for row, job in enumerate(suite.jobs):
            prompt = suite.prompts[job.prompt]
            facts = [method, job.key, suite.references.photos[job.reference].person, prompt.category, prompt.text]
            cells = [_cell(float(found.values[name][row])) if name in found.values else "" for name in columns]
            writer.writerow([*map(_harmless, facts), job.seed, galleries[method].records[row].status, *cells])
    return buffer.getvalue()


def table_csv(comparison: Comparison) -> str:
    """Returns one line per method: value, low and high of every column, and the figures of sets."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    sets = list(dict.fromkeys(name for found in comparison.sets.values() for name in found))
    head = [f"{name}{part}" for name in comparison.columns for part in ("", " low", " high", " n")]
    writer.writerow(["method", *head, *(f"{name}{part}" for name in sets for part in ("", " n"))])
    for method, figures in comparison.figures.items():
        cells: list[str] = []
        for name in comparison.columns:
            found = figures.get(name)
            cells += [NOT_MEASURED, "", "", ""] if found is None or not found.count else _numbers(found)
        for name in sets:
            figure = comparison.sets[method].get(name)
            cells += [NOT_MEASURED, ""] if figure is None else [_cell(figure.value), str(figure.n)]
        writer.writerow([_harmless(method), *cells])
    return buffer.getvalue()


def table_tex(comparison: Comparison) -> str:
    """Returns a LaTeX table (booktabs) with arrows, the best in bold where it leads beyond chance."""
    arrow = {"higher": r"$\uparrow$", "lower": r"$\downarrow$", "neither": ""}
    columns = [name for name in comparison.columns if not name.startswith("cost/")]
    head = " & ".join(f"{tex(name)} {arrow[METRICS[metric_of(name)].better]}".strip() for name in columns)
    lines = [r"\begin{tabular}{l" + "r" * len(columns) + "}", r"\toprule", rf"method & {head} \\", r"\midrule"]
    for method, figures in comparison.figures.items():
        cells = []
        for name in columns:
            found = figures.get(name)
            text = "--" if found is None or math.isnan(found.value) else f"{found.value:.3f}"
            cells.append(rf"\textbf{{{text}}}" if comparison.best.get(name) == method else text)
        lines.append(rf"{tex(method)} & {' & '.join(cells)} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def tex(text: str) -> str:
    """Returns a text with LaTeX's special characters escaped."""
    return "".join(_TEX.get(letter, letter) for letter in text if letter.isprintable())


def _numbers(found: Estimate) -> list[str]:
    return [_cell(found.value), _cell(found.low), _cell(found.high), str(found.count)]


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _harmless(text: str) -> str:
    """Returns a text that spreadsheets do not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
