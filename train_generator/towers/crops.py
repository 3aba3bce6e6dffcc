"""Random windows of portraits, from which a convolutional autoencoder learns as well as from whole pictures.

A window costs only its own pixels. The face recognizer sees the whole portrait, in which the window is replaced by its
reconstruction.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

MIRRORED = [1, 0, 2, 4, 3]  # order of the five points in a mirrored face, where left and right are swapped


def mirror_points(points: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Returns the five points (…, 5, 2) in the mirrored picture of `size` px."""
    flipped = points[..., MIRRORED, :].copy()
    flipped[..., 0] = size - 1 - flipped[..., 0]
    return flipped


def draw_corners(rngs: list[np.random.Generator], size: int, window: int) -> NDArray[np.int64]:
    """Draws the upper left corners (B, 2), x and y, of windows of `window` px in pictures of `size` px."""
    return np.stack([rng.integers(0, size - window + 1, 2) for rng in rngs])


def cut(pictures: NDArray, corners: NDArray[np.int64], window: int) -> NDArray:
    """Cuts windows (B, window, window, …) at `corners` (B, 2) out of pictures (B, S, S, …)."""
    return np.stack(
        [picture[y : y + window, x : x + window] for picture, (x, y) in zip(pictures, corners, strict=True)]
    )


def put_back(pictures: Tensor, windows: Tensor, corners: Tensor) -> Tensor:
    """Returns pictures (B, C, S, S) with windows (B, C, w, w) inserted at `corners` (B, 2), differentiable in these."""
    side, window = pictures.shape[-1], windows.shape[-1]
    whole = []
    for picture, part, (x, y) in zip(pictures, windows, corners.tolist(), strict=True):
        beyond = (x, side - x - window, y, side - y - window)
        inside = F.pad(torch.ones_like(part[:1]), beyond)
        whole.append(torch.where(inside.bool(), F.pad(part.to(picture.dtype), beyond), picture))
    return torch.stack(whole)
