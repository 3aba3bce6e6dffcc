"""Pose and camera. Angles in degrees: yaw > 0 turns the head to image-right, pitch > 0 looks up, roll > 0 tilts the
head clockwise in the image. R = Rz(roll) · Rx(pitch) · Ry(yaw), applied about the top of the neck."""

from dataclasses import dataclass

import numpy as np

PIVOT = np.array([0.0, 6.55, 0.45], np.float32)  # atlas of the mean head, decimetres
CENTER = np.array([0.0, 7.12, 0.95], np.float32)  # the point that the camera looks at
SPAN = 3.15  # decimetres across the image at scale 1: head and shoulders, eyes about 0.19 of the image apart
DISTANCE = 14.0  # decimetres from camera to head


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Pinhole camera: `scale` multiplies the image of the head, `shift_x`, `shift_y` are fractions of the image."""

    scale: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    distance: float = DISTANCE

    def to_array(self) -> np.ndarray:
        return np.asarray([self.scale, self.shift_x, self.shift_y, self.distance], np.float32)

    @classmethod
    def from_array(cls, values: np.ndarray) -> "Camera":
        scale, shift_x, shift_y, distance = (float(v) for v in values)
        return cls(scale=scale, shift_x=shift_x, shift_y=shift_y, distance=distance)


def rotation_matrix(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(3, 3) float32 rotation of the head, angles in degrees, signs as in this module's docstring."""
    y, p, r = np.deg2rad([yaw, -pitch, -roll])
    ry = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    rx = [[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]]
    rz = [[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]]
    return (np.asarray(rz) @ np.asarray(rx) @ np.asarray(ry)).astype(np.float32)


def pose_vertices(vertices: np.ndarray, head_weight: np.ndarray, pose: tuple[float, float, float]) -> np.ndarray:
    """Turns the head (V, 3) by `pose` = (yaw, pitch, roll); vertices of lower `head_weight` (V,) follow less.

    The bust follows a third of the yaw, so that the neck need not twist by 60°.
    """
    yaw, pitch, roll = pose
    centred = vertices - PIVOT
    head = centred @ rotation_matrix(yaw, pitch, roll).T
    bust = centred @ rotation_matrix(yaw / 3, 0, 0).T
    weight = head_weight[:, None]
    return weight * head + (1 - weight) * bust + PIVOT


def project(points: np.ndarray, camera: Camera, size: int) -> np.ndarray:
    """Pixels (V, 3) of posed points (V, 3): x right, y down, pixel centres at integers; third column depth (nearer is
    larger, decimetres)."""
    local = points - CENTER
    magnification = camera.distance / (camera.distance - local[:, 2])
    factor = magnification * (camera.scale * size / SPAN)
    x = local[:, 0] * factor + (0.5 + camera.shift_x) * size - 0.5
    y = -local[:, 1] * factor + (0.5 + camera.shift_y) * size - 0.5
    return np.stack([x, y, local[:, 2]], 1).astype(np.float32)
