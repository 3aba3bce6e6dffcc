"""Attacks on whole photos: the gradient passes through the aligned crop to the pixels of the photo."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from eval.robustness.damages import fgsm, pgd
from faceclip.errors import ConfigError
from faceclip.faces.align import CROP_SIZE, align_tensor, crop_side
from faceclip.faces.batches import to_unit

Attack = Literal["FGSM", "PGD"]
ATTACKS: tuple[Attack, ...] = ("FGSM", "PGD")


def crop_for(image: Tensor, landmarks: NDArray[np.floating], size: int) -> Tensor:
    """Returns the crop (1, 3, size, size) that an encoder sees of a photo (1, 3, H, W) in [0, 1];
    `faceclip.faces.encoder_crop` with a gradient and without its rounding to 8 bits."""
    points = torch.from_numpy(np.asarray(landmarks, np.float32))[None]
    if crop_side(np.asarray(landmarks, np.float64)) < 2 * size:
        return align_tensor(image, points, size)
    return F.interpolate(align_tensor(image, points, CROP_SIZE), (size, size), mode="bilinear", align_corners=False)


def check_differentiable(embed: Callable[[Tensor], Tensor], size: int, name: str) -> None:
    """Raises ConfigError naming a recognizer through which no gradient passes."""
    with torch.enable_grad():
        found = embed(torch.full((1, 3, size, size), 0.5, requires_grad=True))
    if not found.requires_grad:
        raise ConfigError(f"--recognizers: no gradient passes through {name}: put another one first, or --attacks ''")


def attack_photos(
    kind: Attack,
    images: Sequence[NDArray[np.uint8]],
    landmarks: NDArray[np.floating],
    embed: Callable[[Tensor], Tensor],
    size: int,
    *,
    levels: float,
    steps: int = 10,
    seed: int = 0,
) -> list[NDArray[np.uint8]]:
    """Returns photos (H, W, 3) whose pixels are moved by at most `levels` of 255 away from the person, rounded to 8
    bits.

    embed: crops (B, 3, size, size) in [0, 1] → (B, D), differentiable. landmarks: (N, 5, 2) px of the faces.

    Raises ConfigError for a fraction of a level, which rounding to 8 bits would exceed.
    """
    if levels != int(levels):
        raise ConfigError(f"levels must be a whole number, got {levels:g}: the photos are rounded to 8 bits")
    moved = []
    pairs = list(zip(images, landmarks, strict=True))
    for number, (image, points) in enumerate(track(pairs, f"{kind}, {levels:g} levels", transient=True)):
        pixels = to_unit(np.asarray(image)[None])

        def through(photo: Tensor, points: NDArray[np.floating] = points) -> Tensor:
            return embed(crop_for(photo, points, size))

        if kind == "FGSM":
            found = fgsm(pixels, through, levels / 255)
        else:
            found = pgd(pixels, through, levels / 255, steps=steps, seed=seed + number)
        moved.append((found[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    return moved
