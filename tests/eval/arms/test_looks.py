"""Light and agreement against values known beforehand."""

import numpy as np
import pytest

from eval.arms.looks import agreement, facing_normals, fitted_light, light_error
from faceclip import weights
from faceclip.data.arrays import load_arrays
from faceclip.face3d.fitter import FaceFitter
from faceclip.face3d.light import ambient_light, directional_light

LEFT, RIGHT = (ambient_light((0.5, 0.5, 0.5)) + directional_light((x, 0.2, 0.8), (0.5, 0.5, 0.5)) for x in (-1.0, 1.0))


def test_normals_face_the_viewer_evenly():
    normals = facing_normals(500)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    assert normals[:, 2].min() > 0
    np.testing.assert_allclose(normals.mean(axis=0), [0, 0, 0.5], atol=0.01)  # of a half sphere


def test_brightness_alone_is_no_error_and_the_side_of_the_lamp_is():
    errors = light_error(np.stack([LEFT, 1.7 * LEFT, LEFT, RIGHT]), np.stack([LEFT, LEFT, RIGHT, LEFT]))
    assert errors[:2] == pytest.approx(0, abs=1e-6)
    assert errors[2] == pytest.approx(errors[3], rel=0.02) and errors[2] > 0.3


def test_a_colour_of_the_light_is_an_error_by_hand():
    white, red = (ambient_light(color) for color in ((0.6, 0.6, 0.6), (0.9, 0.45, 0.45)))
    # Mean 1: (1, 1, 1) against (1.5, .75, .75).
    expected = np.sqrt((0.5**2 + 2 * 0.25**2) / 3)
    assert light_error(red.reshape(1, 27), white.reshape(1, 27))[0] == pytest.approx(expected, rel=1e-5)


def test_the_fitter_sees_the_light_of_its_own_picture_better_than_that_of_another(tiny_dataset):
    fitter = FaceFitter.from_pretrained(weights.path("tiny/fitter")).eval()
    arrays = load_arrays(tiny_dataset, "test")
    found = fitted_light(fitter, np.asarray(arrays.images), np.asarray(arrays.landmarks_5), batch=3)
    own, other = (light_error(found, light) for light in (arrays.light, np.roll(arrays.light, 1, axis=0)))
    assert found.shape == (len(arrays), 27) and own.mean() < 0.7 * other.mean()


def test_points_agree_within_a_share_of_the_face():
    points = np.zeros((4, 5, 2))
    moved = points + np.array([[3.0, 4.0]])  # 5 px
    moved[3] = np.nan
    np.testing.assert_array_equal(agreement(points, moved, np.array([101, 99, 1e9, 100])), [1, 0, 1, 0])
    np.testing.assert_array_equal(agreement(points, moved, np.array([60] * 4), near=0.1), [1, 1, 1, 0])
