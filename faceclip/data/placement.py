"""Where a portrait lies in the picture that it was cut from, as SDXL's size conditioning wants to know it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from faceclip.errors import DataError

PLACEMENT = "placement"  # the column of it, which renders lack
FIELDS = ("height", "width", "left", "top", "side")


def placement(whole: tuple[int, int], square: tuple[int, int, int]) -> list[int]:
    """The column's value, by `FIELDS`, of a square (left, top, side) in a picture (height, width)."""
    return [*whole, *square]


def crop_sizes(stored: Sequence[int], size: int, where: str) -> NDArray[np.float32]:
    """(4,) height and width of the whole picture in its own pixels, then top and left of the square in it, once it is
    scaled so that the square has `size` px (Podell et al. 2023, section 2.2).

    Raises DataError, which begins with `where`, for what is no place of a square in a picture.
    """
    if len(stored) != len(FIELDS):
        raise DataError(f"{where}: {PLACEMENT} has {len(stored)} values, expected {', '.join(FIELDS)}")
    height, width, left, top, side = stored
    if side < 1 or min(left, top) < 0 or left + side > width or top + side > height:
        raise DataError(f"{where}: {PLACEMENT} {list(stored)} ({', '.join(FIELDS)}) is no square within a picture")
    return np.array([height, width, top * size // side, left * size // side], np.float32)
