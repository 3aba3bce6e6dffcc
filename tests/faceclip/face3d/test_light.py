"""Spherical harmonics against their integrals and definitions."""

import numpy as np
import pytest

from faceclip.face3d.light import ambient_light, directional_light, sh_basis, shade


def sphere(rows: int = 200, columns: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors all around and the area of each."""
    height = (np.arange(rows) + 0.5) / rows * 2 - 1
    angle = (np.arange(columns) + 0.5) / columns * 2 * np.pi
    height, angle = (grid.ravel() for grid in np.meshgrid(height, angle))
    radius = np.sqrt(1 - height**2)
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], 1)
    return normals, np.full(len(normals), 4 * np.pi / len(normals))


def test_the_basis_is_orthonormal() -> None:
    normals, area = sphere()
    basis = sh_basis(normals)
    np.testing.assert_allclose((basis * area[:, None]).T @ basis, np.eye(9), atol=2e-4)


def test_the_order_and_signs_of_the_basis() -> None:
    """1, y, z, x, xy, yz, 3z² − 1, xz, x² − y², each with a positive factor."""
    x, y, z = normal = np.array([0.6, 0.48, 0.64])
    polynomials = [1, y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y]
    factors = sh_basis(normal) / polynomials
    expected = np.sqrt(np.array([1, 3, 3, 3, 15, 15, 5 / 4, 15, 15 / 4]) / (4 * np.pi))
    np.testing.assert_allclose(factors, expected, atol=1e-5)


def test_a_lamp_shades_what_faces_it_like_a_cosine() -> None:
    direction = np.array([2.0, -1.0, 2.0])  # of any length
    light = directional_light(direction, np.array([1.0, 0.5, 0.25]))
    assert light.shape == (9, 3) and light.dtype == np.float32
    normals, _ = sphere(20, 20)
    cosine = normals @ direction / 3
    found = shade(normals, light)
    # Nine harmonics of max(0, c): 1/4 + c/2 + 5/32 (3c² − 1).
    expected = np.maximum(0.25 + cosine / 2 + 5 / 32 * (3 * cosine**2 - 1), 0)
    np.testing.assert_allclose(found, expected[:, None] * [1.0, 0.5, 0.25], atol=1e-4)
    assert found.min() == 0.0 and found.dtype == np.float32


def test_ambient_light_has_no_direction() -> None:
    normals, _ = sphere(10, 10)
    np.testing.assert_allclose(shade(normals, ambient_light([0.2, 0.4, 0.6])), [[0.2, 0.4, 0.6]] * 100, atol=1e-6)
    np.testing.assert_allclose(shade(normals, ambient_light(np.full(3, 2.5)))[0], [2.5] * 3, atol=1e-5)


def test_lights_add() -> None:
    normal = np.array([[0.0, 0.6, 0.8]])
    one, two = ambient_light(np.full(3, 0.25)), directional_light((0, 0.6, 0.8), np.full(3, 0.5))
    assert shade(normal, one + two)[0, 0] == pytest.approx(0.25 + 0.5 * 17 / 16, abs=1e-4)
