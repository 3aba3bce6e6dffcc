"""Rasterization against a hand-drawn triangle, and both implementations against each other."""

import numpy as np
import pytest

from faceclip.face3d.rasterizer import interpolate, rasterize, rasterize_numpy, vertex_normals

BOTH = pytest.mark.parametrize("draw", [rasterize, rasterize_numpy])


@BOTH
def test_triangle_by_hand(draw):
    points = np.array([[0, 0, 1.0], [3, 0, 1.0], [0, 3, 4.0]])
    triangle, weights, depth = draw(points, np.array([[0, 1, 2]]), 4)
    # Pixel centres with x + y <= 3 are inside, edges included.
    inside = np.add.outer(np.arange(4), np.arange(4)) <= 3
    np.testing.assert_array_equal(triangle, np.where(inside, 0, -1))
    np.testing.assert_allclose(weights[1, 1], [1 / 3, 1 / 3, 1 / 3], atol=1e-6)
    assert depth[3, 0] == pytest.approx(4.0)
    assert depth[1, 1] == pytest.approx(2.0)
    assert np.isneginf(depth[3, 3])


@BOTH
def test_nearer_triangle_wins_in_any_order(draw):
    points = np.array([[-1, -1, 0.0], [9, -1, 0.0], [-1, 9, 0.0], [-1, -1, 1.0], [9, -1, 1.0], [-1, 9, 1.0]])
    for faces, winner in (([[0, 1, 2], [3, 4, 5]], 1), ([[3, 4, 5], [0, 1, 2]], 0)):
        assert (draw(points, np.array(faces), 3)[0] == winner).all()


def test_implementations_agree_on_a_soup():
    rng = np.random.default_rng(0)
    points = rng.uniform(-5, 37, (300, 3)).astype(np.float32)
    faces = rng.integers(0, 300, (400, 3))
    compiled, vectorized = rasterize(points, faces, 32), rasterize_numpy(points, faces, 32, block=64)
    same = compiled[0] == vectorized[0]
    assert same.mean() > 0.999  # rounding decides single pixels on shared edges
    np.testing.assert_allclose(compiled[2][same], vectorized[2][same], rtol=1e-4, atol=1e-3)


def test_degenerate_and_outside_triangles_draw_nothing():
    points = np.array([[0, 0, 0.0], [2, 2, 0.0], [1, 1, 0.0], [50, 50, 0.0], [60, 50, 0.0], [50, 60, 0.0]])
    assert (rasterize(points, np.array([[0, 1, 2], [3, 4, 5]]), 8)[0] == -1).all()


def test_interpolation_is_linear():
    points = np.array([[0, 0, 0.0], [4, 0, 0.0], [0, 4, 0.0]])
    faces = np.array([[0, 1, 2]])
    triangle, weights, _ = rasterize(points, faces, 5)
    values = interpolate(points[:, :2], faces, triangle, weights)
    assert values[1, 2] == pytest.approx([2, 1])


def test_normals_of_a_corner():
    vertices = np.array([[0, 0, 0.0], [1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(vertex_normals(vertices, np.array([[0, 1, 2]])), [[0, 0, 1]] * 3)
