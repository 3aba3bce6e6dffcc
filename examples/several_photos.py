"""A person from several photos, kept in a file.

python examples/several_photos.py '[a.jpg, b.jpg]' --keep anna.safetensors
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from faceclip.settings import run, setting
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.identities import Identity


@dataclass(kw_only=True)
class PersonSettings:
    """Which photos, and where the person and the picture go."""

    photos: tuple[Path, ...] = setting(help="photos of one person", positional=True)
    keep: Path = setting(Path("runs/examples/person.safetensors"), "file of the person")
    prompt: str = setting("a smiling person", "what is drawn")
    model: str = setting("tiny", "pipeline: a folder, a hub id, or tiny", path=True)
    out: Path = setting(Path("runs/examples/several_photos"), "folder of the picture")


def keep_and_draw(settings: PersonSettings) -> None:
    """Encodes the person once; later pictures need the file alone."""
    pipeline = FaceMakeUpPipeline.from_pretrained(settings.model)
    person = pipeline.encode_identity(list(settings.photos))
    for photo, report in zip(settings.photos, person.photos, strict=True):
        print(f"{photo}: weight {report.weight:.2f}{', another person?' if report.outlier else ''}")
    settings.keep.parent.mkdir(parents=True, exist_ok=True)
    person.save(settings.keep, crops=False)
    output = pipeline(settings.prompt, identity=Identity.load(settings.keep), generator=torch.manual_seed(0))
    print(output.save(settings.out)[0])


if __name__ == "__main__":
    if status := run(keep_and_draw, PersonSettings, flags=True):
        sys.exit(status)
