"""Pose, light and landmark errors worked out by hand."""

import numpy as np
import pytest

from eval.metrics.distances import angle_difference
from eval.metrics.physics import expression_changed, landmark_difference, light_errors


def test_angles_differ_across_the_wrap():
    errors = angle_difference(np.array([[179.0, 3, 0], [10, -4, 0]]), np.array([[-179.0, 0, 0], [10, 0, 0]]))
    np.testing.assert_allclose(errors, [[2, 3, 0], [0, 4, 0]])


def test_a_brighter_light_is_no_error_without_gain():
    light = np.arange(27, dtype=float)[None]
    assert light_errors(light * 3, light)[0] == pytest.approx(2 * np.sqrt(np.square(light).mean()))
    assert light_errors(light * 3, light, gain_free=True)[0] == pytest.approx(0, abs=1e-12)
    other = light + np.r_[1, np.zeros(26)]
    assert light_errors(other, light)[0] == pytest.approx(1 / np.sqrt(27))
    assert 0 < light_errors(other, light, gain_free=True)[0] <= 1 / np.sqrt(27)
    assert light_errors(np.zeros((1, 9, 3)), light, gain_free=True)[0] == pytest.approx(
        np.sqrt(np.square(light).mean())
    )


def test_landmarks_are_compared_without_place_and_scale():
    points = np.array([[[0.0, 0], [4, 0], [2, 2], [0, 3], [4, 3]]])  # a box of diagonal 5
    assert landmark_difference(points * 7 + 100, points)[0] == pytest.approx(0, abs=1e-12)
    moved = points.copy()
    moved[0, 2] += [1, 0]
    # The nose moves 4/5 px after centering, the other four points 1/5 px; the box stays.
    assert landmark_difference(moved, points)[0] == pytest.approx((0.8 + 4 * 0.2) / 5 / 5)


def test_expressions_differ_by_name():
    assert expression_changed(["smile", "neutral"], ["smile", "anger"]).tolist() == [0, 1]
