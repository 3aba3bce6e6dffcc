"""Writes the report of a curation as one HTML file: counts, histograms and pictures at thresholds, overlaps, speed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faceclip.data.curate import page
from faceclip.data.curate.deciding import Decision
from faceclip.data.curate.measuring import SECONDS, Shards
from faceclip.data.curate.output import Pictures
from faceclip.data.curate.rules import Overlap, Rule, numbers
from faceclip.storage.files import read_json, write_text

BINS = 48
TAILS = 0.005  # share of the values that a histogram clips on either side


class Thumbnails:
    """Chooses the pictures of a report: the `count` nearest to each threshold on either side, and near-duplicates with
    the rows that are kept in their place. `wanted` names them by (split, row number)."""

    def __init__(self, splits: Sequence[Shards], decision: Decision, count: int) -> None:
        self.splits, self.count = splits, count
        self.dropped: dict[str, list[tuple[int, float]]] = {}
        self.kept: dict[str, list[tuple[int, float]]] = {}
        self.histograms: dict[str, tuple[NDArray, NDArray]] = {}
        for rule in decision.rules:
            self._look(rule)
        self.repeats = sorted(decision.instead.items())[:count]
        shown = [place for found in (*self.dropped.values(), *self.kept.values()) for place, _ in found]
        shown += [place for pair in self.repeats for place in pair]
        self.wanted: set[tuple[str, int]] = {decision.row(place) for place in shown}

    def _look(self, rule: Rule) -> None:
        values = column_values(self.splits, rule.column)
        dropped = rule.drops(values)
        distance = np.abs(values - rule.bound)
        for found, mask in ((self.dropped, dropped), (self.kept, ~dropped & ~np.isnan(values))):
            places = np.flatnonzero(mask)
            nearest = places[np.argsort(distance[places], kind="stable")[: self.count]]
            found[rule.name] = [(int(place), float(values[place])) for place in nearest]
        self.histograms[rule.name] = histogram(values[~np.isnan(values)], rule.bound)


def column_values(splits: Sequence[Shards], column: str) -> NDArray[np.float64]:
    """Returns a figure of every row of all splits (N,), NaN for missing figures."""
    parts = [numbers(shards.table(number, [column]), column) for shards in splits for number in range(shards.count)]
    return np.concatenate(parts)


def histogram(values: NDArray[np.float64], bound: float) -> tuple[NDArray, NDArray]:
    """Returns counts (BINS,) and edges (BINS + 1,). The range leaves out the tails and includes the bound."""
    if not len(values):
        return np.zeros(BINS, np.int64), np.linspace(bound - 1, bound + 1, BINS + 1)
    low, high = np.quantile(values, [TAILS, 1 - TAILS])
    low, high = min(low, bound), max(high, bound)
    margin = 0.02 * (high - low) or 1.0
    return np.histogram(np.clip(values, low, high), BINS, (low - margin, high + margin))


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    splits: Sequence[Shards],
    decision: Decision,
    thumbnails: Thumbnails,
    pictures: Pictures,
    overlap: Overlap,
) -> None:
    """Writes the report to `path`. It contains pictures of the source, so publish it only if you may publish these.

    `summary` is the content of curation.json; `pictures` holds the encoded pictures of `thumbnails.wanted`.
    """
    blocks = [page.heading("Counts")]
    rows, kept = sum(summary["rows"].values()), sum(summary["kept"].values())
    blocks.append(page.text(f"{kept:,} of {rows:,} pictures are kept. It holds small copies of some of them."))
    bounds = {rule.name: f"{rule.column} {rule.side} {rule.bound:g}" for rule in decision.rules}
    alone = dict(zip(overlap.names, overlap.alone.tolist(), strict=True))
    blocks.append(
        page.table(
            ("reason", "kept are", "dropped", "share", "by it alone"),
            [
                (name, bounds.get(name, ""), f"{count:,}", f"{count / max(rows, 1):.2%}", f"{alone[name]:,}")
                for name, count in decision.counts().items()
            ],
        )
    )
    if summary["unmeasured"]:
        blocks += [
            page.heading("Not measured"),
            page.table(("reason", "pictures"), list(summary["unmeasured"].items())),
        ]
        blocks.append(page.table(("example",), [(text,) for text in _examples(splits)]))
    blocks.append(page.heading("Thresholds"))
    for rule in decision.rules:
        blocks += _at_threshold(rule, bounds[rule.name], decision, thumbnails, pictures)
    if thumbnails.repeats:
        blocks.append(page.heading("Near-duplicates"))
        shown = [
            [(pictures.get(decision.row(place)), label) for place, label in ((kept_, "kept"), (dropped, "dropped"))]
            for dropped, kept_ in thumbnails.repeats
        ]
        blocks.append(page.pictures("Pairs", [cell for pair in shown for cell in pair]))
    blocks += [page.heading("Overlaps"), page.text("Pictures that both rules drop.")]
    used = [number for number, name in enumerate(overlap.names) if overlap.counts[number, number]]
    names = [overlap.names[number] for number in used]
    lines = [(overlap.names[one], *(f"{overlap.counts[one, other]:,}" for other in used)) for one in used]
    blocks.append(page.table(("", *names), lines))
    blocks += [
        page.heading("Speed"),
        page.table(("part", "ms of a core per picture", "pictures/s per core", "share"), _speed(path.parent)),
    ]
    write_text(path, page.document("Curation", blocks))


def _at_threshold(rule: Rule, bound: str, decision: Decision, thumbnails: Thumbnails, pictures: Pictures) -> list[str]:
    counts, edges = thumbnails.histograms[rule.name]
    blocks = [page.heading(f"{rule.name}: {bound}", 3), page.histogram(counts, edges, rule.bound)]
    for title, found in (("Dropped, next to it", thumbnails.dropped), ("Kept, next to it", thumbnails.kept)):
        cells = [(pictures.get(decision.row(place)), f"{value:.4g}") for place, value in found[rule.name]]
        if cells:
            blocks.append(page.pictures(title, cells))
    return blocks


def _examples(splits: Sequence[Shards]) -> list[str]:
    found: list[str] = []
    for shards in splits:
        for number in range(shards.count):
            found += [text for texts in shards.manifest(number)["examples"].values() for text in texts]
    return found[:20]


def _speed(out: Path) -> list[tuple[str, str, str, str]]:
    """Returns the rows of the table of speed, from processor seconds summed over all workers."""
    total: dict[str, float] = {}
    for file in sorted((out / SECONDS).glob("*.json")):
        for name, value in read_json(file).items():
            total[name] = total.get(name, 0.0) + value
    rows = total.pop("rows", 0)
    whole = sum(total.values())
    lines = [*total.items(), ("all", whole)]
    return [
        (name, f"{1000 * value / rows:.2f}", f"{rows / value:,.1f}", f"{value / whole:.0%}")
        for name, value in lines
        if rows and value and whole
    ]
