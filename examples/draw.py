"""One person, several prompts.

python examples/draw.py portrait.png --prompts '[a smiling person, a person in a hat]'
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from faceclip.settings import run, setting
from makeup_plugin import FaceMakeUpPipeline


@dataclass(kw_only=True)
class DrawSettings:
    """Who is drawn, how, and where the pictures go."""

    photo: Path = setting(help="photo of the person", positional=True)
    prompts: tuple[str, ...] = setting(
        ("a smiling person with red hair", "a person with round glasses"), "one picture each"
    )
    model: str = setting("tiny", "pipeline: a folder, a hub id, or tiny", path=True)
    out: Path = setting(Path("runs/examples/draw"), "folder of the pictures")


def draw(settings: DrawSettings) -> None:
    """One picture per prompt, all from the same noise."""
    pipeline = FaceMakeUpPipeline.from_pretrained(settings.model)
    generators = [torch.Generator().manual_seed(0) for _ in settings.prompts]
    output = pipeline(list(settings.prompts), image=settings.photo, generator=generators)
    for path in output.save(settings.out):
        print(path)


if __name__ == "__main__":
    if status := run(draw, DrawSettings, flags=True):
        sys.exit(status)
