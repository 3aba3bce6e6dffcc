"""Angles, cosines and the Fréchet distance worked out by hand."""

import numpy as np
import pytest

from eval.metrics import angle_difference, cosine, frechet_distance


def test_angles_wrap():
    np.testing.assert_allclose(angle_difference(np.array([179.0, 10, -5]), np.array([-179.0, -10, 5])), [2, 20, 10])


def test_cosine_by_hand_and_zero_vectors():
    np.testing.assert_allclose(cosine(np.array([[3.0, 4]]), np.array([[4.0, 3]])), [24 / 25])
    with pytest.raises(ValueError, match="zero vector"):
        cosine(np.zeros((1, 2)), np.ones((1, 2)))


def test_frechet_distance_by_hand():
    # Means (0, 0) and (3, 4); covariances 2 I and diag(8, 2): 25 + (2 + 8 - 2 * 4) + (2 + 2 - 2 * 2) = 27.
    square = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * np.sqrt(1.5)
    other = square * [2, 1] + [3, 4]
    assert frechet_distance(square, other) == pytest.approx(27)
    assert frechet_distance(other, square) == pytest.approx(27)
    assert frechet_distance(square, square[::-1]) == pytest.approx(0, abs=1e-9)
    assert np.isnan(frechet_distance(square[:1], square))


def test_frechet_distance_of_covariances_that_do_not_commute():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(40, 6)) + 1
    one, other = np.cov(first.T), np.cov(second.T)
    cross = np.sqrt(np.linalg.eigvals(one @ other).real).sum()  # tr √(AB) from its definition
    expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(one + other) - 2 * cross
    assert frechet_distance(first, second) == pytest.approx(expected)
