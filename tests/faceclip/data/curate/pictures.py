"""Pictures that curation must keep or drop, made from nothing or from a package's portrait."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def scene(seed: int, size: int = 160) -> NDArray[np.uint8]:
    """Coloured shapes of many sizes, as sharp and as bright as a photo: no two seeds look alike."""
    random = np.random.default_rng(seed)
    picture = np.full((size, size, 3), random.integers(60, 200, 3), np.uint8)
    for _ in range(60):
        center, radius = random.integers(0, size, 2).tolist(), int(random.integers(3, size // 5))
        cv2.circle(picture, center, radius, random.integers(20, 236, 3).tolist(), -1, cv2.LINE_AA)
    return np.clip(picture + random.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


def save(path: Path, picture: NDArray[np.uint8], **options: object) -> Path:
    """Writes a picture; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **options)
    return path
