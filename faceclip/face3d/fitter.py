"""From one aligned face crop to the 3D channel's parameters, and from them to a shading map."""

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from faceclip.face3d.camera import Camera, pose_vertices, project
from faceclip.face3d.frames import FaceFit, move_fit
from faceclip.face3d.model import default_head
from faceclip.face3d.shading import shading_map
from faceclip.faces.align import align_face, invert_affine, similarity_between, similarity_transform

POSE, CAMERA, LIGHT = 3, 4, 27
# Mean distance of five fitted points from given ones, in root mean squares of these from their middle; on renders it is
# .08 to MTCNN's by the median, .15 at most in 95 of 100.
TRUST = 0.08


class FaceFitter(ModelMixin, ConfigMixin):
    """Aligned crop, `view` times as wide as the ArcFace crop → `FaceFit` in the frame of the crop.

    The ArcFace crop ends above the chin; a view of 1.45 shows the whole face. A residual network (He et al. 2016)
    regresses all parameters at once, standardized by `mean` and `deviation`; the camera's scale and distance as
    logarithms. `fit` and `shading` go from whole portraits to shading maps.

    Args:
        image_size: px of the crop, a multiple of 2 to the number of `widths`.
        view: side of the crop in sides of the ArcFace crop, about the same middle.
        widths: channels of the stages, each at half the resolution of the one before.
        depths: residual blocks of each stage after the first, which is one convolution; None: one each.
        reduced: channels that the last stage's map is reduced to before all its places are read together.
        hidden: width of the layer that reads them.
    """

    @register_to_config
    def __init__(
        self,
        shape_size: int = 48,
        expression_size: int = 21,
        image_size: int = 112,
        view: float = 1.45,
        widths: Sequence[int] = (24, 48, 96, 160),
        depths: Sequence[int] | None = None,
        reduced: int = 32,
        hidden: int = 384,
    ) -> None:
        super().__init__()
        depths = [1] * (len(widths) - 1) if depths is None else depths
        if len(depths) != len(widths) - 1:
            raise ValueError(f"depths must be one fewer than widths, got {list(depths)} for {list(widths)}")
        if image_size % 2 ** len(widths):
            raise ValueError(f"image_size must be a multiple of {2 ** len(widths)}, got {image_size}")
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        ]
        for i in range(1, len(widths)):
            shortcut = nn.Sequential(
                nn.Conv2d(widths[i - 1], widths[i], 1, stride=2, bias=False), nn.BatchNorm2d(widths[i])
            )
            layers.append(BasicBlock(widths[i - 1], widths[i], stride=2, downsample=shortcut))
            layers.extend(BasicBlock(widths[i], widths[i]) for _ in range(depths[i - 1] - 1))
        layers.extend(
            [nn.Conv2d(widths[-1], reduced, 1, bias=False), nn.BatchNorm2d(reduced), nn.ReLU(inplace=True)]
        )
        self.trunk = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        side = image_size // 2 ** len(widths)
        count = shape_size + expression_size + POSE + CAMERA + LIGHT
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(reduced * side * side, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, count)
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))

    def forward(self, crops: Tensor) -> FaceFit:
        """Fit RGB crops (B, 3, H, W) in [0, 1]; resized bilinearly. Raises ValueError for another layout."""
        if crops.ndim != 4 or crops.shape[1] != 3:
            raise ValueError(f"expected RGB crops (B, 3, H, W) in [0, 1], got shape {tuple(crops.shape)}")
        size = self.config.image_size
        if crops.shape[-2:] != (size, size):
            crops = F.interpolate(crops, (size, size), mode="bilinear", align_corners=False)
        features = self.neck(self.trunk(crops * 2 - 1))
        with torch.autocast(crops.device.type, enabled=False):  # bf16 would round an angle of 60° to a quarter degree
            values = self.head(features.to(self.head.weight.dtype)).float()
        return self.unpack(values * self.deviation.float() + self.mean.float())

    def unpack(self, values: Tensor) -> FaceFit:
        """Parameter vectors (B, count) as a fit."""
        sizes = [self.config.shape_size, self.config.expression_size, POSE, CAMERA, LIGHT]
        shape, expression, pose, camera, light = values.split(sizes, dim=1)
        positive = camera[:, [0, 3]].clamp(-5, 5).exp()
        camera = torch.stack([positive[:, 0], camera[:, 1], camera[:, 2], positive[:, 1]], dim=1)
        return FaceFit(shape=shape, expression=expression, pose=pose, camera=camera, light=light.unflatten(1, (9, 3)))

    @staticmethod
    def pack(fit: FaceFit) -> Tensor:
        """A fit as parameter vectors (B, count): the inverse of `unpack`."""
        scale, distance = fit.camera[:, :1].log(), fit.camera[:, 3:].log()
        camera = torch.cat([scale, fit.camera[:, 1:3], distance], dim=1)
        return torch.cat([fit.shape, fit.expression, fit.pose, camera, fit.light.flatten(1)], dim=1)

    @torch.no_grad()
    def fit(
        self, images: Sequence[NDArray[np.uint8]], landmarks: NDArray[np.floating], *, passes: int = 2
    ) -> FaceFit:
        """Fit faces with `landmarks` (B, 5, 2) px in `images` (uint8 RGB, any sizes), in the frame of a portrait.

        A detector's landmarks are off by more than a fit's five points are on renders, less on other pictures: a fit
        further than `TRUST` from the landmarks is moved that near. Every pass after the first cuts its crop by the
        points of the fit before (docs/architecture.md has what that is worth).

        A square image is the portrait. Of any other image only the face counts: its pose is kept and the face is
        framed as the training portraits are (camera of scale 1 in the middle). The fit is on the CPU.
        """
        sides = [min(image.shape[:2]) for image in images]
        given = points = torch.as_tensor(np.asarray(landmarks), dtype=torch.float32)
        for _ in range(passes):
            fits = self._fit_once(images, points, sides)
            fits = [_towards(fit, five, side) for fit, five, side in zip(fits, given, sides, strict=True)]
            points = torch.cat([self.landmarks_5(fit, side) for fit, side in zip(fits, sides, strict=True)])
        fit = FaceFit(**{name: torch.cat([getattr(one, name) for one in fits]) for name in vars(fits[0])})
        fixed = torch.tensor([image.shape[0] != image.shape[1] for image in images])
        camera = fit.camera.clone()
        camera[fixed, :3] = torch.tensor([1.0, 0.0, 0.0])
        return replace(fit, camera=camera)

    def _fit_once(self, images: Sequence[NDArray[np.uint8]], points: Tensor, sides: Sequence[int]) -> list[FaceFit]:
        """Fits by crops around `points`, each in the frame of the square of its side at the image's upper left."""
        size, view = self.config.image_size, self.config.view
        crops = [_crop(image, p, size, view) for image, p in zip(images, points, strict=True)]
        batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(self.device, self.dtype) / 255
        found = {name: value.float().cpu() for name, value in vars(self(batch)).items()}
        back = invert_affine(similarity_transform(points, size, view=view))
        rows = [FaceFit(**{name: value[i : i + 1] for name, value in found.items()}) for i in range(len(images))]
        return [move_fit(row, back[i : i + 1], before=size, after=sides[i]) for i, row in enumerate(rows)]

    @staticmethod
    def shading(fit: FaceFit, size: int) -> Tensor:
        """Shading maps (B, 3, size, size) in [0, 1] of a fit, in the frame of that fit; black outside the face."""
        maps = [
            shading_map(
                fit.shape[row].numpy(),
                fit.expression[row].numpy(),
                tuple(fit.pose[row].tolist()),
                Camera.from_array(fit.camera[row].numpy()),
                fit.light[row].numpy(),
                size,
            )
            for row in range(len(fit.pose))
        ]
        return torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).float() / 255

    @staticmethod
    def landmarks_68(fit: FaceFit, size: int) -> Tensor:
        """The 68 landmarks (B, 68, 2) of a fit in px of its size × size picture, pixel centers at integers; hidden ones
        too."""
        return _landmarks(fit, size, list(default_head().landmarks_68))

    @staticmethod
    def landmarks_5(fit: FaceFit, size: int) -> Tensor:
        """Eyes, nose tip and mouth corners (B, 5, 2), as `landmarks_68`."""
        head = default_head()
        return _landmarks(fit, size, [*head.eye_front, *head.nose_mouth])


