"""The picture of an edit: it is read, checked, encoded, noised, blended into every step, and put around the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from faceclip.errors import ConfigError
from faceclip.faces import load_image
from faceclip.faces.images import describe_source
from makeup_plugin.arguments import number, whole_number
from makeup_plugin.calls.parts import PipelineParts
from makeup_plugin.latents import encode_pixels
from makeup_plugin.references import Images, as_list, resized
from makeup_plugin.sampling import AfterStep, DenoisingState, Generators


@dataclass(frozen=True, kw_only=True)
class Edit:
    """M pictures to edit, at the size of the result.

    pictures: (M,H,W,3) uint8. mask: (M,1,H,W), 1 where the picture may change, or None for everywhere. strength: share
    of the noise that is added, in (0, 1]. scales: (M,2), by which x and y of points in the given pictures change.
    """

    pictures: NDArray[np.uint8]
    mask: Tensor | None
    strength: float
    scales: NDArray[np.float32]

    def move(self, landmarks: Any) -> Any:
        """Landmarks (5,2) px of the given pictures, one set or one per picture, at the size of the result."""
        if landmarks is None:
            return None
        if isinstance(landmarks, list | tuple) and len(landmarks) == len(self.scales):
            return [
                None if points is None else _points(points) * scale
                for points, scale in zip(landmarks, self.scales, strict=True)
            ]
        return _points(landmarks) * (self.scales[0] if len(self.scales) == 1 else self.scales[:, None])

    def rows(self, count: int) -> Edit:
        """One entry per image to generate. Raises ConfigError where the number of pictures does not divide theirs."""
        times, rest = divmod(count, len(self.pictures))
        if rest or not times:
            raise ConfigError(
                f"image: {len(self.pictures)} pictures to edit do not fit {count} images: give 1 or {count}"
            )
        return Edit(
            pictures=self.pictures.repeat(times, axis=0),
            mask=None if self.mask is None else self.mask.repeat_interleave(times, dim=0),
            strength=self.strength,
            scales=self.scales.repeat(times, axis=0),
        )

    def paste(self, pixels: Tensor) -> Tensor:
        """Generated pixels (N,3,H,W) in [0,1] inside of the mask, and the picture's own outside."""
        if self.mask is None:
            return pixels
        own = torch.from_numpy(self.pictures).permute(0, 3, 1, 2).to(pixels) / 255
        return torch.where(self.mask.to(pixels.device) > 0, pixels, own)


@dataclass(frozen=True, kw_only=True)
class EditLatents:
    """Clean latents (N,C,h,w) of the pictures to edit, and their mask (N,1,h,w) or None."""

    latents: Tensor
    mask: Tensor | None
    strength: float

    @property
    def from_noise(self) -> bool:
        """Whether the steps begin with pure noise, so that nothing inside of the mask is kept."""
        return self.mask is not None and self.strength == 1

    def noised(self, scheduler: Any, noise: Tensor, timestep: Tensor) -> Tensor:
        """The pictures' latents with the noise of a timestep (1,)."""
        return scheduler.add_noise(self.latents, noise, timestep.repeat(len(noise)))

    def blend(self, scheduler: Any, noise: Tensor, timesteps: Tensor) -> AfterStep:
        """The latents after a step, with the picture and the noise of the next timestep outside of the mask."""
        if self.mask is None:
            raise ValueError("there is a mask where something is blended")
        mask = self.mask

        def after_step(index: int, timestep: Tensor, state: DenoisingState) -> DenoisingState:
            own = self.latents
            if index < len(timesteps) - 1:
                own = self.noised(scheduler, noise, timesteps[index + 1 : index + 2])
            latents = (1 - mask) * own + mask * state.latents
            return DenoisingState(latents=latents, conditions=state.conditions, guidance_scale=state.guidance_scale)

        return after_step


