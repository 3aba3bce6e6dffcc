"""Cuts frames for stage 2 from a whole picture: a square around the face, or the whole picture in one of a few
shapes."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_RATIO = 2.0  # of the longer side of a shape to the shorter one


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How frames are cut; part of cache keys, and sent to worker processes.

    size: side of a square in px, and the root of the area of other shapes. step: px of which the sides of these are
    multiples. reach: side of a square divided by that of the aligned face crop. whole: whether to take the whole
    picture, in the nearest of the `shapes`. min_side: smallest shorter side of a frame in px of its picture.
    """

    size: int
    step: int
    reach: float
    whole: bool
    min_side: int


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A frame (h, w, 3) with the `window` (left, top, width, height) of a picture of `whole` (height, width) px."""

    picture: NDArray[np.uint8]
    window: tuple[int, int, int, int]
    whole: tuple[int, int]

    @property
    def scale(self) -> NDArray[np.float64]:
        """Px of the frame per px of the picture along x and y, (2,); the two differ only by rounding."""
        return np.array(self.picture.shape[1::-1], np.float64) / self.window[2:]

    def points(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """Converts points (N, 2) from px of the whole picture to px of the frame; pixel centers are integers."""
        return ((points - self.window[:2] + 0.5) * self.scale - 0.5).astype(np.float32)

    @property
    def sizes(self) -> NDArray[np.float32]:
        """SDXL's size conditioning (6,) (Podell et al. 2023, section 2.2): height and width of the whole picture in its
        own px, top and left of the frame in the scaled picture, height and width of the frame."""
        (left, top, width, height), (tall, wide) = self.window, self.picture.shape[:2]
        return np.array([*self.whole, top * tall // height, left * wide // width, tall, wide], np.float32)


@cache
def shapes(size: int, step: int) -> tuple[tuple[int, int], ...]:
    """Returns heights and widths of frames, from portrait to landscape up to `MAX_RATIO`, including the square.

    The sides are multiples of `step`, and the area is at most size² px.
    """
    found = {(size, size)}
    for short in range(step, size, step):
        long = size * size // short // step * step
        if long <= MAX_RATIO * short:
            found |= {(short, long), (long, short)}
    return tuple(sorted(found, key=lambda shape: shape[1] / shape[0]))


def cut_frame(
    image: NDArray[np.uint8], face: NDArray[np.floating], square: tuple[int, int, int], framing: Framing
) -> Frame:
    """Cuts the frame of an upright picture (H, W, 3).

    face (5, 2): px. square: left, top and side around the face, which is the window of a square frame. For the whole
    picture, the window is as large as the nearest shape allows, with the face as near to its middle as possible.
    """
    tall, wide = image.shape[:2]
    size = (framing.size, framing.size)
    window = (*square[:2], square[2], square[2])
    if framing.whole:
        known, ratio = shapes(framing.size, framing.step), wide / tall
        size = min(known, key=lambda shape: abs(math.log(shape[1] / shape[0] / ratio)))
        zoom = max(size[0] / tall, size[1] / wide)
        width, height = min(wide, max(1, round(size[1] / zoom))), min(tall, max(1, round(size[0] / zoom)))
        middle = np.asarray(face, np.float64).mean(axis=0) - [(width - 1) / 2, (height - 1) / 2]
        left, top = np.clip(np.round(middle), 0, [wide - width, tall - height]).astype(int).tolist()
        window = (left, top, width, height)
    return Frame(picture=cut_window(image, window, size), window=window, whole=(tall, wide))


def cut_window(image: NDArray[np.uint8], window: tuple[int, int, int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scales a window (left, top, width, height) of a picture to `size` (height, width)."""
    left, top, width, height = window
    cut = image[top : top + height, left : left + width]
    # Pillow's bicubic filter is the one CLIP's towers were trained with.
    return np.asarray(Image.fromarray(cut).resize(size[::-1], Image.Resampling.BICUBIC))
