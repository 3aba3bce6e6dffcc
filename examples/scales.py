"""What the two scales do, as a table of pictures: python examples/scales.py portrait.png."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from faceclip.settings import run, setting
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.marking.provenance import save_image, sheet_record


@dataclass(kw_only=True)
class ScaleSettings:
    """Who is drawn, and at which scales."""

    photo: Path = setting(help="photo of the person", positional=True)
    identity: tuple[float, ...] = setting((0.0, 0.5, 1.0, 1.5), "scales of the identity channel, a column each")
    shading: tuple[float, ...] = setting((0.0, 0.5, 1.0), "scales of the shading channel, a row each")
    prompt: str = setting("a smiling person", "what is drawn")
    model: str = setting("tiny", "pipeline: a folder, a hub id, or tiny", path=True)
    out: Path = setting(Path("runs/examples/scales.png"), "the table")


def compare(settings: ScaleSettings) -> None:
    """The face is found and encoded once: the pipeline remembers it."""
    pipeline = FaceMakeUpPipeline.from_pretrained(settings.model)
    rows = [
        [
            pipeline(
                settings.prompt,
                image=settings.photo,
                identity_scale=identity,
                shading_scale=shading,
                generator=torch.manual_seed(0),
            ).images[0]
            for identity in settings.identity
        ]
        for shading in settings.shading
    ]
    width, height = rows[0][0].size
    table = Image.new("RGB", (width * len(settings.identity), height * len(settings.shading)))
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            table.paste(picture, (column * width, row * height))
    save_image(table, settings.out, sheet_record(model=settings.model, prompts=[settings.prompt]))
    print(settings.out)


if __name__ == "__main__":
    if status := run(compare, ScaleSettings, flags=True):
        sys.exit(status)
