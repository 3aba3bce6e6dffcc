"""The head model fitted to points of a face by damped least squares with priors, for a batch of faces at once.

Parameters of a face are one vector: shape (K), expression (E), yaw, pitch and roll in radians with the signs of
`faceclip.face3d.camera`, logarithm of the camera's scale, its shifts, and the logarithm of its distance.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceclip.face3d.camera import CENTER, DISTANCE, PIVOT, SPAN
from faceclip.face3d.frames import FaceFit

RIGID = 7  # yaw, pitch, roll, log scale, shift x, shift y, log distance


@dataclass(frozen=True, kw_only=True)
class Priors:
    """Deviations from zero that count as much as a distance of `point` (in distances of the eye corners) of one of a
    hundred points. pose: degrees from the pose of the start. distance: of the logarithm of the camera's distance from
    that of `DISTANCE`."""

    point: float = 0.02
    shape: float = 0.6
    expression: float = 0.35
    pose: float = 2.0
    distance: float = 0.25


@dataclass(frozen=True, kw_only=True)
class LinearPoints:
    """Points that follow the head model: mean (N, 3), basis (K + E, N, 3), head_weight (N,) as of the model."""

    mean: Tensor
    basis: Tensor
    head_weight: Tensor
    shape_size: int

    @classmethod
    def make(
        cls, mean: NDArray[np.floating], basis: NDArray[np.floating], weight: NDArray[np.floating], shape_size: int
    ) -> "LinearPoints":
        values = (torch.from_numpy(np.ascontiguousarray(value, np.float32)) for value in (mean, basis, weight))
        return cls(**dict(zip(("mean", "basis", "head_weight"), values, strict=True)), shape_size=shape_size)

    @property
    def coefficients(self) -> int:
        return len(self.basis)


def solve(points: LinearPoints, seen: Tensor, weights: Tensor, start: Tensor, priors: Priors, *, steps: int) -> Tensor:
    """Parameters (B, K + E + 7) after `steps` damped steps of Gauss and Newton.

    seen: (B, N, 2) points as fractions of the picture. weights: (N,) of their distances. start: parameters. A face
    whose step makes its cost larger keeps its parameters and gets 8 times the damping; otherwise it gets 0.3 times.
    """
    unit = 1 / (priors.point * math.sqrt(float(weights.square().sum()) / 100))
    size = (seen.amax(dim=1) - seen.amin(dim=1)).amax(dim=1)  # of the face, so that all faces count alike
    scaled = (unit * weights)[None, :, None] / size[:, None, None] * 1.6
    deviation = torch.full((points.coefficients + RIGID,), math.inf)
    deviation[: points.shape_size] = priors.shape
    deviation[points.shape_size : points.coefficients] = priors.expression
    deviation[points.coefficients : points.coefficients + 3] = math.radians(priors.pose)
    deviation[-1] = priors.distance
    precision = deviation.square().reciprocal()
    middle = torch.zeros_like(start)
    middle[:, points.coefficients : points.coefficients + 3] = start[:, points.coefficients : points.coefficients + 3]
    middle[:, -1] = math.log(DISTANCE)

    def cost(values: Tensor, difference: Tensor) -> Tensor:
        return (difference * scaled).square().sum(dim=(1, 2)) + (precision * (values - middle).square()).sum(dim=1)

    def linear(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cost (B,), gradient (B, P) and the matrix of the normal equations (B, P, P) without priors."""
        placed, jacobian = place(points, values, jacobian=True)
        rows = jacobian.mul_(scaled[..., None]).flatten(1, 2)
        left = (placed - seen).mul(scaled).flatten(1)
        gradient = (rows.transpose(1, 2) @ left[..., None])[..., 0] + precision * (values - middle)
        return cost(values, placed - seen), gradient, rows.transpose(1, 2) @ rows

    values = start
    before, gradient, normal = linear(values)
    damping = torch.full((len(start),), 1.0)
    for step in range(steps):
        diagonal = normal.diagonal(dim1=1, dim2=2)
        system = normal + torch.diag_embed(precision + damping[:, None] * 0.1 * diagonal + 1e-6)
        new = values - torch.linalg.solve(system.double(), gradient.double()[..., None])[..., 0].float()
        last = step == steps - 1
        if last:  # no further step needs equations
            after = cost(new, place(points, new)[0] - seen)
        else:
            after, *equations = linear(new)
        better = (after < before) & after.isfinite()
        values = torch.where(better[:, None], new, values)
        if not last:
            gradient = torch.where(better[:, None], equations[0], gradient)
            normal = torch.where(better[:, None, None], equations[1], normal)
        before = torch.where(better, after, before)
        damping = torch.where(better, damping * 0.3, damping * 8)
    return values


