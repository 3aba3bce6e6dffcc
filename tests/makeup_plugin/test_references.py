"""Faces and shading maps of several references: everything stands in the row that it belongs to."""

import numpy as np
import pytest
import torch
from torch import Tensor

from faceclip.errors import BadLandmarksError, ConfigError
from faceclip.faces.align import align_face
from makeup_plugin.references import fitted_shading, given_shading, prepare_references, resized, shading_pictures


def grey(level: int) -> np.ndarray:
    return np.full((80, 80, 3), level, dtype=np.uint8)


def references(points: np.ndarray, *levels: int | None):
    images = [None if level is None else grey(level) for level in levels]
    return prepare_references(images, landmarks=[None if image is None else points for image in images])


def shown(maps: Tensor) -> list[tuple[int, int]]:
    """Whose shape (red) and whose pose (green) each map of the test fitter has, by grey level; (0, 0) is black."""
    return [tuple((row[:2].amax(dim=(1, 2)) * 255).round().int().tolist()) for row in maps]


def test_each_person_keeps_the_own_shape_under_another_pose(pipeline, points: np.ndarray) -> None:
    people, others = references(points, 10, 20, 30), references(points, 110, 120, 130)
    assert shown(fitted_shading(pipeline.face_fitter, people, None, height=8, width=8)) == [
        (10, 10),
        (20, 20),
        (30, 30),
    ]
    assert shown(fitted_shading(pipeline.face_fitter, people, others, height=8, width=8)) == [
        (10, 110),
        (20, 120),
        (30, 130),
    ]


def test_shapes_go_to_the_rows_of_their_persons(pipeline, points: np.ndarray) -> None:
    """A row without a person takes shape and pose of the other picture; one without that picture is black."""
    people, others = references(points, None, 20, 30, 40), references(points, 110, None, 130, 140)
    found = fitted_shading(pipeline.face_fitter, people, others, height=8, width=8)
    assert shown(found) == [(110, 110), (0, 0), (30, 130), (40, 140)]
    assert shown(fitted_shading(pipeline.face_fitter, people, None, height=8, width=8)) == [
        (0, 0),
        (20, 20),
        (30, 30),
        (40, 40),
    ]
    nobody = references(points, None, None)
    assert not fitted_shading(pipeline.face_fitter, nobody, None, height=8, width=8).any()
    assert shown(fitted_shading(pipeline.face_fitter, nobody, references(points, 110, 120), height=8, width=8)) == [
        (110, 110),
        (120, 120),
    ]


@pytest.mark.parametrize(("height", "width", "top", "left"), [(8, 15, 0, 3), (14, 8, 3, 0), (8, 8, 0, 0)])
def test_a_longer_picture_has_the_square_in_its_middle(
    pipeline, points, height: int, width: int, top: int, left: int
) -> None:
    (found,) = fitted_shading(pipeline.face_fitter, references(points, 50), None, height=height, width=width)
    expected = torch.zeros(height, width, dtype=torch.bool)
    expected[top : top + 8, left : left + 8] = True
    assert torch.equal(found[0] > 0, expected)


def test_crops_stand_in_their_rows(points: np.ndarray, photo: np.ndarray) -> None:
    found = prepare_references([None, photo, grey(51)], landmarks=[None, points, points])
    assert found.has_face.tolist() == [False, True, True] and len(found) == 3
    assert found.crops.shape == (3, 3, 448, 448) and not found.crops[0].any()
    expected = torch.from_numpy(align_face(photo, points)).permute(2, 0, 1) / 255
    torch.testing.assert_close(found.crops[1], expected)
    assert found.crops[2, :, 224, 224].tolist() == pytest.approx([0.2] * 3)
    face = found.faces[1].face
    assert face.box.tolist() == [30.0, 30.0, 50.0, 52.0] and face.score == 1.0
    place, size = found.points(1)
    assert np.array_equal(place, points) and size == photo.shape[:2] and found.points(0) is None
    assert prepare_references([None, None]).crops is None


