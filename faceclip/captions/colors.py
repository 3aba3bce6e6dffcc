"""Names of colours in CIE Lab: each pixel takes a name by rules on lightness, chroma and hue, a region that of most of
its pixels."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

GREY_PICTURE = 4.0  # mean chroma below which a picture is black and white, and names no colour
TYPICAL_SKIN = (14.0, 17.0)  # a and b of skin in neutral light, between the darkest and the palest
_LEAST_PIXELS = 60

NAMES = ("black", "gray", "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "beige")
HAIR_NAMES = ("black", "brown", "blond", "red", "gray")
# Upper ends of hue in degrees, and the names between them.
_HUES = ((42, "red"), (72, "orange"), (102, "yellow"), (195, "green"), (310, "blue"), (340, "purple"), (361, "red"))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A value and how sure it is, from 0 to 1."""

    value: str
    confidence: float


def to_lab(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns CIE Lab (H, W, 3), L from 0 to 100, of an RGB picture (H, W, 3) uint8."""
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)


def is_grey(lab: NDArray[np.float32]) -> bool:
    """Returns whether a picture is black and white."""
    return float(np.hypot(lab[..., 1], lab[..., 2]).mean()) < GREY_PICTURE


def name_pixels(lab: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns numbers of `NAMES` (N,) of colours (N, 3)."""
    light, chroma, hue = _polar(lab)
    names = np.empty(len(lab), np.int64)
    low = -1.0
    for high, name in _HUES:
        names[(hue > low) & (hue <= high)] = NAMES.index(name)
        low = high

    def among(*known: str) -> NDArray[np.bool_]:
        return np.isin(names, [NAMES.index(name) for name in known])

    warm = among("orange", "yellow")
    brown = (among("orange") & (light < 55)) | (among("yellow") & (light < 45)) | (among("red") & (light < 25))
    beige = warm & (chroma < 28) & (light >= 58)
    names[among("red") & (light > 58) & (chroma < 45)] = NAMES.index("pink")
    names[brown] = NAMES.index("brown")
    names[beige] = NAMES.index("beige")
    plain = chroma < np.where(light > 75, 7.0, 9.0)
    names[plain] = NAMES.index("gray")
    names[plain & (light > 78)] = NAMES.index("white")
    names[(light < 22) & (chroma < 12) | (light < 10)] = NAMES.index("black")
    return names


def name_hair_pixels(lab: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns numbers of `HAIR_NAMES` (N,) of colours (N, 3)."""
    light, chroma, hue = _polar(lab)
    names = np.full(len(lab), HAIR_NAMES.index("brown"))
    names[(light >= 48) & (chroma >= 12)] = HAIR_NAMES.index("blond")
    names[(light >= 42) & (chroma < 12)] = HAIR_NAMES.index("gray")
    names[(hue < 52) & (chroma > 26) & (light > 22) & (light < 60)] = HAIR_NAMES.index("red")
    names[(light < 17) | ((light < 26) & (chroma < 9))] = HAIR_NAMES.index("black")
    return names


def in_neutral_light(lab: NDArray[np.float32], skin: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns colours (N, 3) moved by half of what the skin (M, 3) is away from `TYPICAL_SKIN`, by 10 at most.

    Skin tells warm lamps from daylight. Half, since skins differ too.
    """
    if len(skin) < _LEAST_PIXELS:
        return lab
    shift = 0.5 * (np.median(skin[:, 1:], axis=0) - TYPICAL_SKIN)
    return lab - np.array([0, *np.clip(shift, -10, 10)], np.float32)


def most(numbers: NDArray[np.int64], names: tuple[str, ...]) -> Reading | None:
    """Returns the name of most pixels, and their share; None of too few pixels."""
    if len(numbers) < _LEAST_PIXELS:
        return None
    counts = np.bincount(numbers, minlength=len(names))
    best = int(counts.argmax())
    return Reading(value=names[best], confidence=float(counts[best] / len(numbers)))


def _polar(lab: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Returns lightness, chroma and hue in degrees from 0 to 360."""
    hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360
    return lab[:, 0], np.hypot(lab[:, 1], lab[:, 2]), hue
