"""Angles, cosines, Fréchet and kernel distances worked out by hand."""

import numpy as np
import pytest

from eval.metrics.distances import (
    angle_difference,
    cosine,
    frechet_distance,
    gaussian_mmd,
    kernel_inception_distance,
    polynomial_mmd,
)


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


def test_two_rows_have_a_covariance_and_one_has_none():
    assert frechet_distance(np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]])) == pytest.approx(1)
    assert np.isnan(frechet_distance(np.zeros((1, 1)), np.zeros((3, 1))))


def test_frechet_distance_of_covariances_that_do_not_commute():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(40, 6)) + 1
    one, other = np.cov(first.T), np.cov(second.T)
    cross = np.sqrt(np.linalg.eigvals(one @ other).real).sum()  # tr √(AB) from its definition
    expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(one + other) - 2 * cross
    assert frechet_distance(first, second) == pytest.approx(expected)


def test_kernel_distance_by_hand():
    # Kernel (x·y / 1 + 1)³ of 0, 1 against 1, 2: within 1 · 1 and 27 · 1; across 1, 1, 8, 27 over four pairs.
    first, second = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert polynomial_mmd(first, second) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)
    assert np.isnan(polynomial_mmd(first[:1], second))


def test_kernel_distance_over_subsets_is_that_of_whole_sets_where_they_are_small():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(40, 5)), rng.normal(size=(30, 5)) + 0.5
    whole = kernel_inception_distance(first[:30], second)
    assert (whole.size, whole.deviation) == (30, 0.0)
    assert whole.mean == pytest.approx(polynomial_mmd(first[:30], second))
    parts = kernel_inception_distance(first, second, subsets=200, size=20)
    assert parts.size == 20 and parts.deviation > 0
    assert parts.mean == pytest.approx(polynomial_mmd(first, second), abs=3 * parts.deviation / 200**0.5 + 0.02)


def test_gaussian_distance_by_hand():
    # Unit vectors at a right angle lie √2 apart: 1 + 1 − 2 exp(−2 / 2σ²), times the scale.
    first, second = np.array([[2.0, 0.0]]), np.array([[0.0, 5.0]])
    assert gaussian_mmd(first, second) == pytest.approx(1000 * (2 - 2 * np.exp(-0.01)))
    assert gaussian_mmd(first, first) == pytest.approx(0, abs=1e-9)
    # Both of these vectors against the first: (2 + 2e) / 4 + 1 − 2 (1 + e) / 2 with e = exp(−2 / 2σ²).
    both = np.concatenate([first, second])
    assert gaussian_mmd(both, first) == pytest.approx(1000 * (1 - np.exp(-0.01)) / 2)
    assert np.isnan(gaussian_mmd(first[:0], second))


@pytest.mark.parametrize("rows", [1, 3, 1024])
def test_kernel_distances_of_any_features_are_those_of_their_definitions(monkeypatch, rows):
    monkeypatch.setattr("eval.metrics.distances.ROWS", rows)
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)) * 2

    def kernels(kernel, *pairs):
        return [np.array([[kernel(x, y) for y in other] for x in one]) for one, other in pairs]

    pairs = ((first, first), (second, second), (first, second))
    one, other, across = kernels(lambda x, y: (x @ y / 3 + 1) ** 3, *pairs)
    within = (one.sum() - np.trace(one)) / 20 + (other.sum() - np.trace(other)) / 12
    assert polynomial_mmd(first, second) == pytest.approx(within - 2 * across.mean())
    units = [[x / np.linalg.norm(x, axis=1, keepdims=True) for x in pair] for pair in pairs]
    for options, width in (({}, 10.0), ({"sigma": 0.7}, 0.7)):
        one, other, across = kernels(lambda x, y, width=width: np.exp(-np.square(x - y).sum() / (2 * width**2)), *units)
        expected = one.mean() + other.mean() - 2 * across.mean()
        assert gaussian_mmd(first, second, **options) == pytest.approx(1000 * expected)
        assert gaussian_mmd(first, second, **options, scale=2.0) == pytest.approx(2 * expected)


def test_subsets_are_drawn_from_the_larger_set_and_as_often_as_is_usual():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(40, 2)), rng.normal(size=(30, 2))
    for pair in ((first, second), (second, first)):
        found = kernel_inception_distance(*pair, subsets=3)
        assert found.size == 30 and found.deviation > 0
    assert kernel_inception_distance(first, second, size=2) == kernel_inception_distance(
        first, second, size=2, subsets=100, seed=0
    )
    large = rng.normal(size=(1001, 1))
    assert kernel_inception_distance(large, large, subsets=1).size == 1000


def test_cosines_of_no_rows_and_of_one_zero_row():
    assert cosine(np.zeros((0, 2)), np.zeros((0, 2))).shape == (0,)
    for zero in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="zero vector"):
            cosine(*(np.array([[1.0, 2.0], [1.0, 1.0]]) * [[1], [factor]] for factor in zero))
    np.testing.assert_allclose(cosine(np.array([[0.1, 0]]), np.array([[0.2, 0]])), [1])
