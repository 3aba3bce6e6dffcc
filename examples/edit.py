"""Another hair color in an existing picture.

python examples/edit.py photo.jpg mask.png --prompt "a person with red hair"

The mask is white where the picture may change; all other pixels stay as they are.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from faceclip.settings import run, setting
from makeup_plugin import FaceMakeUpInpaintPipeline


@dataclass(kw_only=True)
class EditSettings:
    """What is changed, where, and how much."""

    photo: Path = setting(help="picture to edit", positional=True)
    mask: Path = setting(help="mask of the same size", positional=True)
    prompt: str = setting("a person with red hair", "what the result shows")
    strength: float = setting(0.8, "share of the noise that is added, above 0 and at most 1")
    model: str = setting("tiny", "pipeline: a folder, a hub id, or tiny", path=True)
    out: Path = setting(Path("runs/examples/edit"), "folder of the result")


def edit(settings: EditSettings) -> None:
    """Identity and pose are those of the face in the picture."""
    pipeline = FaceMakeUpInpaintPipeline.from_pretrained(settings.model)
    output = pipeline(
        settings.prompt,
        image=settings.photo,
        mask_image=settings.mask,
        strength=settings.strength,
        generator=torch.manual_seed(0),
    )
    print(output.save(settings.out)[0])


if __name__ == "__main__":
    if status := run(edit, EditSettings, flags=True):
        sys.exit(status)
