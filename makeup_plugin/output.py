"""What a call of the pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import BaseOutput, logging
from PIL import Image

from faceclip.errors import ConfigError
from faceclip.faces import PreparedFace
from makeup_plugin.marking.provenance import Provenance, save_image

logger = logging.get_logger(__name__)


@dataclass
class FaceMakeUpOutput(BaseOutput):
    """Generated images, and for each what it was made from.

    images: list of PIL images, array (N,H,W,3) in [0,1], or tensor (N,3,H,W) in [0,1] or latents, by
    `output_type`. faces: per image the reference face that was found and used (crop, box, landmarks), None
    where there was none. shading_maps: per image the map that the shading channel saw, None where there was
    none. provenance: per image the record that `save` writes.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    faces: list[PreparedFace | None]
    shading_maps: list[Image.Image | None]
    provenance: list[Provenance]

    def save(
        self, directory: str | Path, *, prefix: str = "image", suffix: str = ".png", metadata: bool = True
    ) -> list[Path]:
        """Write prefix_0000.png, ... with provenance, and return the paths.

        `metadata=False` leaves the record out of the files; that choice is logged. Raises ConfigError for
        latents.
        """
        if not metadata:
            logger.warning("images are saved without provenance metadata, as asked")
        return [
            save_image(image, Path(directory) / f"{prefix}_{index:04d}{suffix}", record if metadata else None)
            for index, (image, record) in enumerate(zip(self.pil_images(), self.provenance, strict=True))
        ]

    def pil_images(self) -> list[Image.Image]:
        """The images as PIL whatever the output type. Raises ConfigError for latents."""
        if isinstance(self.images, list):
            return self.images
        pixels = self.images
        if isinstance(pixels, torch.Tensor):
            if pixels.ndim != 4 or pixels.shape[1] != 3:
                raise ConfigError("latents are not images: call the pipeline with another output_type to save")
            pixels = pixels.float().cpu().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8)) for image in pixels]
