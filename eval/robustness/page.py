"""The report of robustness: curves of damages, a table of attacks, pictures drawn from damaged references."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.reports.report import Cell, Report, line_plot
from eval.robustness.attacks import ATTACKS
from eval.robustness.damages import DAMAGES
from eval.robustness.measure import CLEAN, Condition, Kept
from faceclip.statistics import Estimate


def make_report(
    data: Mapping[str, Any],
    kept: Sequence[Kept],
    drawn: Mapping[Condition, Mapping[str, Estimate]],
    recognizers: Sequence[str],
    attacked: str,
) -> Report:
    """Returns the whole page."""
    report = Report("Robustness", f"{data['persons']:,} references, {data['gallery']:,} other photos in the gallery.")
    report.section("What is measured")
    report.text(
        "The face of a damaged reference is looked for anew. Cosine: to the undamaged reference, where a face is "
        "found. Rank-1: whether another photo of the person is first in the gallery; no face is a miss. Intervals "
        "are 95 % over persons."
    )
    report.text(f"Licence of the photos: {data['licence']}. Origin: {data['origin']}.")
    _table(report, [item for item in kept if item.condition.name == CLEAN], "Undamaged photos", strength=False)
    for name in DAMAGES:
        part = [item for item in kept if item.condition.name == name]
        if part:
            report.section(name.partition(",")[0])
            _curve(report, part, name, recognizers)
            _table(report, part, name)
    attacks = [item for item in kept if item.condition.name in ATTACKS]
    if attacks:
        report.section("Attacks")
        report.text(
            f"FGSM and PGD move each pixel of the photo by at most so many levels of 255, against {attacked}; the "
            "photo is rounded to 8 bits and its face is looked for anew. The other recognizers say whether the attack "
            "transfers to them."
        )
        for name in ATTACKS:
            _table(report, [item for item in attacks if item.condition.name == name], f"{name}, levels")
    if drawn:
        report.section("Pictures")
        report.text(
            "Mean cosine of a picture, drawn from the damaged reference, and the undamaged reference; 0 without a face "
            "in the reference or in the picture."
        )
        rows: list[list[Cell]] = [
            [_name(condition), *(found[name] for name in recognizers)] for condition, found in drawn.items()
        ]
        report.table(["reference", *recognizers], rows)
    return report


def _name(condition: Condition) -> str:
    return CLEAN if condition.name == CLEAN else f"{condition.name} {condition.strength:g}"


def _table(report: Report, part: Sequence[Kept], name: str, *, strength: bool = True) -> None:
    rows: list[list[Cell]] = []
    for item in part:
        start: list[Cell] = [f"{item.condition.strength:g}"] if strength else []
        rows.append([*start, item.recognizer, item.cosine, item.rank_1, item.detection])
    report.table([*([name] if strength else []), "recognizer", "cosine", "rank-1", "face found"], rows, caption=name)


def _curve(report: Report, part: Sequence[Kept], name: str, recognizers: Sequence[str]) -> None:
    series = []
    for recognizer in recognizers:
        own = [item for item in part if item.recognizer == recognizer]
        strengths = [item.condition.strength for item in own]
        series.append((f"{recognizer}: rank-1", strengths, [item.rank_1.value for item in own]))
        seen = [(item.condition.strength, item.cosine.value) for item in own if item.cosine is not None]
        series.append((f"{recognizer}: cosine", [x for x, _ in seen], [y for _, y in seen]))
    report.figure(line_plot(series, x_label=name, y_label="identity kept"), f"Identity kept under {name}.")
