"""Pictures of a person from the command line.

python -m makeup_plugin "a smiling person with red hair" --image portrait.png --out pictures
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from faceclip.cpu.waiting import choose_waiting
from faceclip.errors import ConfigError
from faceclip.settings import run, setting
from faceclip.storage.places import check_place

if TYPE_CHECKING:
    from makeup_plugin.output import FaceMakeUpOutput
    from makeup_plugin.pipeline import FaceMakeUpPipeline

LARGEST_SEED = 2**63 - 1


@dataclass(kw_only=True)
class DrawSettings:
    """What is drawn, by which pipeline, and where the pictures go."""

    prompt: str = setting(help="what the picture shows", positional=True)
    image: Path | tuple[Path, ...] | None = setting(
        None,
        "photo of the person, or '[a.jpg, b.jpg]' for several of one person; without any the prompt alone is drawn",
    )
    identity: Path | None = setting(None, "file of `Identity.save`, in place of --image")
    save_identity: Path | None = setting(None, "file to write that keeps the person of --image for --identity")
    out: Path = setting(Path("pictures"), "folder; pictures that are there stay, and new ones get the next numbers")
    model: str = setting("tiny", "pipeline: a folder, a hub id, or the one that ships", path=True)
    negative: str = setting("", "what the picture should not show")
    count: int = setting(1, "pictures; the first has --seed, the next --seed + 1, …", least=1)
    seed: int = setting(0, "of the first picture's noise")
    steps: int | None = setting(None, "sampler steps; by default those that suit the model")
    guidance: float | None = setting(None, "guidance scale; by default the one that suits the model")
    identity_scale: float | None = setting(None, "weight of the identity channel, 1 by default")
    shading_scale: float | None = setting(None, "weight of the shading channel, 1 by default")
    shading_image: Path | None = setting(None, "photo that gives pose, expression and light in place of --image")
    face: Literal["largest", "center", "only"] = setting("largest", "which face of several")
    height: int | None = setting(None, "px; by default that of the base")
    width: int | None = setting(None, "px; by default that of the base")
    format: Literal["png", "jpg", "webp"] = setting("png", "of the files")
    watermark: bool = setting(True, "--no-watermark leaves the pixels unmarked, and the files say so")
    record_prompt: bool = setting(False, "write the prompt's text into the files, not only its hash")
    device: str = setting("auto", "cpu, cuda, …; auto: a GPU where there is one")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "precision of the weights")

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= LARGEST_SEED - self.count:
            raise ConfigError(f"--seed must be a whole number from 0 below 2^63, got {self.seed}")
        if self.identity is not None and self.images:
            raise ConfigError("--identity and --image exclude each other: give one")
        if self.save_identity is not None and not self.images:
            raise ConfigError("--save-identity needs the photos of a person: give --image")

    @property
    def images(self) -> list[Path]:
        """The photos of the person."""
        return list(self.image) if isinstance(self.image, tuple) else [] if self.image is None else [self.image]


def draw(settings: DrawSettings) -> None:
    """Draws the pictures and prints their paths."""
    from faceclip.faces import load_image
    from makeup_plugin.loading import load_pipeline

    check_place(settings.out, "--out ")
    if settings.out.exists() and not settings.out.is_dir():
        raise ConfigError(f"--out {settings.out}: is a file; name a folder")
    pose = [] if settings.shading_image is None else [settings.shading_image]
    for option, photos in (("--image", settings.images), ("--shading-image", pose)):
        for photo in photos:  # before a large pipeline is loaded
            load_image(photo, name=f"{option} {photo}")
    pipeline = load_pipeline(settings.model, device=settings.device, dtype=settings.dtype, key="--device")
    pipeline.set_progress_bar_config(desc="drawing")
    for path in draw_with(pipeline, settings):
        print(path)


def draw_with(pipeline: "FaceMakeUpPipeline", settings: DrawSettings) -> list[Path]:
    """Draws with a loaded pipeline; returns the paths of the pictures.

    Raises ConfigError, the face errors, and DataError where a picture cannot be written.
    """
    import torch

    from makeup_plugin.identities import Identity

    identity = None if settings.identity is None else Identity.load(settings.identity)
    if len(settings.images) > 1 or settings.save_identity is not None:
        identity = pipeline.encode_identity(settings.images, face_policy=settings.face)
    if identity is not None and settings.save_identity is not None:
        identity.save(settings.save_identity)
    output: FaceMakeUpOutput = pipeline(  # type: ignore[assignment]  # a tuple is returned only on demand
        settings.prompt,
        settings.images[0] if settings.images and identity is None else None,
        identity=identity,
        negative_prompt=settings.negative,
        identity_scale=settings.identity_scale,
        shading_scale=settings.shading_scale,
        shading_image=settings.shading_image,
        face_policy=settings.face,
        height=settings.height,
        width=settings.width,
        num_images_per_prompt=settings.count,
        generator=[torch.Generator().manual_seed(settings.seed + index) for index in range(settings.count)],
        watermark=None if settings.watermark else False,  # None: as the pipeline was saved
        record_prompt=settings.record_prompt,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
    )
    return output.save(settings.out, suffix=f".{settings.format}", first=next_number(settings.out))


def next_number(folder: Path) -> int:
    """The number after the largest one of the folder's files `image_NUMBER.*`; 0 where there is none."""
    numbers = [re.fullmatch(r"image_(\d+)", path.stem) for path in folder.glob("image_*")]
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m makeup_plugin`; returns the exit status."""
    choose_waiting()
    return run(draw, DrawSettings, arguments, flags=True)


if __name__ == "__main__":
    sys.exit(main())
