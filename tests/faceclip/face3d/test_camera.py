"""Projection and pose by hand: one point at a time."""

import numpy as np
import pytest

from faceclip.face3d.camera import CENTER, PIVOT, SPAN, Camera, pose_vertices, project, rotation_matrix

SIN, COS = np.sin(np.deg2rad(30)), np.cos(np.deg2rad(30))


@pytest.mark.parametrize(
    ("angles", "expected"),
    [
        ((30, 0, 0), [[COS, 0, SIN], [0, 1, 0], [-SIN, 0, COS]]),  # the nose (z) moves to image-right (x)
        ((0, 30, 0), [[1, 0, 0], [0, COS, SIN], [0, -SIN, COS]]),  # the nose moves up (y)
        ((0, 0, 30), [[COS, SIN, 0], [-SIN, COS, 0], [0, 0, 1]]),  # the crown (y) moves to image-right
    ],
)
def test_rotations_about_one_axis(angles, expected) -> None:
    np.testing.assert_allclose(rotation_matrix(*angles), expected, atol=1e-6)
    assert rotation_matrix(*angles).dtype == np.float32


def test_rotations_are_yaw_then_pitch_then_roll() -> None:
    # The nose, turned right by 90° first, is not moved by pitch, and roll turns it down.
    np.testing.assert_allclose(rotation_matrix(90, 40, 30) @ [0, 0, 1], [COS, -SIN, 0], atol=1e-6)


def test_projection_by_hand() -> None:
    camera = Camera(scale=1.5, shift_x=0.1, shift_y=-0.2, distance=10.0)
    points = CENTER + np.array([[0, 0, 0], [SPAN / 10, 0, 0], [0, SPAN / 10, 0], [SPAN / 10, SPAN / 10, 5.0]])
    found = project(points, camera, 100)
    # Centre at (.5 + .1) · 100 − .5; a tenth of the span is 15 px at scale 1.5; half the distance away doubles it.
    expected = [[59.5, 29.5, 0], [74.5, 29.5, 0], [59.5, 14.5, 0], [89.5, -0.5, 5.0]]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.dtype == np.float32


def test_places_of_neck_and_view_are_those_of_earlier_releases() -> None:
    """Fits and renders were made with them: a point in decimetres is where it was."""
    point = np.array([[1.0, 8.0, 2.0]], np.float32)
    np.testing.assert_allclose(project(point, Camera(), 315)[0], [265.1081, 61.8649, 1.05], atol=1e-3)
    turned = pose_vertices(point, np.ones(1), (90, 0, 0))
    np.testing.assert_allclose(turned, [[2 - 0.45, 8.0, 0.45 - 1]], atol=1e-6)
    turned = pose_vertices(point, np.ones(1), (0, 0, 90))
    np.testing.assert_allclose(turned, [[8 - 6.55, 6.55 - 1, 2.0]], atol=1e-5)


def test_a_camera_is_four_numbers() -> None:
    camera = Camera(scale=1.25, shift_x=0.5, shift_y=-0.25, distance=12.0)
    assert camera.to_array().tolist() == [1.25, 0.5, -0.25, 12.0] and Camera.from_array(camera.to_array()) == camera
    assert Camera().to_array().tolist() == [1.0, 0.0, 0.0, 14.0]


def test_the_head_turns_about_the_neck_and_the_bust_follows_a_third_of_the_yaw() -> None:
    vertices = (PIVOT + np.array([[0, 0, 2], [0, 0, 2], [0, 0, 2], [0, 0, 0]])).astype(np.float32)
    found = pose_vertices(vertices, np.array([1.0, 0.0, 0.5, 1.0]), (90, 0, 0)) - PIVOT
    bust = np.array([2 * SIN, 0, 2 * COS])  # 30°
    np.testing.assert_allclose(found, [[2, 0, 0], bust, (bust + np.array([2, 0, 0])) / 2, [0, 0, 0]], atol=1e-5)
    up = pose_vertices(vertices, np.array([1.0, 0.0, 0.5, 1.0]), (0, 30, 0)) - PIVOT  # of which the bust takes nothing
    np.testing.assert_allclose(up[:2], [[0, 2 * SIN, 2 * COS], [0, 0, 2]], atol=1e-5)
