"""Writes the generation report: figures per arm, comparisons, criteria, and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.arms.plan import ARMS, Job, first_people
from eval.arms.scores import Scores, compare, summarize
from eval.reports.report import Cell, Report, interval_bars
from faceclip.data.arrays import FaceArrays
from faceclip.statistics import Estimate
from faceclip.training.towers.labels import JUDGED

RULES = (
    "Every arm draws the same people with the same words and the same noise. References and gallery portraits are cut "
    "by their true landmarks, those of the labels, for arms and recognizers alike; generated faces by the judge's. "
    "Shading maps are not the true ones: the pipeline's fitter makes them from the reference, as it would from a "
    "photograph. Identity is the cosine between the "
    "generated and the reference face, by the recognizer that conditions the generator and by a second one of "
    "other architecture and seed that no training ever saw (the shipped one; results.json has the hashes of the "
    "networks that were used). A face that the detector does not find counts as "
    "similarity 0 and as not recognized. Recognized: among the frontal portraits of all identities of the split the "
    "reference person's is the nearest, ties counted against. Pose error: mean of yaw, pitch and roll between the "
    "judge's estimate and the reference's true pose; the judge is another network than the one that fits the "
    "shading map. Prompt accuracy: share of the named hair colors, glasses, hats, beards and expressions that the "
    "judge sees. Prompts are other people's captions, and one that names an expression is used only where the "
    "reference has that very expression, because the shading map shows the reference's face as it is: few prompts name "
    "one, and prompt accuracy hardly tests whether words change the expression (the counts stand with the attributes). "
    "Light error: how differently the light that the fitter sees on the face and the reference's shade a head, with "
    "brightness left out. Judge and detector agree: their five points lie within 5 % of the face's width. "
    "Intervals are 95 %, from 2,000 resamples of whole identities. Fréchet distance: computed as FID, "
    "between the pictures and all portraits of the split, by the judge's features instead of Inception's; it falls "
    "with the number of pictures and has no interval. The real portraits are among those that they are compared with."
)
MAIN = (
    "similarity, recognizer",
    "similarity, second recognizer",
    "recognized, recognizer",
    "recognized, second recognizer",
    "pose error (°)",
    "light error",
    "prompt accuracy, all",
    "faces found",
    "judge and detector agree",
)
MAX_PROMPT_LOSS = 0.03


def add_sections(
    report: Report,
    scores: Mapping[str, Scores],
    context: Mapping[str, Scores],
    jobs: Sequence[Job],
    examples: "Examples",
) -> list[tuple[str, str, bool]]:
    """Adds all sections to the report; returns the criteria as `check_criteria` does.

    scores: by arm. context: scores of real portraits by their label.
    """
    summaries = {name: summarize(value) for name, value in scores.items()}
    real = {name: summarize(value) for name, value in context.items()}
    report.section("Generation")
    report.text(RULES)
    report.text(
        f"{len(jobs):,} pictures per arm of {len({int(i) for i in next(iter(scores.values())).identity})} "
        "identities. A model trained on renders alone: figures say nothing about photographs."
    )
    report.image_grid(
        examples.grid,
        row_labels=examples.prompts,
        column_labels=examples.headers,
        pixels=112,
        caption="Prompts were written for other people; the first pictures of the plan, not chosen.",
    )
    _main_table(report, summaries, real, {name: value.frechet for name, value in {**scores, **context}.items()})
    report.figure(_bars(summaries), "Identity similarity by both recognizers, with 95 % intervals.")
    _attribute_table(report, summaries, real)
    _difference_table(report, scores)
    criteria = check_criteria(scores)
    report.subsection("What was asked, and what came out")
    report.table(
        ["criterion", "measured", "met"], [[text, measured, "yes" if met else "no"] for text, measured, met in criteria]
    )
    return criteria


def _main_table(
    report: Report,
    summaries: Mapping[str, Mapping[str, Estimate]],
    real: Mapping[str, Mapping[str, Estimate]],
    frechet: Mapping[str, float],
) -> None:
    rows = [
        [name, *(figures.get(column) for column in MAIN), frechet[name]]
        for name, figures in {**summaries, **real}.items()
    ]
    caption = "Per arm; below, what real portraits get under the same rules"
    report.table(["arm", *MAIN, "Fréchet distance"], rows, caption=caption)
    report.table(["arm", "what conditions it"], [[name, ARMS[name].description] for name in summaries])


def _attribute_table(
    report: Report, summaries: Mapping[str, Mapping[str, Estimate]], real: Mapping[str, Mapping[str, Estimate]]
) -> None:
    columns = [f"prompt accuracy, {attribute}" for attribute in JUDGED]
    named = next(iter(summaries.values()))
    counts = [f"{named[column].count:,} of {named[column].identities:,} people" for column in columns]
    rows: list[list[Cell]] = [["prompts that name it", *counts]]
    rows += [[name, *(figures[column] for column in columns)] for name, figures in {**summaries, **real}.items()]
    report.table(["arm", *JUDGED], rows, caption="Prompt accuracy by attribute")


def _difference_table(report: Report, scores: Mapping[str, Scores]) -> None:
    """Adds the table of differences from the arm `text`, if there are this arm and another one."""
    names = ("all", *JUDGED)
    rows: list[list[Cell]] = []
    for arm in scores:
        if arm != "text" and "text" in scores:
            difference = compare(scores[arm], scores["text"])
            rows.append([arm, *(difference[f"prompt accuracy, {name}"] for name in names)])
    if rows:
        report.table(["arm", *names], rows, caption="Prompt accuracy minus that of text only, same prompts and noise")


def _bars(summaries: Mapping[str, Mapping[str, Estimate]]):
    series = [
        (name, [figures[f"similarity, {name}"] for figures in summaries.values()])
        for name in ("recognizer", "second recognizer")
    ]
    return interval_bars(list(summaries), series, label="cosine to the reference")


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A grid of pictures (H, W, 3) or None, with the prompt of each row and the header of each column."""

    prompts: list[str]
    headers: list[str]
    grid: list[list[NDArray[np.uint8] | None]]