def read_edit(
    pipeline: PipelineParts, images: Images, masks: Images, strength: float, *, height: int | None, width: int | None
) -> Edit:
    """The pictures to edit and their masks (white where the picture may change).

    The size of the result is that of the first picture, reduced to multiples of the autoencoder's factor; pictures of
    another size are resized. Raises ConfigError, which names the argument, and UnreadableImageError.
    """
    if images is None:
        raise ConfigError("image is the picture to edit: give one, or use FaceMakeUpPipeline to draw without")
    if not 0 < number("strength", strength) <= 1:
        raise ConfigError(f"strength must be above 0 and at most 1, got {strength}")
    pictures = [_read("image", index, source) for index, source in enumerate(as_list(images))]
    factor = pipeline.vae_scale_factor
    height = pictures[0].shape[0] // factor * factor if height is None else whole_number("height", height)
    width = pictures[0].shape[1] // factor * factor if width is None else whole_number("width", width)
    if height < factor or width < factor or height % factor or width % factor:
        raise ConfigError(f"height and width must be positive multiples of {factor}, got {height}x{width}")
    scales = [np.array([width / one.shape[1], height / one.shape[0]], dtype=np.float32) for one in pictures]
    mask = None
    if masks is not None:
        mask = _read_masks(masks, [one.shape[:2] for one in pictures], height, width)
    return Edit(
        pictures=np.stack([resized(one, height, width) for one in pictures]),
        mask=mask,
        strength=float(strength),
        scales=np.stack(scales),
    )


def encode_edit(pipeline: PipelineParts, edit: Edit, device: torch.device, generator: Generators) -> EditLatents:
    """Latents of the pictures, one per image to generate, drawn from the autoencoder's posterior as in diffusers."""
    check_channels(pipeline.unet, pipeline.vae.config.latent_channels)
    pixels = torch.from_numpy(edit.pictures).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
    latents = encode_pixels(pipeline.vae, pixels, generator).to(pipeline.unet.dtype)
    mask = edit.mask
    if mask is not None:
        mask = F.interpolate(mask, size=latents.shape[-2:]).to(latents)
    return EditLatents(latents=latents, mask=mask, strength=edit.strength)


def steps_from(scheduler: Any, timesteps: Tensor, steps: int, strength: float) -> Tensor:
    """The last `strength` of the timesteps of `steps` steps, as diffusers counts them; the scheduler begins there.

    Raises ConfigError where no step is left.
    """
    kept = min(int(steps * strength), steps)
    if kept < 1:
        raise ConfigError(f"strength={strength} leaves no step of {steps}: give more steps, or a larger strength")
    start = (steps - kept) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return timesteps[start:]


def check_channels(unet: UNet2DConditionModel, channels: int) -> None:
    """Raises ConfigError for a UNet that reads more than latents, such as those made for inpainting."""
    if unet.config.in_channels != channels:
        raise ConfigError(
            f"unet reads {unet.config.in_channels} channels and the latents have {channels}: a UNet that was made for"
            " inpainting is not supported; use its base"
        )


def _read(name: str, index: int, source: Any, *, opaque: bool = False) -> NDArray[np.uint8]:
    if source is None:
        raise ConfigError(f"{name} {index} is None: give a picture")
    return load_image(source, name=f"{name} {index} ({describe_source(source)})", opaque=opaque)


def _read_masks(masks: Images, sizes: Sequence[tuple[int, int]], height: int, width: int) -> Tensor:
    given = []
    for index, source in enumerate(as_list(masks, "mask_image")):
        if isinstance(source, np.ndarray) and source.dtype == np.bool_:
            source = source.astype(np.uint8) * 255
        given.append(_read("mask_image", index, source, opaque=True))
    if len(given) not in (1, len(sizes)):
        raise ConfigError(f"mask_image: {len(given)} masks do not fit {len(sizes)} pictures: give 1 or {len(sizes)}")
    given = given * len(sizes) if len(given) == 1 else given
    rows = []
    for index, (mask, size) in enumerate(zip(given, sizes, strict=True)):
        if mask.shape[:2] != size:
            raise ConfigError(
                f"mask_image {index} is {mask.shape[1]}×{mask.shape[0]} px and its picture {size[1]}×{size[0]}: give a"
                " mask of the picture's size"
            )
        white = np.asarray(Image.fromarray(mask).convert("L"))
        rows.append((resized(white, height, width) >= 128).astype(np.float32))
    found = torch.from_numpy(np.stack(rows))[:, None]
    if not bool(found.flatten(1).any(dim=1).all()):
        raise ConfigError("mask_image is black, so nothing may change: paint white what is to be drawn anew")
    return found


def _points(landmarks: ArrayLike) -> NDArray[np.float32]:
    try:
        return np.asarray(landmarks, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"landmarks must be (5, 2) px per picture, got {landmarks!r}") from error
