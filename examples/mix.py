"""From one person to another in five steps: python examples/mix.py anna.jpg ben.jpg."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from faceclip.settings import run, setting
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.identities import Identity


@dataclass(kw_only=True)
class MixSettings:
    """Between whom."""

    first: Path = setting(help="photo of one person", positional=True)
    second: Path = setting(help="photo of another person", positional=True)
    steps: int = setting(5, "pictures, the first of one person and the last of the other")
    prompt: str = setting("a person", "what is drawn")
    model: str = setting("tiny", "pipeline: a folder, a hub id, or tiny", path=True)
    out: Path = setting(Path("runs/examples/mix"), "folder of the pictures")


def mix(settings: MixSettings) -> None:
    """One picture per share, all from the same noise."""
    pipeline = FaceMakeUpPipeline.from_pretrained(settings.model)
    pair = [pipeline.encode_identity(photo) for photo in (settings.first, settings.second)]
    shares = torch.linspace(0, 1, settings.steps).tolist()
    people = [Identity.mix(pair, [1 - share, share]) for share in shares]
    generators = [torch.Generator().manual_seed(0) for _ in people]
    output = pipeline(settings.prompt, identity=people, generator=generators)
    for share, path in zip(shares, output.save(settings.out), strict=True):
        print(f"{share:.2f} of the second: {path}")


if __name__ == "__main__":
    if status := run(mix, MixSettings, flags=True):
        sys.exit(status)
