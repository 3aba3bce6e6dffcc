"""One person in the pose, expression and light of another photo: python examples/pose.py anna.jpg pose.jpg."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from faceclip.settings import run, setting
from makeup_plugin import FaceMakeUpPipeline


@dataclass(kw_only=True)
class PoseSettings:
    """Who is drawn, and like what."""

    photo: Path = setting(help="photo of the person", positional=True)
    pose: Path = setting(help="photo that gives pose, expression and light", positional=True)
    prompt: str = setting("a person", "what is drawn")
    model: str = setting("tiny", "pipeline: a folder, a hub id, or tiny", path=True)
    out: Path = setting(Path("runs/examples/pose"), "folder of the picture and the shading map")


def draw(settings: PoseSettings) -> None:
    """The shape of the head stays that of the person; the saved map shows what the shading channel saw."""
    pipeline = FaceMakeUpPipeline.from_pretrained(settings.model)
    output = pipeline(
        settings.prompt, image=settings.photo, shading_image=settings.pose, generator=torch.manual_seed(0)
    )
    print(output.save(settings.out)[0])
    if (shading := output.shading_maps[0]) is not None:
        shading.save(settings.out / "shading_map.png")


if __name__ == "__main__":
    if status := run(draw, PoseSettings, flags=True):
        sys.exit(status)
