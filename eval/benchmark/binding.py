"""Measures whether a colour stays in the region that it was asked for: regions × colours on renders with exact masks.

    python -m eval.benchmark.binding --model EXPORT --data DIR --out DIR

Each person is drawn from one reference and one seed with a neutral prompt, and again with prompts that ask for a colour
of the hair, the hat or the clothes. How far each region of the reference's mask moved towards the asked colour tells
binding and leakage (`eval.metrics.bindings`). Two exports, trained with and without the alignment loss, are compared by
two runs.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from eval.arguments import MAX_SEED, REPORT, use_threads
from eval.hashes import pipeline_hash
from eval.metrics.bindings import COLOURS, SMALLEST, Binding, asked_colours, binding, movement, region_colours
from eval.reports.report import Report, write_json
from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.data.records import REGIONS
from faceclip.errors import EmptyDatasetError
from faceclip.settings import run, setting
from faceclip.statistics import Estimate, identity_bootstrap
from faceclip.training.checkpoints import make_folder
from makeup_plugin.loading import load_pipeline

NEUTRAL = "a portrait of a person"
ASKED: Mapping[str, str] = {
    "hair": "a portrait of a person with {colour} hair",
    "hat": "a portrait of a person with a {colour} hat",
    "clothes": "a portrait of a person with a {colour} shirt",
}
TABLE_COLOURS = ("red", "green", "blue", "yellow")
WATCHED = ("background", "skin", "hair", "hat", "clothes")
"""Regions whose colours are compared; the others are small, or lie within the face."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A picture that asks for a colour in a region: row of the reference, region, colour."""

    row: int
    region: str
    colour: str

    @property
    def prompt(self) -> str:
        return ASKED[self.region].format(colour=self.colour)


def plan(arrays: FaceArrays, people: int, *, seed: int = 0) -> list[Question]:
    """Returns each person's first turned portrait, asked for every region of `ASKED` that it shows, in a colour by
    turns.

    Raises EmptyDatasetError where no portrait shows such a region.
    """
    if arrays.regions is None:
        raise EmptyDatasetError("--data: binding needs renders, whose regions are known")
    asked = []
    for place, person in enumerate(np.unique(arrays.identity)[:people]):
        row = int(np.flatnonzero(np.asarray(arrays.identity) == person)[-1])
        mask = np.asarray(arrays.regions[row])
        for number, region in enumerate(ASKED):
            if (mask == REGIONS.index(region)).sum() >= SMALLEST:
                colour = TABLE_COLOURS[(place + number + seed) % len(TABLE_COLOURS)]
                asked.append(Question(row=row, region=region, colour=colour))
    if not asked:
        raise EmptyDatasetError("--data: no portrait shows hair, a hat or clothes")
    return asked


def draw(
    pipeline: Any,
    arrays: FaceArrays,
    rows: Sequence[int],
    prompts: Sequence[str],
    *,
    seed: int,
    steps: int | None = None,
) -> NDArray[np.uint8]:
    """Returns pictures (N, S, S, 3) of references and prompts; a reference has one seed, whatever is asked."""
    images = []
    for row, prompt in track(list(zip(rows, prompts, strict=True)), description="pictures", transient=True):
        output = pipeline(
            prompt,
            image=np.array(arrays.images[row]),
            landmarks=np.array(arrays.landmarks_5[row]),
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed * 1_000_003 + row),
        )
        images.append(np.asarray(output.images[0].convert("RGB")))
    return np.stack(images)


def measure(
    drawn: NDArray[np.uint8], base: NDArray[np.uint8], arrays: FaceArrays, asked: Sequence[Question]
) -> Binding:
    """Returns binding of pictures (N, S, S, 3) against those of the neutral prompt (N, S, S, 3), over `WATCHED`."""
    assert arrays.regions is not None  # checked by the plan
    masks = np.stack([np.asarray(arrays.regions[question.row]) for question in asked])
    watched = [REGIONS.index(name) for name in WATCHED]
    after, before = (region_colours(images, masks, len(REGIONS))[:, watched] for images in (drawn, base))
    moved = movement(after, before, asked_colours([question.colour for question in asked]))
    return binding(moved, np.array([WATCHED.index(question.region) for question in asked]))


