"""The shading map: the bare face in grey under the image's light, in image coordinates (Face-MakeUpV2's 3D channel)."""

import numpy as np

from faceclip.face3d.camera import Camera, pose_vertices, project
from faceclip.face3d.light import shade_pixels
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
    shade_pixels(triangle, weights, model.faces, values, channels, ALBEDO, supersample, found)
    result[top:bottom, left:right] = found
    return result


def _face_window(points: np.ndarray, model: HeadModel, size: int, supersample: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the part of a map of `size` px in which the face can lie, by points (V, 3) in px
    of the larger map."""
    places = points[model.near_face, :2] / supersample
    if not np.isfinite(places).all():
        return 0, 0, size, size
    first = np.clip(np.floor(places.min(axis=0)) - 1, 0, size).astype(int)
    last = np.clip(np.ceil(places.max(axis=0)) + 2, 0, size).astype(int)
    return int(first[0]), int(first[1]), int(last[0]), int(last[1])
