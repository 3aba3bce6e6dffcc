"""Random windows of portraits, for a convolutional autoencoder that need not see a whole picture to learn.

A window costs its own pixels alone; what a face recognizer says of it is asked of the portrait around it, in which the
window was replaced by what the autoencoder made of it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

MIRRORED = [1, 0, 2, 4, 3]  # the five points of a mirrored face in their order: left is right


def mirror_points(points: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Five points (…, 5, 2) of the mirrored picture of `size` px."""
    flipped = points[..., MIRRORED, :].copy()
    flipped[..., 0] = size - 1 - flipped[..., 0]
    return flipped


def draw_corners(rngs: list[np.random.Generator], size: int, window: int) -> NDArray[np.int64]:
    """Left upper corners (B, 2) x, y of windows of `window` px, anywhere in pictures of `size` px."""
    return np.stack([rng.integers(0, size - window + 1, 2) for rng in rngs])


def cut(pictures: NDArray, corners: NDArray[np.int64], window: int) -> NDArray:
    """The windows (B, window, window, …) of pictures (B, S, S, …)."""
    return np.stack(
        [picture[y : y + window, x : x + window] for picture, (x, y) in zip(pictures, corners, strict=True)]
    )


def put_back(pictures: Tensor, windows: Tensor, corners: Tensor) -> Tensor:
    """Pictures (B, C, S, S) with their windows (B, C, w, w) at `corners` (B, 2), differentiable in the windows."""
    side, window = pictures.shape[-1], windows.shape[-1]
    whole = []
    for picture, part, (x, y) in zip(pictures, windows, corners.tolist(), strict=True):
        beyond = (x, side - x - window, y, side - y - window)
        inside = F.pad(torch.ones_like(part[:1]), beyond)
        whole.append(torch.where(inside.bool(), F.pad(part.to(picture.dtype), beyond), picture))
    return torch.stack(whole)
