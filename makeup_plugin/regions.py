"""Where in the picture each of several people is: boxes or masks, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from faceclip.errors import ConfigError
from faceclip.faces import load_image
from makeup_plugin.placement import MIN_SIDE, Box, check_box

# A box (left, top, right, bottom) in px, or a mask (H,W) of the picture's size.
Region = Box | Image.Image | np.ndarray | Tensor


def region_masks(regions: Sequence[Region] | None, people: int, height: int, width: int) -> Tensor:
    """Masks (people,height,width) in [0,1] of boxes and masks; None gives everyone a column, from left to right.

    Raises ConfigError, which names the region, for another number of regions than people, and for a mask of another
    size, shape or range, or without any place; UnreadableImageError for a damaged or transparent picture.
    """
    if regions is None:
        edges = [round(width * index / people) for index in range(people + 1)]
        regions = [(left, 0, right, height) for left, right in pairwise(edges)]
    if not isinstance(regions, Sequence) or isinstance(regions, str):
        raise ConfigError(f"regions must be a list with one box or mask per person, got {type(regions).__name__}")
    if len(regions) != people:
        raise ConfigError(f"regions: {people} people need as many boxes or masks, got {len(regions)}")
    return torch.stack([_mask(region, f"regions[{index}]", height, width) for index, region in enumerate(regions)])


def shares(masks: Tensor) -> Tensor:
    """Masks (…,K,h,w) of K people as shares (…,K+1,h,w) that sum to 1 everywhere: first that of nobody, then theirs.

    Where regions overlap, people share the place.
    """
    total = masks.sum(dim=-3, keepdim=True)
    people = masks / total.clamp(min=1)
    return torch.cat([1 - people.sum(dim=-3, keepdim=True), people], dim=-3)


def shrunk(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks (K,H,W) averaged to the latents' size (K,height,width)."""
    return F.adaptive_avg_pool2d(masks[None], (height, width))[0]


def bounding_box(mask: Tensor) -> Box:
    """The smallest box (left, top, right, bottom) in px around a mask (H,W)."""
    rows, columns = (torch.nonzero(mask.amax(dim=axis)).flatten().tolist() for axis in (1, 0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _mask(region: Any, name: str, height: int, width: int) -> Tensor:
    if isinstance(region, list | tuple):
        left, top, right, bottom = check_box(name, region, height, width)
        mask = torch.zeros(height, width)
        mask[top:bottom, left:right] = 1
        return mask
    mask = _numbers(region, name)
    if tuple(mask.shape) != (height, width):
        raise ConfigError(
            f"{name}: the mask is {' × '.join(map(str, mask.shape))} and the picture {height} × {width} px (height ×"
            " width): resize it to the picture's size"
        )
    if not bool(torch.isfinite(mask).all()) or float(mask.min()) < 0 or float(mask.max()) > 1:
        raise ConfigError(f"{name}: a mask of floating point must be finite and in [0, 1]; one of bytes goes to 255")
    if not bool(mask.any()):
        raise ConfigError(f"{name}: the mask is empty: this person has no place in the picture")
    left, top, right, bottom = bounding_box(mask)
    if min(right - left, bottom - top) < MIN_SIDE:
        raise ConfigError(f"{name}: the mask is less than {MIN_SIDE} px wide or high, which shows no face")
    return mask


def _numbers(region: Any, name: str) -> Tensor:
    if isinstance(region, Image.Image):
        region = np.asarray(Image.fromarray(load_image(region, name=name, opaque=True)).convert("L"))
    if isinstance(region, Tensor):
        region = region.detach().cpu().float().numpy() if region.is_floating_point() else region.detach().cpu().numpy()
    if not isinstance(region, np.ndarray):
        raise ConfigError(
            f"{name} must be a box (left, top, right, bottom) in px or a mask of the picture's size, got"
            f" {type(region).__name__}"
        )
    if region.dtype == np.bool_:
        return torch.from_numpy(region.astype(np.float32))
    if region.dtype == np.uint8:
        return torch.from_numpy(region.astype(np.float32) / 255)
    if np.issubdtype(region.dtype, np.floating):
        return torch.from_numpy(region.astype(np.float32))
    raise ConfigError(f"{name}: a mask must be bool, uint8 or floating point in [0, 1], got {region.dtype}")