def place(points: LinearPoints, values: Tensor, *, jacobian: bool = False) -> tuple[Tensor, Tensor]:
    """Points (B, N, 2) as fractions of the picture, and their derivatives (B, N, 2, P), empty unless asked for."""
    count = points.coefficients
    coefficients, rigid = values[:, :count], values[:, count:]
    pivot, center = torch.from_numpy(PIVOT), torch.from_numpy(CENTER)
    local = points.mean + (coefficients @ points.basis.flatten(1)).unflatten(1, (-1, 3)) - pivot
    head, head_slopes = rotations(rigid[:, :3])
    bust, bust_slopes = rotations(torch.cat([rigid[:, :1] / 3, torch.zeros_like(rigid[:, :2])], dim=1))
    weight = points.head_weight[None, :, None]
    turned = weight * (local @ head.transpose(1, 2)) + (1 - weight) * (local @ bust.transpose(1, 2)) + pivot - center
    scale, shift, distance = rigid[:, 3].exp(), rigid[:, 4:6], rigid[:, 6].exp()
    reach = distance[:, None] - turned[..., 2]
    factor = (scale / SPAN * distance)[:, None] / reach
    flipped = torch.stack([turned[..., 0], -turned[..., 1]], dim=-1) * factor[..., None]
    placed = flipped + 0.5 + shift[:, None]
    if not jacobian:
        return placed, placed.new_zeros(0)
    # What a move (3) of a turned point does to its place (2).
    projection = torch.zeros(*placed.shape, 3)
    projection[..., 0, 0], projection[..., 1, 1] = factor, -factor
    projection[..., 2] = flipped / reach[..., None]
    mixed = weight[..., None] * head[:, None] + (1 - weight[..., None]) * bust[:, None]  # (B, N, 3, 3)
    slopes = torch.empty(*placed.shape, count + RIGID)
    slopes[..., :count] = torch.einsum("bnij,knj->bnik", projection @ mixed, points.basis)
    for angle in range(3):
        change = weight * (local @ head_slopes[:, angle].transpose(1, 2))
        if angle == 0:
            change = change + (1 - weight) * (local @ bust_slopes[:, 0].transpose(1, 2)) / 3
        slopes[..., count + angle] = (projection @ change[..., None])[..., 0]
    slopes[..., -4] = flipped
    slopes[..., -3:-1] = torch.eye(2)
    slopes[..., -1] = flipped * (-turned[..., 2] / reach)[..., None]
    return placed, slopes


def rotations(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations (B, 3, 3) of yaw, pitch, roll (B, 3) in radians, and their derivatives (B, 3, 3, 3) by each."""
    yaw, pitch, roll = angles[:, 0], -angles[:, 1], -angles[:, 2]
    ry, dy = _about(yaw, 2, 0)
    rx, dx = _about(pitch, 1, 2)
    rz, dz = _about(roll, 0, 1)
    return rz @ rx @ ry, torch.stack([rz @ rx @ dy, -(rz @ dx @ ry), -(dz @ rx @ ry)], dim=1)


def _about(angle: Tensor, first: int, second: int) -> tuple[Tensor, Tensor]:
    """Rotation (B, 3, 3) that turns axis `first` towards axis `second`, and its derivative."""
    cosine, sine = angle.cos(), angle.sin()
    rotation = torch.eye(3).repeat(len(angle), 1, 1)
    slope = torch.zeros_like(rotation)
    for axis in (first, second):
        rotation[:, axis, axis], slope[:, axis, axis] = cosine, -sine
    rotation[:, second, first], slope[:, second, first] = sine, cosine
    rotation[:, first, second], slope[:, first, second] = -sine, -cosine
    return rotation, slope


def rigid_start(points: LinearPoints, canonical: Tensor, seen: Tensor) -> Tensor:
    """Start for `solve`: the mean head turned, scaled and shifted onto points (B, N, 3), fractions of the picture with
    depth in the same unit, nearer is smaller; by Umeyama's solution (1991)."""
    target = seen * seen.new_tensor([1.0, -1.0, -1.0])
    source = canonical - torch.from_numpy(PIVOT)
    x, y = source - source.mean(dim=0), target - target.mean(dim=1, keepdim=True)
    u, values, vt = torch.linalg.svd(y.transpose(1, 2) @ x)
    sign = torch.ones_like(values)
    sign[:, 2] = torch.det(u @ vt).sign()
    rotation = u @ (sign[..., None] * vt)
    scale = (values * sign).sum(dim=1) / x.square().sum()
    start = torch.zeros(len(seen), points.coefficients + RIGID)
    rigid = start[:, points.coefficients :]
    rigid[:, 0] = torch.atan2(-rotation[:, 2, 0], rotation[:, 2, 2])
    rigid[:, 1] = -torch.asin(rotation[:, 2, 1].clamp(-1, 1))
    rigid[:, 2] = -torch.atan2(-rotation[:, 0, 1], rotation[:, 1, 1])
    rigid[:, 3] = (scale * SPAN).clamp_min(1e-6).log()
    rigid[:, 6] = math.log(DISTANCE)
    placed, _ = place(points, start)
    rigid[:, 4:6] = (seen[..., :2] - placed).mean(dim=1)
    return start


def as_fit(values: Tensor, shape_size: int, coefficients: int) -> FaceFit:
    """Parameters as a fit, in light without any."""
    rigid = values[:, coefficients:]
    camera = torch.stack([rigid[:, 3].exp(), rigid[:, 4], rigid[:, 5], rigid[:, 6].exp()], dim=1)
    return FaceFit(
        shape=values[:, :shape_size],
        expression=values[:, shape_size:coefficients],
        pose=torch.rad2deg(rigid[:, :3]),
        camera=camera,
        light=torch.zeros(len(values), 9, 3),
    )
