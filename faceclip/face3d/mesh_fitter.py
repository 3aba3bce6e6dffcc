"""The 3D fit of photographs: the head model by least squares on dense landmarks, then the light on the skin.

`MeshFitter` has the methods of `FaceFitter`, which learned renders and knows nothing else. Where both are at hand,
`MeshFitter` is for photographs and `FaceFitter` for renders.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from faceclip.errors import NoFaceError
from faceclip.face3d.camera import Camera, pose_vertices, project
from faceclip.face3d.dense_points import COUNT, EYE_CORNERS, OUTLINE, DensePoints, default_dense_points
from faceclip.face3d.fitter import FaceFitter, framed_faces
from faceclip.face3d.frames import FaceFit
from faceclip.face3d.least_squares import LinearPoints, Priors, as_fit, place, rigid_start, solve
from faceclip.face3d.light import sh_basis
from faceclip.face3d.rasterizer import interpolate, rasterize, vertex_normals
from faceclip.faces.dense import DenseFaces, DenseLandmarker
from faceclip.faces.regions import region_masks

MAX_RESIDUAL = 0.06
MIN_PRESENCE = 0.5
LIGHT_SIDE = 96  # px of the square around the face in which its light is found
# Mean shading of a face in the renders, which separates the light from the colour of the skin.
MEAN_SHADING = 0.78
_CHUNK = 16  # faces solved together; more only fill the memory


@dataclass(frozen=True, kw_only=True)
class MeshFit:
    """fit: in the frame of the square at the picture's upper left whose side is the picture's shorter one. residual:
    (B,) mean distance of the dense points, those of the face's outline left out, from the fit's, in distances of the
    outer eye corners. rigid_pose: (B, 3) degrees, the pose by MediaPipe's points alone, depth included. dense: the
    points."""

    fit: FaceFit
    residual: Tensor
    rigid_pose: Tensor
    dense: DenseFaces

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(B,) whether there is a face and the head model reaches it."""
        return (self.dense.presence >= MIN_PRESENCE) & (self.residual.numpy() <= MAX_RESIDUAL)


class MeshFitter(nn.Module):
    """Photographs → `FaceFit`. Frozen, on the CPU, without gradient; nothing of it is saved.

    Raises MissingExtraError and CheckpointError as `DenseLandmarker` does.
    """

    def __init__(
        self, landmarker: DenseLandmarker | None = None, *, priors: Priors | None = None, steps: int = 8
    ) -> None:
        super().__init__()
        self.landmarker = landmarker or DenseLandmarker()
        self.priors, self.steps = priors or Priors(), steps
        places = default_dense_points()
        self.head = places.head
        self.points = linear_points(places)
        self.register_buffer("canonical", torch.from_numpy(places.canonical), persistent=False)
        weights = 0.02 / torch.from_numpy(places.spread).clamp_min(0.02)
        weights[torch.from_numpy(OUTLINE)] *= 0.5
        self.register_buffer("weights", weights, persistent=False)
        self.inner = torch.from_numpy(np.setdiff1d(np.arange(COUNT), OUTLINE))

    @property
    def coefficients(self) -> dict[str, int]:
        """How many coefficients the fits have, by name: of shape, and of expression."""
        return {"shape": self.head.shape_size, "expression": self.head.expression_size}

    def fit(
        self, images: Sequence[NDArray[np.uint8]], landmarks: NDArray[np.floating], *, framed: bool = True
    ) -> FaceFit:
        """Fit faces with `landmarks` (B, 5, 2) px in `images` (uint8 RGB, any sizes), in the frame of a portrait.

        A square image is the portrait. Of any other image only the face counts: its pose is kept and the face is
        framed as the training portraits are (camera of scale 1 in the middle); without `framed` the camera stays that
        of the square at the image's upper left. All as `FaceFitter.fit` does.

        Raises:
            NoFaceError: where an image shows no face at the landmarks, or one that the head model cannot reach.
        """
        found = self.measure(images, landmarks)
        for row in np.flatnonzero(~found.usable):
            raise NoFaceError(
                f"image {row}: no face that the head model fits (presence {found.dense.presence[row]:.2f}, residual "
                f"{float(found.residual[row]):.1%} of the distance of the eye corners, at most {MAX_RESIDUAL:.0%}): "
                "give a photograph in which the face is not covered and is turned by less than 70°"
            )
        return framed_faces(found.fit, images) if framed else found.fit

    @torch.no_grad()
    def measure(self, images: Sequence[NDArray[np.uint8]], landmarks: NDArray[np.floating]) -> MeshFit:
        """As `fit`, for all faces, usable or not, with what tells how good each fit is."""
        dense = self.landmarker(images, landmarks)
        sides = torch.tensor([min(image.shape[:2]) for image in images], dtype=torch.float32).reshape(-1, 1, 1)
        seen = (torch.from_numpy(dense.points[:, :COUNT]) + torch.tensor([0.5, 0.5, 0.0])) / sides
        start = rigid_start(self.points, self.canonical, seen)
        solved = [
            solve(self.points, points[..., :2], self.weights, first, self.priors, steps=self.steps)
            for points, first in zip(seen.split(_CHUNK), start.split(_CHUNK), strict=True)
        ]
        values = torch.cat([*solved, start[:0]])
        distance = (place(self.points, values)[0] - seen[..., :2]).norm(dim=2)[:, self.inner].mean(dim=1)
        corners = (seen[:, EYE_CORNERS[0], :2] - seen[:, EYE_CORNERS[1], :2]).norm(dim=1)
        count = self.points.coefficients
        fit = as_fit(values, self.points.shape_size, count)
        light = [find_light(image, fit.rows([row]), dense.points[row]) for row, image in enumerate(images)]
        fit = replace(fit, light=torch.from_numpy(np.stack(light)) if light else fit.light)
        residual = (distance / corners.clamp_min(1e-6)).nan_to_num(nan=1.0)
        rigid = torch.rad2deg(start[:, count : count + 3])
        return MeshFit(fit=fit, residual=residual, rigid_pose=rigid, dense=dense)

    shading = staticmethod(FaceFitter.shading)
    landmarks_68 = staticmethod(FaceFitter.landmarks_68)
    landmarks_5 = staticmethod(FaceFitter.landmarks_5)


