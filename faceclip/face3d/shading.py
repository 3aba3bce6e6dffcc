"""The shading map: the bare face in grey under the image's light, in image coordinates (Face-MakeUpV2's 3D channel)."""

import cv2
import numpy as np

from faceclip.face3d.camera import Camera, pose_vertices, project
from faceclip.face3d.light import shade
from faceclip.face3d.model import HeadModel, default_head
from faceclip.face3d.rasterizer import interpolate, rasterize, unit_normals, vertex_normals

ALBEDO = 180 / 255
_AT_ONCE = 2**14  # pixels that are shaded together, so that all of it stays in a core's cache


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
    normals = vertex_normals(posed, model.faces)
    face = model.face_mask.astype(np.float32)[:, None]
    values = interpolate(np.concatenate([normals, face], 1), model.faces, triangle, weights)
    shown = values[..., 3] > 0.5
    pixels = np.flatnonzero(shown)
    values, grey = values.reshape(-1, 4), np.zeros((height * width, 3), np.float32)
    for start in range(0, len(pixels), _AT_ONCE):
        part = pixels[start : start + _AT_ONCE]
        normal = unit_normals(values, pixels, start, start + len(part))
        grey[part] = np.clip(ALBEDO * shade(normal, light), 0, 1)
    grey = grey.reshape(height, width, 3)
    small = cv2.resize(grey, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    result[top:bottom, left:right] = np.round(small * 255).astype(np.uint8)
    return result


def _face_window(points: np.ndarray, model: HeadModel, size: int, supersample: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the part of a map of `size` px in which the face can lie, by points (V, 3) in px
    of the larger map."""
    partly = model.face_mask[model.faces].any(axis=1)
    places = points[model.faces[partly].ravel(), :2] / supersample
    if not np.isfinite(places).all():
        return 0, 0, size, size
    first = np.clip(np.floor(places.min(axis=0)) - 1, 0, size).astype(int)
    last = np.clip(np.ceil(places.max(axis=0)) + 2, 0, size).astype(int)
    return int(first[0]), int(first[1]), int(last[0]), int(last[1])
