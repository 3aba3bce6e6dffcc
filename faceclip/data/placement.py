"""The place of a portrait in the picture from which it was cut, for SDXL's size conditioning."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from faceclip.errors import DataError

PLACEMENT = "placement"  # the column of it, which renders lack
FIELDS = ("height", "width", "left", "top", "side")


def placement(whole: tuple[int, int], square: tuple[int, int, int]) -> list[int]:
    """Returns the column's value, by `FIELDS`, for a square (left, top, side) in a picture (height, width)."""
    return [*whole, *square]


def crop_sizes(stored: Sequence[int], size: int, where: str) -> NDArray[np.float32]:
    """Returns height and width of the whole picture in its own pixels, and top and left of the square in the picture
    scaled so that the square has `size` px, (4,) (Podell et al. 2023, section 2.2).

    Raises DataError, which begins with `where`, if the value is no place of a square in a picture.
    """
    if len(stored) != len(FIELDS):
        raise DataError(f"{where}: {PLACEMENT} has {len(stored)} values, expected {', '.join(FIELDS)}")
    height, width, left, top, side = stored
    if side < 1 or min(left, top) < 0 or left + side > width or top + side > height:
        raise DataError(f"{where}: {PLACEMENT} {list(stored)} ({', '.join(FIELDS)}) is no square within a picture")
    return np.array([height, width, top * size // side, left * size // side], np.float32)
