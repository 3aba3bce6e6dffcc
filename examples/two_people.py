"""Two people in one picture, each with a text: python examples/two_people.py anna.jpg ben.jpg."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from faceclip.settings import run, setting
from makeup_plugin import FaceMakeUpPipeline


@dataclass(kw_only=True)
class PairSettings:
    """Who stands where, and how they look."""

    left: Path = setting(help="photo of the person on the left", positional=True)
    right: Path = setting(help="photo of the person on the right", positional=True)
    prompt: str = setting("two people", "the whole picture")
    left_prompt: str = setting("a person with red hair", "the left half")
    right_prompt: str = setting("a person with a beard", "the right half")
    model: str = setting("tiny", "pipeline: a folder, a hub id, or tiny", path=True)
    out: Path = setting(Path("runs/examples/two_people"), "folder of the picture")


def draw(settings: PairSettings) -> None:
    """Each half of the picture sees its own person and its own text."""
    pipeline = FaceMakeUpPipeline.from_pretrained(settings.model)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    output = pipeline(
        settings.prompt,
        identity=[pipeline.encode_identity(photo) for photo in (settings.left, settings.right)],
        regions=[(0, 0, side // 2, side), (side // 2, 0, side, side)],
        region_prompts=[settings.left_prompt, settings.right_prompt],
        generator=torch.manual_seed(0),
    )
    print(output.save(settings.out)[0])


if __name__ == "__main__":
    if status := run(draw, PairSettings, flags=True):
        sys.exit(status)