def _landmarks(fit: FaceFit, size: int, picked: list[int]) -> Tensor:
    head, found = default_head(), []
    for row in range(len(fit.pose)):
        vertices = head.vertices(fit.shape[row].numpy(), fit.expression[row].numpy())
        posed = pose_vertices(vertices, head.head_weight, tuple(fit.pose[row].tolist()))
        found.append(project(posed[picked], Camera.from_array(fit.camera[row].numpy()), size)[:, :2])
    return torch.from_numpy(np.stack(found)).float()


def _towards(fit: FaceFit, landmarks: Tensor, side: int) -> FaceFit:
    """One fit in a picture of `side` px, moved, turned and scaled until its five points are about as near to
    `landmarks` (5, 2) as `TRUST` says."""
    points = FaceFitter.landmarks_5(fit, side)[0]
    span = (landmarks - landmarks.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    distance = (points - landmarks).norm(dim=1).mean() / span
    if distance <= TRUST:
        return fit
    wanted = torch.lerp(points, landmarks, float(1 - TRUST / distance))
    return move_fit(fit, similarity_between(points, wanted)[None], before=side, after=side)


def _crop(image: NDArray[np.uint8], landmarks: Tensor, size: int, view: float) -> NDArray[np.uint8]:
    """The crop that the fitter reads; where the photo has several pixels for one of the crop, their mean."""
    step = float(similarity_transform(landmarks, size, view=view)[:, 0].norm())  # px of the crop for one of the image
    finer = min(max(math.floor(1 / max(step, 1e-6)), 1), 8)
    crop = align_face(image, landmarks.double().numpy(), size * finer, view=view)
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA) if finer > 1 else crop
