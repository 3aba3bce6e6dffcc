"""Second-order spherical-harmonics light (Ramamoorthi & Hanrahan 2001, eq. 3): nine coefficients per colour channel.

The Lambertian kernel is folded into the coefficients: shading(n) = Σ_k light_k · Y_k(n), 1 is full albedo. Normals
are in camera axes (x right, y up, z to the viewer), so light does not turn with the head.
"""

import numba
import numpy as np

# Real spherical harmonics Y00, Y1-1, Y10, Y11, Y2-2, Y2-1, Y20, Y21, Y22.
_C0, _C1, _C2, _C3, _C4 = 0.282095, 0.488603, 1.092548, 0.315392, 0.546274
# Clamped-cosine kernel A_l / π (Ramamoorthi & Hanrahan 2001, eq. 8).
_KERNEL = np.asarray([1.0, *[2 / 3] * 3, *[1 / 4] * 5])


def sh_basis(normals: np.ndarray) -> np.ndarray:
    """Basis values (…, 9) of unit normals (…, 3)."""
    x, y, z = normals[..., 0], normals[..., 1], normals[..., 2]
    return np.stack(
        [
            np.full_like(x, _C0),
            _C1 * y,
            _C1 * z,
            _C1 * x,
            _C2 * x * y,
            _C2 * y * z,
            _C3 * (3 * z * z - 1),
            _C2 * x * z,
            _C4 * (x * x - y * y),
        ],
        -1,
    )


@numba.njit(inline="always")
def sh_terms(x, y, z):  # pragma: no cover - compiled
    """The nine values of `sh_basis` of one unit normal of float32, for compiled loops."""
    c0, c1, c2, c3, c4 = np.float32(_C0), np.float32(_C1), np.float32(_C2), np.float32(_C3), np.float32(_C4)
    return (
        c0,
        c1 * y,
        c1 * z,
        c1 * x,
        c2 * x * y,
        c2 * y * z,
        c3 * (np.float32(3) * z * z - np.float32(1)),
        c2 * x * z,
        c4 * (x * x - y * y),
    )


@numba.njit(cache=True, nogil=True)
def shade_pixels(triangle, weights, faces, values, light, grey, times, out):  # pragma: no cover - compiled
    """Fills `out` (H, W, C) with the mean levels, 0 to 255, of `times`² finer pixels each.

    values: (V, 4) the vertices' normals, and 1 on the face. light: (9, C). grey: the albedo.
    It stands beside `sh_terms`, since a compiled loop is only compiled again when its own file changes.
    """
    one, half, least = np.float32(1), np.float32(0.5), np.float32(1e-6)
    albedo, share = np.float32(grey), np.float32(1 / times**2)
    sums = np.zeros(light.shape[1], np.float32)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            sums[:] = 0
            for row in range(y * times, (y + 1) * times):
                for column in range(x * times, (x + 1) * times):
                    f = triangle[row, column]
                    if f < 0:
                        continue
                    a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
                    u, v, w = weights[row, column, 0], weights[row, column, 1], weights[row, column, 2]
                    if u * values[a, 3] + v * values[b, 3] + w * values[c, 3] <= half:
                        continue
                    nx = u * values[a, 0] + v * values[b, 0] + w * values[c, 0]
                    ny = u * values[a, 1] + v * values[b, 1] + w * values[c, 1]
                    nz = u * values[a, 2] + v * values[b, 2] + w * values[c, 2]
                    length = max(np.sqrt(nx * nx + ny * ny + nz * nz), least)
                    basis = sh_terms(nx / length, ny / length, nz / length)
                    for channel in range(light.shape[1]):
                        level = np.float32(0)
                        for k in range(9):
                            level += basis[k] * light[k, channel]
                        sums[channel] += min(albedo * max(level, np.float32(0)), one)
            for channel in range(light.shape[1]):
                out[y, x, channel] = np.uint8(np.rint(sums[channel] * share * np.float32(255)))


def shade(normals: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Shading (…, 3) ≥ 0 of unit normals (…, 3) under `light` (9, 3)."""
    return np.maximum(sh_basis(normals) @ np.asarray(light, np.float32), 0).astype(np.float32)


def ambient_light(color: np.ndarray) -> np.ndarray:
    """(9, 3) coefficients of uniform light that shades everything with `color` (3,)."""
    light = np.zeros((9, 3), np.float32)
    light[0] = np.asarray(color) / _C0
    return light


def directional_light(direction: np.ndarray, color: np.ndarray) -> np.ndarray:
    """(9, 3) coefficients of a distant light from `direction` (3,), which shades a facing surface with about `color`.

    The clamped cosine is projected on the first nine harmonics: Σ_k A_k Y_k(ω) Y_k(n) ≈ max(0, n·ω).
    """
    direction = np.asarray(direction, np.float64)
    weights = np.pi * _KERNEL * sh_basis(direction / np.linalg.norm(direction))
    return (weights[:, None] * np.asarray(color)[None]).astype(np.float32)
