"""Training curves of both stages from their logs."""

import json
from collections import defaultdict
from pathlib import Path

from eval.reports.report import Report, line_plot

RUNS = {"encoder": "Stage 1, joint encoder", "generator": "Stage 2, generator plugin"}


def read_log(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Returns figure → (steps, values) of a log's training lines; null is NaN, a half-written last line is left out."""
    series: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    if not path.is_file():
        return {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            # A killed run may end in half a line.
            continue
        if entry.get("kind") != "train":
            continue
        for name, value in entry.items():
            if name not in ("step", "kind"):
                series[name][0].append(entry["step"])
                series[name][1].append(float("nan") if value is None else float(value))
    return dict(series)


def add_curves(report: Report, root: Path) -> None:
    """Adds the losses of each stage over its steps, with its mean speed."""
    for folder, title in RUNS.items():
        series = read_log(root / folder / "log.jsonl")
        losses = [(name, *values) for name, values in series.items() if name.startswith("loss")]
        if not losses:
            continue
        report.subsection(title)
        report.figure(line_plot(losses, x_label="step", y_label="loss", logarithmic_y=True), "Training losses.")
        if "samples_per_second" in series:
            speeds = series["samples_per_second"][1]
            report.text(f"{sum(speeds) / len(speeds):.0f} samples per second on this machine.")
