"""What the page does with the pipeline: find the face of a photo, draw, and keep the files that the browser shows."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from faceclip.errors import ConfigError, ImageTooLargeError
from faceclip.faces import load_image, prepare_face
from makeup_plugin.editing import FaceMakeUpImg2ImgPipeline, FaceMakeUpInpaintPipeline
from makeup_plugin.output import FaceMakeUpOutput
from makeup_plugin.pipeline import FaceMakeUpPipeline

FacePolicy = Literal["largest", "center", "only"]
KEPT = 32  # results whose files stay on the disk
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one visitor may ask for.

    photos: of a person. pictures, steps: of one drawing. pixels: of a photo. characters: of a prompt.
    """

    photos: int = 8
    pictures: int = 4
    steps: int = 100
    pixels: int = 40_000_000
    characters: int = 1000


@dataclass(frozen=True, kw_only=True)
class Order:
    """One press of the button.

    photos: of one person, none for text alone. pose_photo: gives pose, expression and light. Scales: None where the
    pipeline has no such channel.
    """

    prompt: str
    negative_prompt: str = ""
    photos: Sequence[Path] = ()
    pose_photo: Path | None = None
    face: FacePolicy = "largest"
    count: int = 1
    seed: int = 0
    steps: int = 8
    guidance: float = 2.0
    guide_shading: bool = True
    identity_scale: float | None = None
    shading_scale: float | None = None
    record_prompt: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """Files with provenance, the records in them, and the face and the shading map that were used, or None."""

    files: list[Path]
    records: list[dict[str, Any]]
    face: Image.Image | None
    shading_map: Image.Image | None


class Painter:
    """A pipeline, the limits of its visitors, and a folder for the files of the latest results."""

    def __init__(self, pipeline: FaceMakeUpPipeline, folder: Path, limits: Limits | None = None) -> None:
        self.pipeline = pipeline
        self.limits = limits or Limits()
        self._folder = folder
        self._kept: deque[Path] = deque()

    def find_face(self, photo: Path, policy: FacePolicy = "largest") -> Image.Image:
        """The aligned crop (448 px) of the face that the pipeline would use. Raises the face errors."""
        pixels = self._read(photo, "photo")
        return Image.fromarray(
            prepare_face(pixels, policy=policy, detector=self.pipeline.detector, name=photo.name).crop
        )

    def draw(self, order: Order, on_step: Callable[[int, int], None] | None = None) -> Result:
        """Draw, and write the files. `on_step` is called as (steps that are done, steps).

        Raises ConfigError for an order beyond the limits, and the errors of the pipeline.
        """
        self._check(order)
        images = self._photos(order)
        output: FaceMakeUpOutput = self.pipeline(  # type: ignore[assignment]  # a tuple is returned only on demand
            order.prompt,
            images[0] if len(images) == 1 else None,
            identity=self.pipeline.encode_identity(images, face_policy=order.face) if len(images) > 1 else None,
            shading_image=None if order.pose_photo is None else self._read(order.pose_photo, "pose photo"),
            num_images_per_prompt=order.count,
            generator=[torch.Generator().manual_seed(order.seed + index) for index in range(order.count)],
            **_arguments(order, on_step),
        )
        return self._result(output)

    def edit(
        self,
        order: Order,
        picture: NDArray[np.uint8],
        mask: NDArray[np.bool_] | None,
        strength: float,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Result:
        """Draw a part of a picture (H,W,3) anew, where the mask (H,W) is true, or all of it without a mask.

        The person is the one in the picture, or the one of the order's photos. The result has the size of the base: its
        longer side is that of the base's pictures.

        Raises ConfigError and the errors of the pipeline.
        """
        self._check(order)
        if picture.shape[0] * picture.shape[1] > self.limits.pixels:
            raise ImageTooLargeError(f"picture: more than {self.limits.pixels:,} pixels, give a smaller one")
        images = self._photos(order)
        several = len(images) > 1
        height, width = self._edit_size(picture.shape[0], picture.shape[1])
        arguments = _arguments(order, on_step) | {
            "height": height,
            "width": width,
            "strength": strength,
            "reference_image": images[0] if len(images) == 1 else None,
            "identity": self.pipeline.encode_identity(images, face_policy=order.face) if several else None,
            "generator": torch.Generator().manual_seed(order.seed),
        }
        edit: Any = FaceMakeUpImg2ImgPipeline
        if mask is not None:
            edit, arguments["mask_image"] = FaceMakeUpInpaintPipeline, mask.astype(np.uint8) * 255
        output = edit.from_pipe(self.pipeline)(order.prompt, picture, **arguments)
        return self._result(output)

    def _edit_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in px of the edited picture, multiples of the autoencoder's factor."""
        factor, sample = self.pipeline.vae_scale_factor, self.pipeline.unet.config.sample_size
        scale = (sample if isinstance(sample, int) else max(sample)) * factor / max(height, width)
        return max(round(height * scale / factor), 1) * factor, max(round(width * scale / factor), 1) * factor

    def _photos(self, order: Order) -> list[NDArray[np.uint8]]:
        return [self._read(photo, "photo") for photo in order.photos]

    def _result(self, output: FaceMakeUpOutput) -> Result:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        self._kept.append(folder)
        while len(self._kept) > KEPT:
            shutil.rmtree(self._kept.popleft(), ignore_errors=True)
        face = output.faces[0]
        return Result(
            files=output.save(folder),
            records=[record.to_dict() for record in output.provenance],
            face=None if face is None else Image.fromarray(face.crop),
            shading_map=output.shading_maps[0],
        )

    def _read(self, path: Path, what: str) -> NDArray[np.uint8]:
        # By its own name only: where uploads lie on the server is nobody's business.
        return load_image(path, max_pixels=self.limits.pixels, name=f"{what} {path.name}")

    def _check(self, order: Order) -> None:
        limits = self.limits
        for name, value, least, most in (
            ("pictures", order.count, 1, limits.pictures),
            ("steps", order.steps, 1, limits.steps),
            ("seed", order.seed, 0, LARGEST_SEED),
        ):
            if not least <= value <= most:
                raise ConfigError(f"{name} must be a whole number from {least} to {most}, got {value}")
        for name, text in (("prompt", order.prompt), ("negative prompt", order.negative_prompt)):
            if len(text) > limits.characters:
                raise ConfigError(f"{name}: {len(text)} characters are too many, the limit is {limits.characters}")
        if len(order.photos) > limits.photos:
            raise ConfigError(f"photos: {len(order.photos)} are too many, the limit is {limits.photos}")


def _arguments(order: Order, on_step: Callable[[int, int], None] | None) -> dict[str, Any]:
    """The arguments of a call that drawing and editing share."""

    def after_step(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(index + 1, pipeline.num_timesteps)
        return {}

    return {
        "negative_prompt": order.negative_prompt,
        "identity_scale": order.identity_scale,
        "shading_scale": order.shading_scale,
        "face_policy": order.face,
        "num_inference_steps": order.steps,
        "guidance_scale": order.guidance,
        "guide_shading": order.guide_shading,
        "callback_on_step_end": after_step,
        "record_prompt": order.record_prompt,
    }
