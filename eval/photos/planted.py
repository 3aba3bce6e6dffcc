"""Makes pictures that curation must drop, by planting faults in photographs that it must keep.

Every function takes one to four photos (H, W, 3), uint8 RGB, and a generator, and returns the faulty picture.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from faceclip.data.curate.drawn import drawn_face

Pixels = NDArray[np.uint8]
Fault = Callable[[Sequence[Pixels], Generator], Pixels]

_WORDS = ("quick", "brown", "foxes", "jump", "over", "lazy", "dogs", "while", "seven", "wizards", "boil", "onions")
_MARKS = ("(c) PhotoStock", "www.pictures.com", "SAMPLE", "stock photo", "Copyright 2003")


def grey(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Replaces the colours by the luma."""
    return cv2.cvtColor(cv2.cvtColor(photos[0], cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def toned(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Tones the photo in one hue, like sepia."""
    level = cv2.cvtColor(photos[0], cv2.COLOR_RGB2GRAY)[..., None] / 255
    tint = random.permuted([1.0, random.uniform(0.75, 0.95), random.uniform(0.5, 0.85)])
    return np.clip(255 * level ** (1 / tint), 0, 255).astype(np.uint8)


def captioned(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Writes two to four lines of text over the photo, with or without a bar behind them."""
    picture = photos[0].copy()
    height, width = picture.shape[:2]
    scale, lines = random.uniform(0.4, 0.6) * width / 250, int(random.integers(2, 5))
    step = round(34 * scale)
    top = int(random.integers(0, height - lines * step)) if random.random() < 0.3 else height - lines * step - 4
    bar = random.random() < 0.5
    if bar:
        picture[top : top + lines * step + 4] = 20
    for number in range(lines):
        words = " ".join(random.choice(_WORDS, 4))
        color = (255, 255, 255) if bar or random.random() < 0.5 else (250, 230, 60)
        place = (6, top + (number + 1) * step - step // 4)
        cv2.putText(
            picture, words, place, cv2.FONT_HERSHEY_SIMPLEX, scale, color, max(1, round(scale * 2)), cv2.LINE_AA
        )
    return picture


def watermarked(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Writes a pale watermark, once in a corner or in the middle, or in tiles."""
    picture = photos[0].copy()
    height, width = picture.shape[:2]
    layer, words = picture.copy(), str(random.choice(_MARKS))
    tiled, scale = random.random() < 0.5, random.uniform(0.5, 0.8) * width / 250
    if tiled:
        places = [(x, y) for y in range(40, height, 70) for x in range(-20, width, round(260 * scale))]
    else:
        places = [(8, int(random.choice([height - 10, height // 2])))]
    for place in places:
        cv2.putText(layer, words, place, cv2.FONT_HERSHEY_DUPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return cv2.addWeighted(layer, float(random.uniform(0.5, 0.8)), picture, 0.4, 0)


def group(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Joins two or four photos to a picture of several people."""
    size = photos[0].shape[1::-1]
    same = [cv2.resize(photo, size, interpolation=cv2.INTER_AREA) for photo in photos[:4]]
    if random.random() < 0.5:
        return np.hstack([photo[:, size[0] // 8 : -size[0] // 8] for photo in same[:2]])
    return np.vstack([np.hstack(same[:2]), np.hstack(same[2:])])


def drawn(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Draws a comic face in random colours, with noise."""
    size = min(photos[0].shape[:2])
    picture = drawn_face(size)[:, :, random.permutation(3)].astype(np.float64) * random.uniform(0.75, 1, 3)
    noise = random.normal(0, random.uniform(0, 3), picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def painted(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Turns the photo into flat areas with outlines."""
    picture = photos[0]
    for _ in range(5):
        picture = cv2.bilateralFilter(picture, 9, 40, 7)
    step = int(random.choice([32, 48]))
    areas = (picture // step * step + step // 2).astype(np.uint8)
    smooth = cv2.medianBlur(cv2.cvtColor(photos[0], cv2.COLOR_RGB2GRAY), 5)
    lines = cv2.adaptiveThreshold(smooth, 255, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY, 9, 4)
    return cv2.bitwise_and(areas, areas, mask=lines)


def blurred(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Blurs by a Gaussian whose standard deviation is 1.2 to 2.4 % of the width (3 to 6 px at 250 px)."""
    return cv2.GaussianBlur(photos[0], (0, 0), float(random.uniform(0.012, 0.024)) * photos[0].shape[1])


def dark(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Darkens the photo to 8 to 18 % of its light."""
    return (photos[0] * random.uniform(0.08, 0.18)).astype(np.uint8)


def bright(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Overexposes the photo."""
    return np.clip(photos[0].astype(np.float64) * random.uniform(3, 5) + 90, 0, 255).astype(np.uint8)


def long(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Extends the photo to a strip of four times its width."""
    return np.ascontiguousarray(np.hstack([photos[0], *(np.full_like(photos[0], 120) for _ in range(3))]))


def small(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Scales the photo to a side of 48 to 120 pixels."""
    side = int(random.integers(48, 121))
    return cv2.resize(photos[0], (side, side), interpolation=cv2.INTER_AREA)


def no_face(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Shuffles the 6 × 6 tiles of the photo, so that no face is left."""
    height, width = (side // 6 for side in photos[0].shape[:2])
    pieces = [photos[0][y * height :, x * width :][:height, :width] for y in range(6) for x in range(6)]
    order = random.permutation(36)
    return np.vstack([np.hstack([pieces[order[6 * y + x]] for x in range(6)]) for y in range(6)])


def compressed(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Compresses the photo as a JPEG of quality 15 to 40."""
    quality = int(random.integers(15, 41))
    _, data = cv2.imencode(".jpg", photos[0][:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1])


def cropped(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Crops 4 to 12 % of each side."""
    height, width = photos[0].shape[:2]
    top, bottom = (random.uniform(0.04, 0.12, 2) * height).astype(int)
    left, right = (random.uniform(0.04, 0.12, 2) * width).astype(int)
    return np.ascontiguousarray(photos[0][top : height - bottom, left : width - right])


def resized(photos: Sequence[Pixels], random: Generator) -> Pixels:
    """Scales the photo to 55 to 90 % of its size."""
    scale = float(random.uniform(0.55, 0.9))
    return cv2.resize(photos[0], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


FAULTS: dict[str, tuple[Fault, tuple[str, ...]]] = {
    "grey": (grey, ("grey", "toned")),
    "toned": (toned, ("toned",)),
    "captioned": (captioned, ("text",)),
    "watermarked": (watermarked, ("watermark", "text")),
    "group": (group, ("group", "many_faces")),
    "drawn": (drawn, ("cartoon", "flat", "no_face")),
    "painted": (painted, ("cartoon", "flat", "no_face")),
    "blurred": (blurred, ("blurred", "blurred_face")),
    "dark": (dark, ("dark", "pale", "black")),
    "bright": (bright, ("bright", "white")),
    "long": (long, ("long",)),
    "small": (small, ("small",)),
    "no_face": (no_face, ("no_face",)),
}
"""Name of each fault → its function, and the rules that are meant to drop such pictures."""

COPIES: dict[str, Fault] = {"compressed": compressed, "cropped": cropped, "resized": resized}
"""Name → function that makes a near-duplicate of a photo in the set."""
