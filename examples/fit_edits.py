"""What pose=, expression= and light= do, as a sheet of maps and pictures: python examples/fit_edits.py --out FILE."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from faceclip.people.example import example_portrait
from faceclip.settings import run, setting
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.marking.provenance import save_image, sheet_record

# Each row of the sheet: the words, and what is changed in the fit.
ROWS = (
    [("a person", {"pose": {"yaw": angle}}) for angle in (-45, -20, 0, 20, 45)],
    [
        (words, {"expression": controls})
        for words, controls in (
            ("a person", "neutral"),
            ("a smiling person", {"smile": 1.0}),
            ("a person with an open mouth", {"jaw_open": 1.0}),
            ("a person with lowered brows", {"brow_down": 1.0}),
            ("a person with pursed lips", {"pucker": 1.0}),
        )
    ],
    [("a person", {"light": place}) for place in ((-1, 0.3, 0.4), (-1, 1, 1), (0, 1, 1), (1, 1, 1), (1, 0.3, 0.4))],
)


@dataclass(kw_only=True)
class SheetSettings:
    """Who is drawn, and where the sheet goes."""

    photo: Path | None = setting(None, "photo of the person; a rendered one by default")
    steps: int | None = setting(None, "sampler steps; those of the model by default")
    size: int = setting(128, "px of one picture in the sheet")
    model: str = setting("tiny", "pipeline: a folder, a hub id, or tiny", path=True)
    out: Path = setting(Path("runs/examples/fit_edits.png"), "the sheet")


def draw(settings: SheetSettings) -> None:
    """Two lines for each of pose, expression and light: the shading maps, and the pictures that follow them."""
    pipeline = FaceMakeUpPipeline.from_pretrained(settings.model)
    photo = example_portrait(0) if settings.photo is None else settings.photo
    side = settings.size
    sheet = Image.new("RGB", (5 * side, 2 * len(ROWS) * side))
    for row, changes in enumerate(ROWS):
        for column, (words, change) in enumerate(changes):
            result = pipeline(
                words, photo, num_inference_steps=settings.steps, generator=torch.manual_seed(0), **change
            )
            for line, picture in enumerate((result.shading_maps[0], result.images[0])):
                sheet.paste(picture.resize((side, side)), (column * side, (2 * row + line) * side))
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    words = list(dict.fromkeys(words for changes in ROWS for words, _ in changes))
    save_image(sheet, settings.out, sheet_record(model=settings.model, prompts=words))
    print(settings.out)


if __name__ == "__main__":
    if status := run(draw, SheetSettings, flags=True):
        sys.exit(status)
