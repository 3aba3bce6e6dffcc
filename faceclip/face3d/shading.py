"""The shading map: the bare face in grey under the image's light, in image coordinates (Face-MakeUpV2's 3D channel)."""

import numba
import numpy as np

from faceclip.face3d.camera import Camera, pose_vertices, project
from faceclip.face3d.light import sh_terms
from faceclip.face3d.model import HeadModel, default_head
from faceclip.face3d.rasterizer import rasterize, vertex_normals

ALBEDO = 180 / 255


def shading_map(
    shape: np.ndarray,
    expression: np.ndarray,
    pose: tuple[float, float, float],
    camera: Camera,
    light: np.ndarray,
    size: int,
    *,
    model: HeadModel | None = None,
    supersample: int = 2,
) -> np.ndarray:
    """Renders the face of these parameters with constant grey albedo 180/255; hair and accessories are left out.

    Args:
        shape: (K,) identity coefficients. expression: (E,) controls. pose: (yaw, pitch, roll) in degrees.
        light: (9, 3) spherical-harmonics coefficients. size: pixels of the square map.

    Returns:
        (size, size, 3) uint8 RGB, black outside the face.
    """
    model = model or default_head()
    return shade_face(
        model,
        pose_vertices(model.vertices(shape, expression), model.head_weight, pose),
        camera,
        light,
        size,
        supersample,
    )


def shade_face(
    model: HeadModel, posed: np.ndarray, camera: Camera, light: np.ndarray, size: int, supersample: int = 2
) -> np.ndarray:
    """`shading_map` of already posed vertices (V, 3)."""
    large = size * supersample
    points = project(posed, camera, large)
    result = np.zeros((size, size, 3), np.uint8)
    left, top, right, bottom = _face_window(points, model, size, supersample)
    if left >= right or top >= bottom:
        return result
    # The whole bust hides parts of the face (an ear, the far cheek behind the nose); only the face is shown.
    corner = (left * supersample, top * supersample)
    height, width = (bottom - top) * supersample, (right - left) * supersample
    triangle, weights, _ = rasterize(points, model.faces, height, width, corner=corner)
    values = np.column_stack([vertex_normals(posed, model.faces), model.face_mask]).astype(np.float32)
    channels = np.asarray(light, np.float32)
    grey = bool((channels[:, :1] == channels).all())
    channels = np.ascontiguousarray(channels[:, :1] if grey else channels)
    found = np.zeros((bottom - top, right - left, channels.shape[1]), np.uint8)
    _shade_pixels(triangle, weights, model.faces, values, channels, supersample, found)
    result[top:bottom, left:right] = found
    return result


@numba.njit(cache=True, nogil=True)
def _shade_pixels(triangle, weights, faces, values, light, times, out):  # pragma: no cover - compiled
    """Fills `out` (H, W, C) with the mean levels, 0 to 255, of `times`² finer pixels each.

    values: (V, 4) the vertices' normals, and 1 on the face. light: (9, C).
    """
    one, half, least = np.float32(1), np.float32(0.5), np.float32(1e-6)
    albedo, share = np.float32(ALBEDO), np.float32(1 / times**2)
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


def _face_window(points: np.ndarray, model: HeadModel, size: int, supersample: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the part of a map of `size` px in which the face can lie, by points (V, 3) in px
    of the larger map."""
    places = points[model.near_face, :2] / supersample
    if not np.isfinite(places).all():
        return 0, 0, size, size
    first = np.clip(np.floor(places.min(axis=0)) - 1, 0, size).astype(int)
    last = np.clip(np.ceil(places.max(axis=0)) + 2, 0, size).astype(int)
    return int(first[0]), int(first[1]), int(last[0]), int(last[1])