@cache
def default_mesh_fitter() -> MeshFitter:
    """One for all pipelines of this process. Raises MissingExtraError without the extra."""
    return MeshFitter()


def linear_points(places: DensePoints) -> LinearPoints:
    """The dense points as linear functions of the head model's coefficients."""
    head = places.head
    basis = np.stack([places.of(one) for one in (*head.shape_basis, *head.expression_basis)])
    return LinearPoints.make(places.of(head.template), basis, places.of(head.head_weight), head.shape_size)


def find_light(image: NDArray[np.uint8], fit: FaceFit, dense: NDArray[np.floating]) -> NDArray[np.float32]:
    """Grey spherical-harmonics light (9, 3) of one face, by robust least squares on the luminance of its skin.

    fit: of one face, in the frame of `MeshFit`. dense: its dense points px. Colour and depth of the skin cannot be told
    from the light: its luminance is taken to be constant, and the mean shading that of the renders. Beards, glasses and
    strands of hair are outliers; harmonics of the second order are kept small, since half of the sphere is never seen.
    """
    luminance, normals, skin = skin_samples(image, fit, dense)
    light = np.zeros((9, 3), np.float32)
    if skin.sum() < 50 or luminance[skin].mean() < 1e-3:
        light[0] = MEAN_SHADING / float(sh_basis(np.array([0.0, 0.0, 1.0]))[0])
        return light
    basis, value = sh_basis(normals[skin]).astype(np.float64), luminance[skin].astype(np.float64)
    ridge = np.diag([0.0, *[0.0005] * 3, *[0.002] * 5]) * len(value)
    weight = np.ones(len(value))
    for _ in range(6):
        weighted = basis * weight[:, None]
        found = np.linalg.solve(weighted.T @ basis + ridge, weighted.T @ value)
        error = value - basis @ found
        spread = max(1.4826 * float(np.median(np.abs(error))), 0.01)
        weight = np.clip(1 - (error / (4.685 * spread)) ** 2, 0, None) ** 2  # Tukey's biweight
    grey = np.maximum(basis @ found, 0)
    light[:] = (found * MEAN_SHADING / max(float(grey.mean()), 1e-3))[:, None]
    return light


def skin_samples(
    image: NDArray[np.uint8], fit: FaceFit, dense: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Luminance (S, S) in [0, 1], normals (S, S, 3) of one fit and which pixels are skin (S, S), in a square around the
    face of S = `LIGHT_SIDE` px."""
    head = default_dense_points().head
    pose = tuple(fit.pose[0].tolist())
    posed = pose_vertices(head.vertices(fit.shape[0].numpy(), fit.expression[0].numpy()), head.head_weight, pose)
    placed = project(posed, Camera.from_array(fit.camera[0].numpy()), min(image.shape[:2]))
    low, high = dense[:COUNT, :2].min(axis=0), dense[:COUNT, :2].max(axis=0)
    side = max(float((high - low).max()) * 1.06, 1.0)
    corner, zoom = (low + high) / 2 - side / 2, LIGHT_SIDE / side
    shift = -zoom * corner + 0.5 * zoom - 0.5
    matrix = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
    flags = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    luminance = cv2.warpAffine(*_reduced(image, matrix, zoom), (LIGHT_SIDE, LIGHT_SIDE), flags=flags)
    luminance = luminance.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    placed[:, :2] = placed[:, :2] * zoom + shift
    triangle, weights, _ = rasterize(placed, head.faces, LIGHT_SIDE)
    values = np.concatenate([vertex_normals(posed, head.faces), head.face_mask[:, None].astype(np.float32)], axis=1)
    values = interpolate(values, head.faces, triangle, weights)
    normals = values[..., :3] / np.maximum(np.linalg.norm(values[..., :3], axis=-1, keepdims=True), 1e-6)
    masks = region_masks(dense[:, :2] * zoom + shift, LIGHT_SIDE, LIGHT_SIDE)
    hidden = (masks["brows"] | masks["eyes"] | masks["lips"] | masks["inner_mouth"]).astype(np.uint8)
    skin = masks["face"] & ~cv2.dilate(hidden, np.ones((3, 3), np.uint8)).astype(bool) & (values[..., 3] > 0.99)
    rows, columns = np.mgrid[:LIGHT_SIDE, :LIGHT_SIDE]
    inside = (np.stack([columns, rows], axis=-1) - shift) / zoom
    extent = np.array([image.shape[1], image.shape[0]])
    return luminance, normals, skin & ((inside >= 0) & (inside <= extent - 1)).all(axis=-1)


def _reduced(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], zoom: float
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The picture at the nearest whole reduction above `zoom`, so that sampling it skips no pixels, and the map
    `matrix` (2, 3) of the picture's pixels as one of pixels of the reduced picture."""
    times = max(int(1 / zoom), 1)
    if times == 1:
        return image, matrix
    size = (max(image.shape[1] // times, 1), max(image.shape[0] // times, 1))
    linear, shift = matrix[:, :2], matrix[:, 2]
    matrix = np.column_stack([linear * times, shift + linear @ np.full(2, (times - 1) / 2)])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), matrix