def first_examples(
    jobs: Sequence[Job],
    pictures: Mapping[str, NDArray[np.uint8]],
    arrays: FaceArrays,
    maps: Mapping[int, NDArray[np.uint8]],
) -> Examples:
    """Returns the first picture of each of the plan's first people by every arm, beside the reference and its shading
    map.

    pictures: by arm (N, S, S, 3). maps: shading maps by the reference's row; a missing one leaves a gap.
    """
    grid, prompts = [], []
    for number in first_people(jobs, arrays.identity):
        row = jobs[number].reference
        made = [images[number] for images in pictures.values()]
        grid.append([np.asarray(arrays.images[row]), maps.get(row), *made])
        prompts.append(jobs[number].prompt)
    return Examples(prompts=prompts, headers=["reference", "shading map fitted to it", *pictures], grid=grid)


def check_criteria(scores: Mapping[str, Scores]) -> list[tuple[str, str, bool]]:
    """Checks the project's criteria, and returns (criterion, measured value, whether it is met) for each.

    A criterion is met if the whole 95 % interval of the paired difference meets it.
    """
    criteria: list[tuple[str, str, bool]] = []
    for name in scores:
        if name == "text" or "text" not in scores:
            continue
        difference = compare(scores[name], scores["text"])
        for judge in scores[name].similarity:
            value = difference[f"similarity, {judge}"]
            criteria.append((f"{name} beats text only on similarity by the {judge}", f"{value}", value.low > 0))
        value = difference["prompt accuracy, all"]
        criteria.append(
            (f"{name} loses at most {MAX_PROMPT_LOSS} of prompt accuracy", f"{value}", value.low >= -MAX_PROMPT_LOSS)
        )
    for name in scores:
        other = ARMS[name].counterpart
        if other is not None and other in scores:
            value = compare(scores[name], scores[other])["pose error − half the other's (°)"]
            mine, theirs = scores[name].pose_error.mean(), scores[other].pose_error.mean()
            text = f"{name} at least halves the pose error of {other}"
            measured = f"{mine:.1f}° against {theirs:.1f}°; difference to the half {value}°"
            criteria.append((text, measured, value.high <= 0))
    return criteria