def test_one_image_serves_all(points: np.ndarray, photo: np.ndarray) -> None:
    found = prepare_references(photo, count=3, landmarks=points)
    assert len(found) == 3 and found.has_face.all() and torch.equal(found.crops[0], found.crops[2])
    several = prepare_references(np.stack([photo, grey(9)]), count=2, landmarks=np.stack([points, points + 1]))
    assert several.faces[1].face.landmarks[0].tolist() == [31.0, 31.0]
    with pytest.raises(ConfigError, match=r"image: 2 images .* 3 prompts"):
        prepare_references([photo, photo], count=3, landmarks=[points, points])


def test_faces_too_small_to_align_are_rejected(points: np.ndarray) -> None:
    """The aligned crop of these landmarks is about 63 px wide; a fifth of that is rejected, a quarter is not."""
    assert prepare_references(grey(0), landmarks=points / 4).faces[0] is not None
    with pytest.raises(BadLandmarksError, match="image 0"):
        prepare_references(grey(0), landmarks=points / 6)


def test_given_maps_are_resized_and_scaled() -> None:
    bright, dark = grey(255), grey(51)
    found = given_shading([bright, None, dark], 3, height=8, width=4)
    assert found.shape == (3, 3, 8, 4)
    expected = torch.tensor([1.0, 0.0, 0.2]).view(3, 1, 1, 1).expand(3, 3, 8, 4)
    torch.testing.assert_close(found, expected)
    assert found.max() <= 1
    assert given_shading(dark, 2, height=8, width=4).shape == (2, 3, 8, 4)
    same = np.random.default_rng(0).integers(0, 255, (8, 4, 3), dtype=np.uint8)
    (exact,) = given_shading(same, 1, height=8, width=4)
    assert torch.equal(exact, torch.from_numpy(same).permute(2, 0, 1) / 255)
    half = given_shading(np.repeat(np.repeat(same, 2, 0), 2, 1), 1, height=8, width=4)[0]
    assert half.shape == exact.shape and half.min() >= 0 and half.max() <= 1
    with pytest.raises(ConfigError, match=r"^shading_map: 2 "):
        given_shading([bright, dark], 3, height=8, width=4)


def test_maps_become_pictures_where_there_are_any() -> None:
    maps = torch.tensor([0.2, 1.7, -1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 4)
    pictures = shading_pictures(maps, torch.tensor([1.0, 1.0, 0.0]), 3)
    assert [picture and picture.getpixel((3, 1)) for picture in pictures] == [(51, 51, 51), (255, 255, 255), None]
    assert pictures[0].size == (4, 2)
    assert shading_pictures(maps, None, 3)[2].getpixel((0, 0)) == (0, 0, 0)
    assert shading_pictures(None, None, 2) == [None, None]


def test_landmarks_outside_of_their_picture_are_rejected(points: np.ndarray, photo: np.ndarray) -> None:
    with pytest.raises(BadLandmarksError, match="image 1"):
        prepare_references([photo, photo], landmarks=[points, points + 10_000])


def test_pictures_get_another_size_where_they_have_another() -> None:
    pixels = np.zeros((6, 4, 3), dtype=np.uint8)
    pixels[:, 2:] = 200
    assert resized(pixels, 6, 4) is pixels
    for one in (pixels, pixels[..., 0]):
        found = resized(one, 3, 8)
        assert found.shape == (3, 8, *one.shape[2:]) and found.dtype == np.uint8
        assert found[:, :2].max() < 40 and found[:, -2:].min() > 160


@pytest.mark.parametrize("bad", [[[1, 2]] * 5 + [[3]], [[np.nan, 1.0]] * 5, [[1.0, 2.0]] * 4, "five points"])
def test_landmarks_that_are_no_five_points_are_rejected(photo: np.ndarray, bad) -> None:
    with pytest.raises(BadLandmarksError if not isinstance(bad, str) else ConfigError, match=r"^landmarks "):
        prepare_references([photo], landmarks=bad if isinstance(bad, str) else [bad])
    with pytest.raises(ConfigError, match=r"^landmarks is an empty list"):
        prepare_references([photo], landmarks=[])
    with pytest.raises(ConfigError, match=r"^landmarks: 1 images .* got 2"):
        prepare_references([photo], landmarks=[np.zeros((5, 2)), np.zeros((5, 2))])
    with pytest.raises(ConfigError, match=r"^image is an empty list"):
        prepare_references([])
    with pytest.raises(ConfigError, match=r"^face_policy .*'all'"):
        prepare_references([photo], policy="all")
