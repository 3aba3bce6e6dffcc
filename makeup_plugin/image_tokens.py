"""Tokens that an image tower gives to the identity channel: those after the last block but one.

A tower is `faceclip.towers.image.ImageTower`, or transformers' CLIPVisionModelWithProjection as published adapters use
it (`laion/CLIP-ViT-H-14-laion2B-s32B-b79K`).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from faceclip.cpu.inference import cpu_inference


class FaceTower(Protocol):
    """The part of `faceclip.towers.image.ImageTower` that conditioning uses: `.tokens` (B,T,W) of images (B,3,H,W)."""

    dtype: torch.dtype
    device: torch.device
    config: Any

    def __call__(self, images: Tensor) -> Any: ...


def image_tokens(tower: FaceTower | CLIPVisionModelWithProjection, images: Tensor) -> Tensor:
    """Tokens (N,T,W) of square RGB images (N,3,H,W) in [0,1] by a tower of any dtype."""
    if isinstance(tower, CLIPVisionModelWithProjection):
        pixels = _resized(images, _side(tower))
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
        return _last_but_one(tower, (pixels - mean) / std)
    if tower.dtype != torch.float32:
        # The tower resizes in the dtype of its input, and CPUs have no antialiased bicubic in 16 bits: do it
        # before.
        images = _resized(images, _side(tower)).to(tower.dtype)
    return tower(images).tokens


def nobody_tokens(tower: FaceTower | CLIPVisionModelWithProjection) -> Tensor:
    """Tokens (T,W) of an image that is zero after normalization: published adapters read them where there is nobody."""
    size = (1, 3, _side(tower), _side(tower))
    if isinstance(tower, CLIPVisionModelWithProjection):
        return _last_but_one(tower, torch.zeros(size, device=tower.device))[0]
    mean = torch.tensor(tower.config.mean, dtype=tower.dtype, device=tower.device).view(1, 3, 1, 1)
    return tower(mean.expand(size)).tokens[0]


def _side(tower: FaceTower | CLIPVisionModelWithProjection) -> int:
    return int(tower.config.image_size)  # type: ignore[arg-type]


def _resized(images: Tensor, size: int) -> Tensor:
    """Bicubic with antialiasing, in float32 and in [0,1]."""
    images = F.interpolate(images.float(), (size, size), mode="bicubic", align_corners=False, antialias=True)
    return images.clamp(0, 1)


def _last_but_one(tower: CLIPVisionModelWithProjection, pixels: Tensor) -> Tensor:
    with cpu_inference(tower.device):
        return tower(pixels.to(tower.dtype), output_hidden_states=True).hidden_states[-2]
