"""Head model, pose signs, light and shading map."""

import numpy as np
import pytest

from faceclip.errors import CheckpointError
from faceclip.face3d.camera import Camera, pose_vertices, project, rotation_matrix
from faceclip.face3d.light import ambient_light, directional_light, sh_basis, shade
from faceclip.face3d.model import HeadModel, default_head
from faceclip.face3d.shading import ALBEDO, shading_map

NOSE = 2  # of the five points


def five(pose=(0.0, 0.0, 0.0), camera=None, size=128, shape=None):
    head = default_head()
    posed = pose_vertices(head.vertices(shape), head.head_weight, pose)
    return head.landmarks_5(project(posed, camera or Camera(), size))[:, :2]


def test_shipped_bases():
    head = default_head()
    assert head.shape_size == 48
    assert head.expression_size == 21
    assert head.template.shape == (5001, 3)
    assert head.faces.max() < len(head.template)
    assert len(head.landmarks_68) == 68


def test_frontal_landmarks_are_where_a_face_has_them():
    eye_left, eye_right, nose, mouth_left, mouth_right = five()
    assert eye_left[0] < nose[0] < eye_right[0]
    assert mouth_left[0] < nose[0] < mouth_right[0]
    assert eye_left[1] < nose[1] < mouth_left[1]
    assert 0.16 < (eye_right[0] - eye_left[0]) / 128 < 0.24
    assert eye_left[1] == pytest.approx(eye_right[1], abs=0.3)


@pytest.mark.parametrize("angle", [15.0, 40.0])
def test_signs_of_the_angles(angle):
    frontal = five()
    assert five((angle, 0, 0))[NOSE, 0] > frontal[NOSE, 0] + 2  # yaw turns to image-right
    assert five((0, angle, 0))[NOSE, 1] < frontal[NOSE, 1] - 2  # pitch looks up
    rolled = five((0, 0, angle))
    assert rolled[1, 1] > rolled[0, 1] + 2  # clockwise: the image-right eye sinks


def test_rotation_composes_as_documented():
    yaw, pitch, roll = rotation_matrix(30, 0, 0), rotation_matrix(0, 20, 0), rotation_matrix(0, 0, 10)
    np.testing.assert_allclose(rotation_matrix(30, 20, 10), roll @ pitch @ yaw, atol=1e-6)
    np.testing.assert_allclose(yaw @ yaw.T, np.eye(3), atol=1e-6)


def test_camera_scales_and_shifts_in_image_units():
    plain, moved = five(), five(camera=Camera(shift_x=0.1, shift_y=-0.05))
    np.testing.assert_allclose(moved - plain, np.tile([12.8, -6.4], (5, 1)), atol=1e-3)
    double = five(size=256)
    np.testing.assert_allclose((double + 0.5) / 2 - 0.5, plain, atol=1e-3)


def test_identity_moves_the_face_and_wrong_length_is_refused():
    head = default_head()
    shape = np.zeros(48)
    shape[0] = 2.0
    assert np.abs(head.vertices(shape) - head.vertices()).max() > 0.02
    with pytest.raises(ValueError, match=r"^shape .*\(48,\).*\(5,\)"):
        head.vertices(np.zeros(5))


def test_unreadable_bases_name_the_remedy(tmp_path):
    broken = tmp_path / "head.safetensors"
    broken.write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"head\.safetensors.*faceclip\.face3d\.extract"):
        HeadModel(broken)


def test_harmonics_by_hand():
    # Y10 at the pole is sqrt(3 / 4π), Y20 is sqrt(5 / 16π)(3z² − 1), Y22 vanishes.
    basis = sh_basis(np.array([0.0, 0.0, 1.0]))
    assert basis[0] == pytest.approx(np.sqrt(1 / (4 * np.pi)), abs=1e-5)
    assert basis[2] == pytest.approx(np.sqrt(3 / (4 * np.pi)), abs=1e-5)
    assert basis[6] == pytest.approx(2 * np.sqrt(5 / (16 * np.pi)), abs=1e-5)
    np.testing.assert_allclose(basis[[1, 3, 4, 5, 7, 8]], 0, atol=1e-7)


def test_lights_shade_as_they_say():
    normals = np.array([[0, 0, 1.0], [1, 0, 0], [0, 0, -1]])
    colors = np.array([0.2, 0.4, 0.6])
    np.testing.assert_allclose(shade(normals, ambient_light(colors)), [colors] * 3, atol=1e-5)
    lit = shade(normals, directional_light(np.array([0, 0, 1.0]), np.ones(3)))[:, 0]
    # Nine harmonics of max(0, cos): 1/4 + 1/2 + 5/16 facing, 1/4 − 5/32 sideways, 1/4 − 1/2 + 5/16 behind.
    np.testing.assert_allclose(lit, [17 / 16, 3 / 32, 1 / 16], atol=2e-3)


def test_shading_map_is_grey_face_on_black():
    level = 0.8
    neutral = np.zeros(21)
    found = shading_map(np.zeros(48), neutral, (0, 0, 0), Camera(), ambient_light(np.full(3, level)), 96)
    assert found.shape == (96, 96, 3)
    face = found[..., 0] > 0
    assert 0.05 < face.mean() < 0.35
    assert not found[:8].any()
    assert not found[-8:].any()  # black background, no shoulders
    assert found[48, 48, 0] == pytest.approx(255 * ALBEDO * level, abs=2)
    turned = shading_map(np.zeros(48), neutral, (40, 0, 0), Camera(), ambient_light(np.full(3, level)), 96)
    assert np.argwhere(turned[..., 0] > 0)[:, 1].mean() > np.argwhere(face)[:, 1].mean()
