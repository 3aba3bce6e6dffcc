"""Leakage between regions: an attribute that the prompt asks for one region and that appears in another.

The protocol of regions × colours: the same reference and seed are drawn twice, with a prompt that asks for a colour in
one region ("a green hat") and with the prompt without it. How far each region's mean colour moved from the second
picture towards the asked colour tells binding (the asked region moved) and leakage (another one did). Masks are those
of the renders or of a parser; the functions take them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (200, 30, 30),
    "green": (30, 150, 50),
    "blue": (40, 70, 190),
    "yellow": (230, 200, 40),
    "purple": (130, 50, 160),
    "black": (20, 20, 20),
    "white": (240, 240, 240),
}
SMALLEST = 20  # px of a region whose mean colour means something


def region_colours(images: NDArray[np.uint8], masks: NDArray[np.integer], count: int) -> NDArray[np.float64]:
    """Returns the mean CIELAB colour (N, count, 3) of each region of pictures (N, H, W, 3) by labels (N, H, W) of 0 …
    count − 1; NaN for regions of fewer than `SMALLEST` px."""
    result = np.full((len(images), count, 3), np.nan)
    for row, (image, mask) in enumerate(zip(images, masks, strict=True)):
        lab = cv2.cvtColor(np.asarray(image, np.float32) / 255, cv2.COLOR_RGB2LAB)
        for region in range(count):
            pixels = lab[np.asarray(mask) == region]
            if len(pixels) >= SMALLEST:
                result[row, region] = pixels.mean(axis=0)
    return result


def movement(
    drawn: NDArray[np.floating], base: NDArray[np.floating], asked: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Returns how far regions' colours (N, R, 3) went from those of the base picture (N, R, 3) to an asked colour (N,
    3): (N, R), 0 for not at all and 1 for all the way; NaN where a region is missing or had the colour already."""
    way = asked[:, None] - base
    length = np.square(way).sum(axis=-1)
    return np.where(length > 1, ((drawn - base) * way).sum(axis=-1) / np.maximum(length, 1e-9), np.nan)


@dataclass(frozen=True, kw_only=True)
class Binding:
    """table (R, R): mean movement of the column's region when the row's region was asked for, NaN where never asked.
    bound, leaked (N,): movement of the asked region, and the mean of the other regions' movement, none below 0."""

    table: NDArray[np.float64]
    bound: NDArray[np.float64]
    leaked: NDArray[np.float64]


def binding(moved: NDArray[np.floating], region: NDArray[np.integer]) -> Binding:
    """Returns binding and leakage of movements (N, R) when `region` (N,) was asked for."""
    moved, region = np.asarray(moved, np.float64), np.asarray(region)
    rows, regions = np.arange(len(moved)), moved.shape[1]
    others = np.maximum(moved, 0)
    others[rows, region] = np.nan
    table = np.array([_mean(moved[region == asked]) for asked in range(regions)])
    return Binding(table=table.reshape(regions, regions), bound=moved[rows, region], leaked=_mean(others.T))


def asked_colours(names: Sequence[str]) -> NDArray[np.float64]:
    """Returns CIELAB (N, 3) of colours by name. Raises KeyError for a name outside `COLOURS`."""
    pixels = np.array([[COLOURS[name] for name in names]], np.float32) / 255
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)[0].astype(np.float64)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean of the known values over the first axis; NaN where none is known."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
