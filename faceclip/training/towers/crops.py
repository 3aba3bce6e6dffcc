"""Training samples of the towers: aligned crops and portraits with small random changes.

All random draws come from the generator that the trainer passes, a function of (seed, sample, epoch).
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.faces.align import align_face, similarity_transform
from faceclip.settings import setting
from faceclip.training import MapSource


@dataclass(kw_only=True)
class JitterConfig:
    """Sizes of the random changes; with all of them zero the image is unchanged."""

    landmarks: float = setting(0.0, "standard deviation of the noise on the five points, as a fraction of the crop")
    gain: float = setting(0.0, "half width of the uniform factor around 1")
    contrast: float = setting(0.0, "half width of the uniform factor around 1")
    color: float = setting(0.0, "half width of a factor per channel; small, since skin color belongs to the identity")
    blur: float = setting(0.0, "greatest Gaussian sigma in px")
    noise: float = setting(0.0, "greatest standard deviation in grey levels, in half of the images")
    half_resolution: float = setting(0.0, "probability of a portrait at 64 px in place of the full one")


def jitter_image(image: NDArray[np.uint8], rng: np.random.Generator, config: JitterConfig) -> NDArray[np.uint8]:
    """Applies gain, contrast, channel balance, blur and noise to one uint8 image (H, W, 3)."""
    if config.gain or config.contrast or config.color:
        gain = 1 + config.gain * rng.uniform(-1, 1)
        contrast = 1 + config.contrast * rng.uniform(-1, 1)
        balance = gain * (1 + config.color * rng.uniform(-1, 1, size=3))
        levels = np.arange(256, dtype=np.float32)[:, None]
        table = ((levels - 127.5) * contrast + 127.5) * balance
        image = cv2.LUT(image, table.round().clip(0, 255).astype(np.uint8)[None])
    if config.blur and (sigma := config.blur * rng.uniform()) > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    if config.noise and rng.random() < 0.5:
        grain = rng.standard_normal(image.shape, dtype=np.float32) * (config.noise * rng.uniform())
        image = (image + grain).round().clip(0, 255).astype(np.uint8)
    return image


class CropSource(MapSource):
    """Aligned face crops of one split, with their identity as a class label.

    Crops are cut anew from the portrait for every sample, so that the landmark noise differs each time (about 0.1 ms).
    Fields: crop (3, size, size) uint8, landmarks (68, 2) in it from −1 to 1, label (0 … classes − 1), row (in the
    arrays).
    """

    def __init__(self, directory: Path, split: str, *, size: int, jitter: JitterConfig, small: int = 64) -> None:
        self.arrays: FaceArrays = load_arrays(directory, split)
        wanted = jitter.half_resolution > 0
        self.small: FaceArrays | None = load_arrays(directory, split, size=small) if wanted else None
        self.size, self.jitter = size, jitter
        people, labels = np.unique(self.arrays.identity, return_inverse=True)
        self.labels, self.classes = labels.astype(np.int64), len(people)

    def __len__(self) -> int:
        return len(self.labels)

    def crop(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Returns one crop (size, size, 3) and its landmarks (68, 2), from −1 to 1 between its edges."""
        arrays = self.arrays
        if self.small is not None and rng.random() < self.jitter.half_resolution:
            arrays = self.small
        points = np.asarray(arrays.landmarks_5[index], dtype=np.float64)
        # In units of the crop: the five points span about a third of it.
        noise = rng.standard_normal((5, 2)) * (self.jitter.landmarks * 3 * np.ptp(points[:, 0]))
        crop = align_face(np.asarray(arrays.images[index]), points + noise, self.size)
        matrix = similarity_transform(torch.from_numpy(points + noise), self.size).numpy()
        landmarks = np.asarray(arrays.landmarks_68[index]) @ matrix[:, :2].T + matrix[:, 2]
        return crop, ((landmarks + 0.5) * (2 / self.size) - 1).astype(np.float32)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns one training sample."""
        crop, landmarks = self.crop(index, rng)
        crop = jitter_image(crop, rng, self.jitter)
        return {
            "landmarks": landmarks,
            "crop": np.ascontiguousarray(crop.transpose(2, 0, 1)),
            "label": self.labels[index],
            "row": np.int64(index),
        }


def aligned_crops(arrays: FaceArrays, size: int, *, count: int | None = None) -> NDArray[np.uint8]:
    """Returns the first `count` (None: all) crops (N, size, size, 3) of a split, cut by true landmarks, without
    jitter."""
    count = len(arrays.images) if count is None else count
    crops = np.empty((count, size, size, 3), dtype=np.uint8)
    for index in range(count):
        points = np.array(arrays.landmarks_5[index], dtype=np.float64)
        crops[index] = align_face(np.asarray(arrays.images[index]), points, size)
    return crops
