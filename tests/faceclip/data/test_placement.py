"""Where a portrait lies in its picture, and what SDXL is told of it."""

import numpy as np
import pytest

from faceclip.data.placement import crop_sizes, placement
from faceclip.errors import DataError


def test_the_crop_is_placed_in_the_picture_as_it_is_scaled() -> None:
    stored = placement((900, 1600), (500, 100, 400))
    assert crop_sizes(stored, 1024, "row").tolist() == [900, 1600, 256, 1280]
    assert crop_sizes(stored, 400, "row").tolist() == [900, 1600, 100, 500]
    assert crop_sizes(placement((64, 64), (0, 0, 64)), 64, "row").dtype == np.float32


@pytest.mark.parametrize(
    "stored", [[64, 64, 0, 0], [64, 64, 0, 0, 0], [64, 64, -1, 0, 10], [64, 64, 60, 0, 10], [64, 64, 0, 60, 10]]
)
def test_what_is_no_square_in_a_picture_is_named(stored: list[int]) -> None:
    with pytest.raises(DataError, match=r"^row 3: placement"):
        crop_sizes(stored, 64, "row 3")
