"""ComfyUI's IMAGE, a tensor (N,H,W,3) in [0,1], from and to what the pipeline takes and gives."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from faceclip.errors import ConfigError


def as_arrays(images: Tensor) -> list[NDArray[np.float32]]:
    """The pictures of a batch as arrays (H,W,3) in [0,1]; what arithmetic of other nodes left outside is cut off."""
    return list(images[..., :3].detach().float().clamp(0, 1).cpu().numpy())


def as_image(picture: Image.Image | None, *, like: Tensor) -> Tensor:
    """A PIL picture as (H,W,3) in [0,1], black and as large as `like` where there is none."""
    if picture is None:
        return torch.zeros_like(like)
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)


def next_prefix(root: Path, prefix: str) -> tuple[Path, str]:
    """Folder and name for new files below `root`, after those that are there: `prefix_00007` for a prefix that is free.

    Raises ConfigError for a prefix that leads out of `root`, since workflows come from strangers.
    """
    place = (root / prefix).resolve()
    if not prefix.strip() or not place.is_relative_to(root.resolve()) or place == root.resolve():
        raise ConfigError(f"prefix {prefix!r} must be a name below ComfyUI's output folder")
    pattern = re.compile(rf"{re.escape(place.name)}_(\d{{5,}})_\d{{4}}")
    found = [pattern.fullmatch(path.stem) for path in place.parent.glob("*")] if place.parent.is_dir() else []
    number = max((int(match[1]) + 1 for match in found if match), default=0)
    return place.parent, f"{place.name}_{number:05d}"
