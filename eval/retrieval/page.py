"""The retrieval report."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from eval.reports.report import Cell, Report, interval_bars, line_plot
from eval.retrieval.run import JOINT, KindResult, cumulative_match
from faceclip.retrieval.queries import DESCRIPTIONS, QueryKind
from faceclip.storage.shards import ShardedArray

TIE_RULE = (
    "Ties count against the model: a wrong portrait with the same score as the right one (to 10⁻⁶) is ranked before "
    "it. A query or portrait without a detected face is a miss, not left out. Intervals are 95 %, from 2,000 "
    "resamples of whole identities."
)

TITLES = {
    "face": "Face",
    "face_frontal": "Face, one frontal portrait per person",
    "text": "Text",
    "face+text": "Face and text together (composed)",
    "image": "Image",
}


def add_sections(
    report: Report,
    results: Mapping[QueryKind, KindResult],
    images: NDArray[np.uint8] | ShardedArray,
    *,
    examples: int = 6,
) -> None:
    """Adds tables of every kind, the comparison plot, and examples of composed queries."""
    report.section("Retrieval")
    report.text(TIE_RULE)
    kinds = list(results)
    names = [JOINT, "face alone", "text alone", "image alone", "concatenation [face ; text]", "random"]
    series = [
        (name, [results[k].outcomes[name].summary["rank-1"] if name in results[k].outcomes else None for k in kinds])
        for name in names
    ]
    report.figure(
        interval_bars(kinds, series, label="rank-1", size=(9, 3.6)),
        "Rank-1 by kind of query and space, with 95 % intervals. Missing bars: the space cannot take that query.",
    )
    for kind, result in results.items():
        report.subsection(TITLES[kind])
        report.text(f"{DESCRIPTIONS[kind]}. {len(result.queries):,} queries.")
        _table(report, result)
        if result.first:
            _first_table(report, result)
        if kind == "face+text":
            _curves(report, result)
            _examples(report, result, images, examples)


def _table(report: Report, result: KindResult) -> None:
    headers = ["space", "rank-1", "rank-5", "rank-10", "mAP", "joint − space, rank-1"]
    rows = [
        [
            name,
            *(outcome.summary[metric] for metric in ("rank-1", "rank-5", "rank-10", "mAP")),
            result.differences.get(name),
        ]
        for name, outcome in result.outcomes.items()
    ]
    report.table(headers, rows, emphasized=[0])


def _first_table(report: Report, result: KindResult) -> None:
    columns = list(next(iter(result.first.values())))
    rows: list[list[Cell]] = [[name, *(shares[column] for column in columns)] for name, shares in result.first.items()]
    report.table(["space", *columns], rows, caption="What stands first, as shares of the queries", emphasized=[0])


def _curves(report: Report, result: KindResult) -> None:
    total = int((~result.queries.excluded).sum(axis=1).max())
    at = [k for k in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if k < total] + [total]
    series = [(name, at, cumulative_match(outcome.ranks, at)) for name, outcome in result.outcomes.items()]
    figure = line_plot(series, x_label="rank", y_label="share answered", logarithmic_x=True)
    report.figure(figure, "Composed queries answered within a rank.")


def _examples(report: Report, result: KindResult, images: NDArray[np.uint8] | ShardedArray, count: int) -> None:
    """Adds the same queries answered by the joint space and by the concatenation."""
    rows = np.unique(np.linspace(0, len(result.queries) - 1, count).astype(int))
    other = "concatenation [face ; text]"
    for name in (JOINT, other):
        grid, labels = _grid(result, images, rows, name)
        report.image_grid(
            grid,
            row_labels=labels,
            column_labels=["this face", "1st", "2nd", "3rd", "4th", "5th"],
            pixels=96,
            caption=f"{name}: the face, the words, and what is ranked first. A green frame marks a right answer.",
        )


def _grid(
    result: KindResult, images: NDArray[np.uint8] | ShardedArray, rows: NDArray[np.integer], name: str
) -> tuple[list[list[NDArray[np.uint8]]], list[str]]:
    grid = []
    for row in rows:
        answers = result.top[name][row]
        framed = [_frame(images[answer], bool(result.queries.relevant[row, answer])) for answer in answers]
        grid.append([np.asarray(images[result.queries.face[row]]), *framed])
    return grid, [result.queries.text[row] for row in rows]


def _frame(image: NDArray[np.uint8], right: bool) -> NDArray[np.uint8]:
    framed = np.array(image)
    if right:
        width = max(2, image.shape[0] // 32)
        for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
            framed[edge] = (46, 160, 67)
    return framed
