"""What a call of the pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput, logging
from PIL import Image

from faceclip.errors import ConfigError
from makeup_plugin.marking.provenance import Provenance, save_image

logger = logging.get_logger(__name__)


@dataclass
class FaceMakeUpOutput(BaseOutput):
    """Generated images, and for each image what it was made from.

    Attributes:
        images: depends on `output_type`: a list of PIL images, an array (N,H,W,3) in [0,1], a tensor (N,3,H,W) in
            [0,1], or latents.
        faces: for each image, the reference face that was found and used (crop, box, landmarks), or None; a list of
            these for a picture of several people.
        shading_maps: for each image, the map that the shading channel saw, or None.
        provenance: for each image, the record that `save` writes.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    faces: list[Any]
    shading_maps: list[Image.Image | None]
    provenance: list[Provenance]

    def save(
        self,
        directory: str | Path,
        *,
        prefix: str = "image",
        suffix: str = ".png",
        metadata: bool = True,
        first: int = 0,
    ) -> list[Path]:
        """Write prefix_0000.png, prefix_0001.png, … with provenance, and return the paths. `first` is the first number.

        `metadata=False` writes the files without the record, and a warning is logged. Raises ConfigError for latents
        and for another file type than PNG, JPEG and WebP, and DataError when the disk is full or not writable.
        """
        if not metadata:
            logger.warning("images are saved without provenance metadata, because metadata=False")
        return [
            save_image(image, Path(directory) / f"{prefix}_{index:04d}{suffix}", record if metadata else None)
            for index, (image, record) in enumerate(zip(self.pil_images(), self.provenance, strict=True), start=first)
        ]

    def pil_images(self) -> list[Image.Image]:
        """The images as PIL images, for every output type except "latent". Raises ConfigError for latents."""
        if isinstance(self.images, list):
            return self.images
        pixels = self.images
        if isinstance(pixels, torch.Tensor):
            if pixels.ndim != 4 or pixels.shape[1] != 3:
                raise ConfigError("latents are not images: call the pipeline with another output_type to save them")
            pixels = pixels.float().cpu().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8)) for image in pixels]
