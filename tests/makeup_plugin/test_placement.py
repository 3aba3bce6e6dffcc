"""Where the fitted face goes in pictures of another shape than the photo."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from faceclip.errors import ConfigError
from faceclip.face3d.fitter import FaceFitter
from faceclip.face3d.frames import FaceFit
from makeup_plugin.placement import check_placement, place_shading


@pytest.fixture(scope="module")
def fit() -> FaceFit:
    """A face of half the usual size, right of the middle of the upper left square."""
    return FaceFit(
        shape=torch.zeros(1, 48),
        expression=torch.zeros(1, 21),
        pose=torch.zeros(1, 3),
        camera=torch.tensor([[0.5, 0.2, 0.1, 14.0]]),
        light=torch.cat([torch.ones(1, 1, 3), torch.zeros(1, 8, 3)], dim=1),
    )


def middle_and_height(shading: torch.Tensor) -> tuple[float, float, float]:
    """x and y of the middle of the face's box, and its height, px."""
    rows, columns = np.nonzero(shading.amax(dim=0).numpy())
    return (
        (columns.min() + columns.max()) / 2,
        (rows.min() + rows.max()) / 2,
        float(rows.max() - rows.min() + 1),
    )


def place(fit: FaceFit, photo: tuple[int, int], placement, height: int, width: int) -> torch.Tensor:
    return place_shading(FaceFitter, fit, photo, placement, height=height, width=width)


def test_keep_leaves_the_face_where_it_is_in_the_photo(fit):
    """A wide photo of 100 × 150 px as a picture of twice its size, and whole in a square one."""
    square = middle_and_height(place(fit, (100, 100), "center", 100, 100))  # the photo's upper left square
    twice = middle_and_height(place(fit, (100, 150), "keep", 200, 300))
    assert twice == pytest.approx([2 * value + 0.5 for value in square[:2]] + [2 * square[2]], abs=1.5)
    whole = middle_and_height(place(fit, (100, 150), "keep", 150, 150))  # 25 px of margin above and below
    assert whole == pytest.approx([square[0], square[1] + 25, square[2]], abs=1.1)


def test_center_frames_the_face_of_a_photo_that_is_not_square(fit):
    framed = replace(fit, camera=torch.tensor([[1.0, 0.0, 0.0, 14.0]]))
    wanted = FaceFitter.shading(framed, 64)[0]
    found = place(fit, (100, 150), "center", 64, 96)
    assert torch.equal(found[:, :, 16:80], wanted) and not found[:, :, :16].any() and not found[:, :, 80:].any()
    assert torch.equal(place(fit, (80, 80), "center", 64, 64), FaceFitter.shading(fit, 64)[0])
    assert torch.equal(place(fit, (80, 80), "keep", 64, 64), FaceFitter.shading(fit, 64)[0])


def test_a_box_holds_the_portrait(fit):
    found = place(fit, (80, 80), (60, 10, 100, 60), 64, 128)
    assert torch.equal(found[:, 15:55, 60:100], FaceFitter.shading(fit, 40)[0])
    found[:, 15:55, 60:100] = 0
    assert not found.any()


@pytest.mark.parametrize(
    "placement",
    ["middle", 3, None, (0, 0, 10), (0, 0, 10.5, 20), (0, 0, 4, 40), (-1, 0, 20, 20), (0, 0, 65, 20), (20, 20, 10, 10)],
)
def test_other_placements_are_rejected(placement):
    with pytest.raises(ConfigError, match="reference_placement"):
        check_placement(placement, 64, 64)


def test_the_call_places_the_map(pipeline, photo, points):
    wide = np.concatenate([photo, photo], axis=1)
    arguments = {"landmarks": points, "num_inference_steps": 1, "height": 32, "width": 64}

    def columns(placement) -> list[int]:
        (shown,) = pipeline("a man", wide, reference_placement=placement, **arguments).shading_maps
        found = np.flatnonzero(np.asarray(shown).any(axis=(0, 2)))
        return [int(found.min()), int(found.max())]

    assert columns("center") == [16, 47] and columns((0, 0, 16, 32)) == [0, 15]
    assert columns("keep") == [0, 63]  # the test fitter fills the square
    with pytest.raises(ConfigError, match="reference_placement"):
        columns((0, 0, 65, 32))
