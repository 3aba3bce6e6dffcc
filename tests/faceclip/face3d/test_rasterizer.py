"""Rasterization against a hand-drawn triangle, and against a plain search of all triangles."""

import numpy as np
import pytest

from faceclip.face3d.rasterizer import interpolate, rasterize, vertex_normals


def test_triangle_by_hand():
    points = np.array([[0, 0, 1.0], [3, 0, 1.0], [0, 3, 4.0]])
    triangle, weights, depth = rasterize(points, np.array([[0, 1, 2]]), 4)
    # Pixel centres with x + y <= 3 are inside, edges included.
    inside = np.add.outer(np.arange(4), np.arange(4)) <= 3
    np.testing.assert_array_equal(triangle, np.where(inside, 0, -1))
    np.testing.assert_allclose(weights[1, 1], [1 / 3, 1 / 3, 1 / 3], atol=1e-6)
    assert depth[3, 0] == pytest.approx(4.0)
    assert depth[1, 1] == pytest.approx(2.0)
    assert np.isneginf(depth[3, 3])


def test_nearer_triangle_wins_in_any_order():
    points = np.array([[-1, -1, 0.0], [9, -1, 0.0], [-1, 9, 0.0], [-1, -1, 1.0], [9, -1, 1.0], [-1, 9, 1.0]])
    for faces, winner in (([[0, 1, 2], [3, 4, 5]], 1), ([[3, 4, 5], [0, 1, 2]], 0)):
        assert (rasterize(points, np.array(faces), 3)[0] == winner).all()


def every_triangle_at_every_pixel(points: np.ndarray, faces: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest triangle and depth of each pixel in float64, without bounding boxes."""
    y, x = np.mgrid[:size, :size].astype(float)
    triangle, depth = np.full((size, size), -1), np.full((size, size), -np.inf)
    for number, (a, b, c) in enumerate(points[faces].astype(float)):
        matrix = np.stack([[a[0], b[0], c[0]], [a[1], b[1], c[1]], [1, 1, 1]])
        if np.linalg.matrix_rank(matrix) < 3:
            continue
        weights = np.linalg.solve(matrix, np.stack([x, y, np.ones_like(x)]).reshape(3, -1)).reshape(3, size, size)
        z = np.where((weights >= 0).all(0), np.tensordot([a[2], b[2], c[2]], weights, 1), -np.inf)
        nearer = z > depth
        triangle[nearer], depth[nearer] = number, z[nearer]
    return triangle, depth


def test_a_soup_of_triangles():
    rng = np.random.default_rng(0)
    points = rng.uniform(-5, 37, (300, 3)).astype(np.float32)
    faces = rng.integers(0, 300, (400, 3))
    triangle, _, depth = rasterize(points, faces, 32)
    expected = every_triangle_at_every_pixel(points, faces, 32)
    same = triangle == expected[0]
    assert same.mean() > 0.999  # rounding decides single pixels on shared edges
    np.testing.assert_allclose(depth[same], expected[1][same], rtol=1e-4, atol=1e-3)


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


def test_a_triangle_in_general_position_by_hand():
    """Corners (1, 1), (7, 2), (2, 6) at depths 1, 2, 5; the weights solve two linear equations at every pixel."""
    corners = np.array([[1, 1, 1.0], [7, 2, 2.0], [2, 6, 5.0]])
    for faces in ([[0, 1, 2]], [[2, 1, 0]]):  # both windings are drawn
        triangle, weights, depth = rasterize(corners, np.array(faces), 7, 9)
        assert triangle.shape == (7, 9) and triangle.dtype == np.int32 and weights.dtype == np.float32
        for y in range(7):
            for x in range(9):
                system = np.vstack([corners[faces[0], :2].T, np.ones(3)])
                expected = np.linalg.solve(system, [x, y, 1.0])
                if expected.min() < -1e-6:
                    assert triangle[y, x] == -1 and not weights[y, x].any() and np.isneginf(depth[y, x])
                elif expected.min() > 1e-6:
                    assert triangle[y, x] == 0
                    np.testing.assert_allclose(weights[y, x], expected, atol=1e-5)
                    assert depth[y, x] == pytest.approx(expected @ corners[faces[0], 2], abs=1e-5)


def test_pixels_on_edges_and_corners_belong_to_the_triangle():
    triangle, weights, _ = rasterize(np.array([[1, 1, 0.0], [3, 1, 0.0], [1, 3, 0.0]]), np.array([[0, 1, 2]]), 5)
    assert [tuple(place) for place in np.argwhere(triangle == 0)] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1)]
    np.testing.assert_allclose(weights[1, 3], [0, 1, 0], atol=1e-6)


def test_triangles_are_cut_by_the_borders():
    points = np.array([[-4, -4, 0.0], [12, -4, 0.0], [-4, 12, 0.0]])
    triangle, _, _ = rasterize(points, np.array([[0, 1, 2]]), 3, 5)
    assert (triangle == 0).tolist() == [[x + y <= 8 for x in range(5)] for y in range(3)]
    beside = rasterize(points + np.array([0, 20, 0]), np.array([[0, 1, 2]]), 3, 5)[0]
    assert (beside == -1).all()


def test_of_equally_near_triangles_the_first_is_drawn():
    points = np.array([[0, 0, 1.0], [4, 0, 1.0], [0, 4, 1.0], [4, 4, 1.0], [2, 2, np.nan]])
    faces = np.array([[0, 1, 4], [0, 1, 2], [0, 1, 2], [1, 2, 3]])
    triangle = rasterize(points, faces, 5)[0]
    assert triangle[1, 1] == 1 and triangle[2, 2] == 1 and triangle[4, 4] == 3  # the one with NaN draws nothing


def test_interpolation_weighs_each_corner_and_channel():
    faces, values = np.array([[2, 0, 1]]), np.array([[1.0, 10], [2, 20], [4, 40]])
    triangle, weights = np.array([[0, -1]]), np.array([[[0.5, 0.3, 0.2], [1, 1, 1]]])
    found = interpolate(values, faces, triangle, weights)
    np.testing.assert_allclose(found[0], [[0.5 * 4 + 0.3 * 1 + 0.2 * 2, 0.5 * 40 + 0.3 * 10 + 0.2 * 20], [0, 0]])
    assert found.dtype == np.float32


def test_normals_are_weighed_by_area():
    """A fold along the y axis: one wing of twice the area looks to z, the other to x; the seam leans to z."""
    vertices = np.array([[0, 0, 0.0], [0, 1, 0], [-2, 0, 0], [0, 0, -1.0], [5, 5, 5]])
    found = vertex_normals(vertices, np.array([[0, 1, 2], [0, 3, 1]]))
    seam = np.array([1, 0, 2]) / np.sqrt(5)
    np.testing.assert_allclose(found, [seam, seam, [0, 0, 1], [1, 0, 0], [0, 0, 0]], atol=1e-6)
    tilted = vertex_normals(np.array([[1, 2, 3.0], [4, 3, 3], [2, 5, 7]]), np.array([[0, 1, 2]]))[0]
    normal = np.cross([3, 1, 0], [1, 3, 4])
    np.testing.assert_allclose(tilted, normal / np.linalg.norm(normal), atol=1e-6)
