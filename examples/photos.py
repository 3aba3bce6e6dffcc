"""Two real photos through a trained pipeline: `python examples/photos.py [--model DIR]`.

insightface's wheel brings a group photo of six people, scikit-image's one of an astronaut; nothing is downloaded. For
each face: the crop that was used, the fitted shading map, and what the model draws. A model trained on renders knows no
photographed person: this shows that detection, alignment, fitting and the pipeline run, not that they keep an identity.
"""

import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image

from faceclip.faces import prepare_faces
from faceclip.settings import run, setting
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.marking.provenance import save_image, sheet_record

PHOTOS = {
    "group": Path(str(files("insightface"))) / "data/images/t1.jpg",
    "astronaut": Path(str(files("skimage"))) / "data/astronaut.png",
}
PROMPT = "A smiling person with red hair and round glasses."


@dataclass(kw_only=True)
class DrawSettings:
    """Which pipeline draws, and where the sheet goes."""

    model: str = setting("tiny", "pipeline: a folder, a hub id, or tiny", path=True)
    out: Path = setting(Path("runs/photos.png"), "the sheet")
    steps: int | None = setting(None, "sampler steps; by default those that suit the model")


def draw(arguments: DrawSettings) -> None:
    """Writes the sheet of all faces."""
    pipeline = FaceMakeUpPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for name, path in PHOTOS.items():
        faces = prepare_faces(path, policy="all")
        print(f"{name}: {len(faces)} faces, scores {', '.join(f'{found.face.score:.2f}' for found in faces)}")
        for found in faces:
            output = pipeline(
                PROMPT,
                found.image,
                landmarks=found.face.landmarks,
                num_inference_steps=arguments.steps,
                guidance_scale=2.0,
                guide_shading=True,
                generator=torch.manual_seed(0),
            )
            rows.append([Image.fromarray(found.crop), output.shading_maps[0], output.images[0]])
    side = 160
    sheet = Image.new("RGB", (side * len(rows), side * 3), "white")
    for column, pictures in enumerate(rows):
        for row, picture in enumerate(pictures):
            small = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (column * side, row * side))
    save_image(sheet, arguments.out, sheet_record(model=arguments.model, prompts=[PROMPT]))
    print(f"{len(rows)} faces → {arguments.out}")


if __name__ == "__main__":
    if status := run(draw, DrawSettings, flags=True):
        sys.exit(status)
