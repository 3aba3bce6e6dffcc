"""A fitted face and how it changes with the picture it is seen in.

A similarity between two pictures (an aligned crop and its portrait, say) turns, scales and shifts the
projected head. With a camera that looks along z this is the same head under another roll, camera and light.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from faceclip.face3d.camera import CENTER, PIVOT, SPAN


@dataclass(frozen=True, kw_only=True)
class FaceFit:
    """Parameters of B faces in a picture; camera values are relative to its side, so they hold at any size."""

    shape: Tensor  # (B, K) coefficients of the head model
    expression: Tensor  # (B, E)
    pose: Tensor  # (B, 3) yaw, pitch, roll in degrees
    camera: Tensor  # (B, 4) scale, shift_x, shift_y, distance, as `Camera.to_array`
    light: Tensor  # (B, 9, 3)

    def rows(self, rows: slice | list[int]) -> "FaceFit":
        """Some of the faces."""
        return FaceFit(**{name: value[rows] for name, value in vars(self).items()})

    def detach(self) -> "FaceFit":
        """The same values without gradient."""
        return FaceFit(**{name: value.detach() for name, value in vars(self).items()})


def move_fit(fit: FaceFit, matrix: Tensor, *, before: int, after: int) -> FaceFit:
    """The fit as seen after similarities (B, 2, 3) from px of a `before` px picture to px of an `after` px one.

    Exact but for the perspective of the offset between neck and optical axis (below half a pixel at 128 px).
    """
    cosine, sine = matrix[:, 0, 0], matrix[:, 1, 0]
    zoom, angle = torch.hypot(cosine, sine), torch.atan2(sine, cosine)  # clockwise, since y points down
    scale, distance = fit.camera[:, 0], fit.camera[:, 3]
    # Roll turns about the neck (PIVOT), the picture about anything: keep the image of one point, the place where the
    # axis through PIVOT meets the plane of CENTER, at the depth of the face.
    offset = torch.tensor([PIVOT[0] - CENTER[0], -(PIVOT[1] - CENTER[1])], dtype=scale.dtype, device=scale.device)
    point = offset * (scale * before / SPAN)[:, None] + (0.5 + fit.camera[:, 1:3]) * before - 0.5
    moved = (matrix[:, :, :2] * point[:, None]).sum(dim=-1) + matrix[:, :, 2]
    new_scale = scale * zoom * before / after
    shift = (moved + 0.5 - offset * (new_scale * after / SPAN)[:, None]) / after - 0.5
    pose = torch.stack([fit.pose[:, 0], fit.pose[:, 1], fit.pose[:, 2] + torch.rad2deg(angle)], dim=1)
    camera = torch.cat([new_scale[:, None], shift, distance[:, None]], dim=1)
    return FaceFit(
        shape=fit.shape, expression=fit.expression, pose=pose, camera=camera, light=turn_light(fit.light, -angle)
    )


def turn_light(light: Tensor, angle: Tensor) -> Tensor:
    """Spherical-harmonics light (B, 9, 3) turned counter-clockwise in the picture by `angle` (B,) radians.

    A turn about z mixes the harmonics m and −m of each order by cos mα and sin mα (Ramamoorthi & Hanrahan 2001).
    """
    out = light.clone()
    for plus, minus, order in ((3, 1, 1), (7, 5, 1), (8, 4, 2)):
        cosine, sine = torch.cos(order * angle)[:, None], torch.sin(order * angle)[:, None]
        out[:, plus] = cosine * light[:, plus] - sine * light[:, minus]
        out[:, minus] = sine * light[:, plus] + cosine * light[:, minus]
    return out


def rotation_matrices(pose: Tensor) -> Tensor:
    """Head rotations (B, 3, 3) of poses (B, 3) in degrees; `camera.rotation_matrix` for tensors."""
    yaw, pitch, roll = (pose * torch.tensor([1.0, -1.0, -1.0], device=pose.device) * (math.pi / 180)).unbind(1)
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)

    def matrix(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)

    ry = matrix((yaw.cos(), zero, yaw.sin()), (zero, one, zero), (-yaw.sin(), zero, yaw.cos()))
    rx = matrix((one, zero, zero), (zero, pitch.cos(), -pitch.sin()), (zero, pitch.sin(), pitch.cos()))
    rz = matrix((roll.cos(), -roll.sin(), zero), (roll.sin(), roll.cos(), zero), (zero, zero, one))
    return rz @ rx @ ry


def project_points(points: Tensor, rotation: Tensor, camera: Tensor) -> Tensor:
    """Points (B, N, 3) of the unposed head as fractions (B, N, 2) of the picture, 0 left/top, 1 right/bottom.

    `rotation` (B, 3, 3), `camera` (B, 4). For points that follow the head fully (`HeadModel.head_weight` 1).
    """
    pivot = torch.as_tensor(PIVOT, dtype=points.dtype, device=points.device)
    center = torch.as_tensor(CENTER, dtype=points.dtype, device=points.device)
    local = (points - pivot) @ rotation.transpose(1, 2) + pivot - center
    scale, shift, distance = camera[:, None, 0], camera[:, None, 1:3], camera[:, None, 3]
    factor = (scale / SPAN) * distance / (distance - local[..., 2])
    flipped = torch.stack([local[..., 0], -local[..., 1]], dim=-1)
    return flipped * factor[..., None] + 0.5 + shift
