"""What an image tower sees of a photo."""

import numpy as np
import pytest
import torch

from faceclip.faces import Face, PreparedFace
from makeup_plugin.views import VIEWS, tower_view


def prepared(points: np.ndarray, height: int = 60, width: int = 90) -> PreparedFace:
    """A face in a picture whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    face = Face(box=np.zeros(4, np.float32), landmarks=points.astype(np.float32), score=1.0)
    return PreparedFace(crop=np.full((448, 448, 3), 200, np.uint8), face=face, image=image, name="photo")


MIDDLE = np.array([[40, 26], [48, 26], [44, 30], [41, 34], [47, 34]])


@pytest.mark.parametrize(
    ("view", "columns", "rows"),
    [("picture", (15, 74), (0, 59)), ("square", (32, 55), (18, 41)), ("aligned", (200, 200), (200, 200))],
)
def test_each_view_shows_its_part_of_the_photo(view, columns, rows) -> None:
    seen = tower_view(prepared(MIDDLE), view, 120) * 255
    assert seen.shape == (3, 120, 120)
    found = [seen[0].min(), seen[0].max(), seen[1].min(), seen[1].max()]
    torch.testing.assert_close(torch.stack(found), torch.tensor([*columns, *rows]).float(), atol=1.0, rtol=0)


def test_a_square_beyond_the_picture_is_cut() -> None:
    seen = tower_view(prepared(MIDDLE - [36, 20]), "square", 24) * 255
    assert seen[0].max() < 21 and seen[1].max() < 23
    assert {"aligned", "square", "picture"} == set(VIEWS)