def summarize(
    found: Binding, asked: Sequence[Question], identity: NDArray[np.integer]
) -> dict[str, dict[str, Estimate]]:
    """Returns leakage/bound@1 and leakage/other@1 by asked region and of all, with intervals over persons."""
    person = np.array([int(identity[question.row]) for question in asked])
    region = np.array([question.region for question in asked])
    result: dict[str, dict[str, Estimate]] = {}
    for name in ("all", *dict.fromkeys(region)):
        here = np.ones(len(region), bool) if name == "all" else region == name
        result[str(name)] = {}
        for metric, values in (("leakage/bound@1", found.bound), ("leakage/other@1", found.leaked)):
            known = here & ~np.isnan(values)
            result[str(name)][metric] = identity_bootstrap(values[known], person[known])
    return result


@dataclass(kw_only=True)
class BindingSettings:
    """Which model draws which people."""

    model: str = setting("tiny", "pipeline: a folder, a hub id, or the one that ships", path=True)
    data: Path = setting(help="data set of renders")
    out: Path = setting(help="receives results.json and report.html")
    split: str = setting("test", "whose portraits")
    people: int = setting(40, "persons, each asked for up to three regions", least=1)
    steps: int | None = setting(None, "sampler steps; by default those that suit the model")
    seed: int = setting(0, "of the noise and of the colours' order", least=0, most=MAX_SEED)
    device: str = setting("cpu", "of the pipeline, as cuda")
    threads: int | None = setting(None, "torch threads", least=1)


def compare(settings: BindingSettings) -> None:
    """Draws, measures, writes the report and prints the figures."""
    use_threads(settings.threads)
    pipeline = load_pipeline(settings.model, device=settings.device, progress=False, key="--device")
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    arrays = load_arrays(settings.data, settings.split, size=size)
    asked = plan(arrays, settings.people, seed=settings.seed)
    make_folder(settings.out, "--out ", REPORT)
    rows = [question.row for question in asked]
    drawn = draw(
        pipeline, arrays, rows, [question.prompt for question in asked], seed=settings.seed, steps=settings.steps
    )
    neutral = list(dict.fromkeys(rows))
    base = draw(pipeline, arrays, neutral, [NEUTRAL] * len(neutral), seed=settings.seed, steps=settings.steps)
    base = base[[neutral.index(row) for row in rows]]
    found = measure(drawn, base, arrays, asked)
    figures = summarize(found, asked, np.asarray(arrays.identity))
    content = {
        "figures": figures,
        "table": {
            name: dict(zip(WATCHED, map(float, line), strict=True))
            for name, line in zip(WATCHED, found.table, strict=True)
        },
        "model": pipeline_hash(settings.model),
        "data": arrays.content_hash,
        "prompts": [question.prompt for question in asked],
        "seed": settings.seed,
    }
    write_json(settings.out / "results.json", content)
    path = _report(figures, found, asked, arrays, base, drawn, settings).write(settings.out / "report.html")
    for name, part in figures.items():
        print(name, ", ".join(f"{metric} {value}" for metric, value in part.items()))
    print(f"report: {path}")


def _report(
    figures: Mapping[str, Mapping[str, Estimate]],
    found: Binding,
    asked: Sequence[Question],
    arrays: FaceArrays,
    base: NDArray[np.uint8],
    drawn: NDArray[np.uint8],
    settings: BindingSettings,
) -> Report:
    report = Report("Binding of colours", f"{len(asked)} pictures, model {settings.model}, seed {settings.seed}.")
    report.section("Figures")
    report.text(
        "1: the region's mean colour became the asked one; 0: it stayed as in the picture of the neutral prompt."
    )
    metrics = ("leakage/bound@1", "leakage/other@1")
    report.table(["asked region", *metrics], [[name, *(part[m] for m in metrics)] for name, part in figures.items()])
    rows: list[list[Any]] = [
        [name, *map(float, line)] for name, line in zip(WATCHED, found.table, strict=True) if not np.isnan(line).all()
    ]
    report.table(["asked in", *WATCHED], rows, caption="Mean movement of each region, by the region that was asked for")
    shown = range(min(12, len(asked)))
    report.image_grid(
        [[np.array(arrays.images[asked[n].row]), base[n], drawn[n]] for n in shown],
        row_labels=[asked[n].prompt for n in shown],
        column_labels=["reference", "neutral prompt", "asked"],
        caption=f"Colours: {', '.join(f'{name} {COLOURS[name]}' for name in TABLE_COLOURS)}.",
    )
    return report


main = partial(run, compare, BindingSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())
