"""The picture of the README: synthetic people and four prompts each, drawn by the pipeline that ships.

python examples/people.py
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eval.reports.sheet import save_sheet
from faceclip.people.example import example_portrait
from faceclip.settings import run, setting
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.marking.provenance import sheet_record


@dataclass(kw_only=True)
class SheetSettings:
    """Who is drawn, with which words, and where the sheet goes."""

    prompts: tuple[str, ...] = setting(
        (
            "a smiling person with red hair",
            "a person with round glasses and a blue cap",
            "a person with long blond hair",
            "a person with a full beard and a green hoodie",
        ),
        "one column each",
    )
    people: tuple[int, ...] = setting((0, 1, 2, 3, 4), "numbers of the synthetic people")
    model: str = setting("tiny", "pipeline: a folder, a hub id, or tiny", path=True)
    out: Path = setting(Path("runs/examples/people.png"), "the sheet")


def draw(settings: SheetSettings) -> None:
    """One row per person: the reference, the shading map that the pipeline fits to it, and the pictures."""
    pipeline = FaceMakeUpPipeline.from_pretrained(settings.model)
    grid = []
    for person in settings.people:
        portrait = example_portrait(person)
        generators = [torch.Generator().manual_seed(number) for number in range(len(settings.prompts))]
        output = pipeline(list(settings.prompts), image=portrait, generator=generators)
        small = portrait.resize(output.images[0].size)
        row = (small, output.shading_maps[0], *output.images)
        grid.append([None if picture is None else np.asarray(picture) for picture in row])
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    headers = ["reference", "fitted shading map", *settings.prompts]
    save_sheet(settings.out, grid, headers, provenance=sheet_record(model=settings.model, prompts=settings.prompts))
    print(settings.out)


if __name__ == "__main__":
    if status := run(draw, SheetSettings, flags=True):
        sys.exit(status)
