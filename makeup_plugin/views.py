"""What the image tower of an identity channel sees of a photo: the aligned face, a square around it, or the picture."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from faceclip.faces import PreparedFace

# "aligned": the aligned crop. "square": Face-MakeUp V2's square, upright, three times as wide as the five points.
# "picture": the square in the middle of the whole picture, which CLIP's own preprocessing cuts (Face-MakeUp v1).
VIEWS = ("aligned", "square", "picture")
_WIDER = 3.0


def tower_view(face: PreparedFace, view: str, size: int) -> Tensor:
    """The view (3,size,size) RGB in [0,1] of a face's photo, resized bicubically with antialiasing."""
    parts = {"aligned": lambda: face.crop, "square": lambda: _around(face), "picture": lambda: _middle(face.image)}
    pixels = parts[view]()
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(image, (size, size), mode="bicubic", align_corners=False, antialias=True)[0].clamp(0, 1)


def _around(face: PreparedFace) -> NDArray[np.uint8]:
    """The square around the five points, cut where the picture ends."""
    height, width = face.image.shape[:2]
    low, high = face.face.landmarks.min(axis=0), face.face.landmarks.max(axis=0)
    middle, half = (low + high) / 2, float((high - low).max()) * _WIDER / 2
    left, top = (max(0, int(value)) for value in middle - half)
    right, bottom = min(width, int(middle[0] + half)), min(height, int(middle[1] + half))
    return face.image[top : max(bottom, top + 1), left : max(right, left + 1)]


def _middle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]
