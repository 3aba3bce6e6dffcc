"""The shading map: the bare face in grey under the image's light, in image coordinates (Face-MakeUpV2's 3D channel)."""

import cv2
import numpy as np

from faceclip.face3d.camera import Camera, pose_vertices, project
from faceclip.face3d.light import shade
from faceclip.face3d.model import HeadModel, default_head
from faceclip.face3d.rasterizer import interpolate, rasterize, vertex_normals

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
    normals = vertex_normals(posed, model.faces)
    # The whole bust hides parts of the face (an ear, the far cheek behind the nose); only the face is shown.
    triangle, weights, _ = rasterize(points, model.faces, large)
    face = model.face_mask.astype(np.float32)[:, None]
    values = interpolate(np.concatenate([normals, face], 1), model.faces, triangle, weights)
    normal = values[..., :3] / np.maximum(np.linalg.norm(values[..., :3], axis=-1, keepdims=True), 1e-6)
    grey = np.clip(ALBEDO * shade(normal, light), 0, 1) * (values[..., 3:] > 0.5)
    small = cv2.resize(grey.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return np.round(small * 255).astype(np.uint8)
