"""From one aligned face crop to the 3D channel's parameters, and from them to a shading map."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

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
from faceclip.face3d.points import HeadPoints, outline_points
from faceclip.face3d.shading import shading_map
from faceclip.faces.align import align_face, invert_affine, similarity_between, similarity_transform
from faceclip.storage.loading import StrictlyLoaded

POSE, CAMERA, LIGHT = 3, 4, 27
# Mean distance of five fitted points from given ones, in root mean squares of these from their middle; on renders it is
# .08 to MTCNN's by the median, .15 at most in 95 of 100.
TRUST = 0.08
ONE_VIEW = ((1.0, 0.0),)
# Zoom and turn in degrees of the crops whose fits `FaceFitter.fit` averages: errors of single crops differ.
VIEWS = ((1.06, 4.0), (1.06, -4.0), (0.94, 4.0), (0.94, -4.0))


class Corrector(nn.Module):
    """Corrects a fit by the features at the places where it puts points of the face (PyMAF, Zhang et al. 2021).

    Features that lie beside the face's outline say which way the fit is off, which a regression from the whole crop
    hardly sees. The last layer begins at zero: untrained, nothing is corrected.
    """

    def __init__(self, widths: Sequence[int], count: int, points: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.points = HeadPoints(default_head(), outline_points(default_head(), points))
        self.reads = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.look = nn.Linear(channels * points + count, hidden)
        self.update = nn.Linear(hidden, count)
        nn.init.zeros_(self.update.weight)
        nn.init.zeros_(self.update.bias)

    def read(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What every look needs of maps (B, C_i, h_i, w_i) of a crop."""
        return [read(level).float() for read, level in zip(self.reads, maps, strict=True)]

    def forward(self, levels: Sequence[Tensor], values: Tensor, fit: FaceFit) -> Tensor:
        """Change (B, count) of the standardized `values` of `fit`, by what `read` gave of its crop."""
        with torch.autocast(values.device.type, enabled=False):  # bf16 would move a point by half a pixel
            places = self.points.positions(fit)[:, None] * 2 - 1
            # Zeros outside of the crop.
            looks = (F.grid_sample(level, places, align_corners=False) for level in levels)
            found = functools.reduce(torch.add, looks)
            features = torch.cat([found.flatten(1), values], dim=1)
        return _float32(self.update, F.relu(self.look(features.to(self.look.weight.dtype))))


class FaceFitter(StrictlyLoaded, ModelMixin, ConfigMixin):
    """Aligned crop, `view` times as wide as the ArcFace crop → `FaceFit` in the frame of the crop.

    The ArcFace crop ends above the chin; a view of 1.45 shows the whole face. A residual network (He et al. 2016)
    regresses all parameters at once, standardized by `mean` and `deviation`; the camera's scale and distance as
    logarithms. Then it looks at its finer maps where the fit puts the face, and corrects the fit by what it finds there
    (`Corrector`). `fit` and `shading` go from whole portraits to shading maps.

    Args:
        image_size: px of the crop, a multiple of 2 to the number of `widths`.
        view: side of the crop in sides of the ArcFace crop, about the same middle.
        widths: channels of the stages, each at half the resolution of the one before.
        depths: residual blocks of each stage after the first, which is one convolution; None: one each.
        reduced: channels that the last stage's map is reduced to before all its places are read together.
        hidden: width of the layer that reads them.
        looks: corrections of the first fit, all by the same weights; 0 builds none.
        look_points: points of the face that a look reads, at least 68; look_channels: features of each; look_hidden:
            width of the layer that reads them.
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
        looks: int = 0,
        look_points: int = 96,
        look_channels: int = 16,
        look_hidden: int = 128,
    ) -> None:
        super().__init__()
        depths = [1] * (len(widths) - 1) if depths is None else depths
        if len(depths) != len(widths) - 1:
            raise ValueError(f"depths must be one fewer than widths, got {list(depths)} for {list(widths)}")
        if image_size % 2 ** len(widths):
            raise ValueError(f"image_size must be a multiple of {2 ** len(widths)}, got {image_size}")
        stem = [
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        ]
        stages = [nn.Sequential(*stem)]
        for before, width, depth in zip(widths, widths[1:], depths, strict=False):
            shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=2, bias=False), nn.BatchNorm2d(width))
            blocks = [BasicBlock(before, width, stride=2, downsample=shortcut)]
            stages.append(nn.Sequential(*blocks, *(BasicBlock(width, width) for _ in range(depth - 1))))
        reduce = [nn.Conv2d(widths[-1], reduced, 1, bias=False), nn.BatchNorm2d(reduced), nn.ReLU(inplace=True)]
        self.stages = nn.ModuleList(stages).to(memory_format=torch.channels_last)
        side = image_size // 2 ** len(widths)
        count = shape_size + expression_size + POSE + CAMERA + LIGHT
        self.neck = nn.Sequential(*reduce, nn.Flatten(), nn.Linear(reduced * side * side, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, count)
        self.corrector = Corrector(widths, count, look_points, look_channels, look_hidden) if looks else None
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))

    @property
    def coefficients(self) -> dict[str, int]:
        """How many coefficients the fits have, by name: of shape, and of expression."""
        return {"shape": self.config.shape_size, "expression": self.config.expression_size}

    def forward(self, crops: Tensor) -> FaceFit:
        """Fit RGB crops (B, 3, H, W) in [0, 1]; resized bilinearly. Raises ValueError for another layout."""
        return self.successive_fits(crops)[-1]

    def successive_fits(self, crops: Tensor) -> list[FaceFit]:
        """As `forward`: the first fit and that after each look."""
        if crops.ndim != 4 or crops.shape[1] != 3:
            raise ValueError(f"expected RGB crops (B, 3, H, W) in [0, 1], got shape {tuple(crops.shape)}")
        size = self.config.image_size
        if crops.shape[-2:] != (size, size):
            crops = F.interpolate(crops, (size, size), mode="bilinear", align_corners=False)
        maps = [self.stages[0](crops * 2 - 1)]
        for stage in self.stages[1:]:
            maps.append(stage(maps[-1]))
        values = _float32(self.head, self.neck(maps[-1]))
        fits = [self._fit_of(values)]
        if self.corrector is not None:
            levels = self.corrector.read(maps)
            for _ in range(self.config.looks):
                # Each look answers for its own fit alone: no gradient runs back through the fit before (as in RAFT).
                values = values.detach() + self.corrector(levels, values.detach(), fits[-1].detach())
                fits.append(self._fit_of(values))
        return fits

    def _fit_of(self, values: Tensor) -> FaceFit:
        """The fit of standardized parameters."""
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
        self,
        images: Sequence[NDArray[np.uint8]],
        landmarks: NDArray[np.floating],
        *,
        passes: int = 2,
        views: Sequence[tuple[float, float]] = VIEWS,
        framed: bool = True,
    ) -> FaceFit:
        """Fit faces with `landmarks` (B, 5, 2) px in `images` (uint8 RGB, any sizes), in the frame of a portrait.

        A detector's landmarks are off by more than a fit's five points are on renders, less on other pictures: a fit
        further than `TRUST` from the landmarks is moved that near. Every pass after the first cuts its crop by the
        points of the fit before, and the last averages the parameters of several crops, of (zoom, turn in degrees)
        `views` (docs/architecture.md has what that is worth).

        A square image is the portrait. Of any other image only the face counts: its pose is kept and the face is
        framed as the training portraits are (camera of scale 1 in the middle); without `framed` the camera stays that
        of the square at the image's upper left, whose side is the image's shorter one. The fit is on the CPU.
        Raises ValueError for passes below 1.
        """
        if passes < 1:
            raise ValueError(f"passes must be at least 1, got {passes}")
        sides = [min(image.shape[:2]) for image in images]
        given = points = torch.as_tensor(np.asarray(landmarks), dtype=torch.float32)
        for left in reversed(range(passes)):
            seen = [
                self.fit_around(images, zoomed_and_turned(points, *view), sides)
                for view in (ONE_VIEW if left else views)
            ]
            mean = torch.stack([self.pack(fit) for fit in seen]).mean(dim=0)
            found = [self.unpack(row) for row in mean.split(1)]
            moved = [moved_towards(fit, five, side) for fit, five, side in zip(found, given, sides, strict=True)]
            fits, points = [fit for fit, _ in moved], torch.stack([five for _, five in moved])
        fit = FaceFit(**{name: torch.cat([getattr(one, name) for one in fits]) for name in vars(fits[0])})
        return framed_faces(fit, images) if framed else fit

    def fit_around(self, images: Sequence[NDArray[np.uint8]], points: Tensor, sides: Sequence[int]) -> FaceFit:
        """Fits by crops around `points` (B, 5, 2) px, each in the frame of the square at the image's upper left, whose
        side in px `sides` gives."""
        size, view = self.config.image_size, self.config.view
        crops = [align_face(image, p.numpy(), size, view=view) for image, p in zip(images, points, strict=True)]
        batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(self.device, self.dtype) / 255
        found = FaceFit(**{name: value.float().cpu() for name, value in vars(self(batch)).items()})
        back = invert_affine(similarity_transform(points, size, view=view))
        rows = [slice(i, i + 1) for i in range(len(images))]
        moved = [move_fit(found.rows(row), back[row], before=size, after=sides[row.start]) for row in rows]
        return FaceFit(**{name: torch.cat([getattr(one, name) for one in moved]) for name in vars(found)})

    @staticmethod
    def shading(fit: FaceFit, size: int) -> Tensor:
        """Shading maps (B, 3, size, size) in [0, 1] of a fit, in the frame of that fit; black outside the face."""
        return torch.from_numpy(shading_maps(fit, size)).permute(0, 3, 1, 2).float() / 255

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


def framed_faces(fit: FaceFit, images: Sequence[NDArray[np.uint8]]) -> FaceFit:
    """The fits of `images` with the faces of those that are not square framed as the training portraits are."""
    fixed = torch.tensor([image.shape[0] != image.shape[1] for image in images], dtype=torch.bool)
    camera = fit.camera.clone()
    camera[fixed, :3] = torch.tensor([1.0, 0.0, 0.0])
    return replace(fit, camera=camera)


def _float32(layer: nn.Linear, features: Tensor) -> Tensor:
    """Outputs without autocast: bf16 would round an angle of 60° to a quarter degree."""
    with torch.autocast(features.device.type, enabled=False):
        return layer(features.to(layer.weight.dtype)).float()


def _landmarks(fit: FaceFit, size: int, picked: list[int]) -> Tensor:
    head, found = default_head(), []
    for row in range(len(fit.pose)):
        vertices = head.vertices(fit.shape[row].numpy(), fit.expression[row].numpy())
        posed = pose_vertices(vertices, head.head_weight, tuple(fit.pose[row].tolist()))
        found.append(project(posed[picked], Camera.from_array(fit.camera[row].numpy()), size)[:, :2])
    return torch.from_numpy(np.stack(found)).float()


def shading_maps(fit: FaceFit, size: int) -> NDArray[np.uint8]:
    """Shading maps (B, size, size, 3) of a fit, in the frame of that fit; black outside the face."""
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
    return np.stack(maps)


def zoomed_and_turned(points: Tensor, zoom: float, turn: float) -> Tensor:
    """Points (B, 5, 2) scaled and turned about their middles, by which a crop shows its face so much smaller and turned
    the other way."""
    middle, angle = points.mean(dim=1, keepdim=True), math.radians(turn)
    cosine, sine = zoom * math.cos(angle), zoom * math.sin(angle)
    return middle + (points - middle) @ points.new_tensor([[cosine, sine], [-sine, cosine]])


def moved_towards(fit: FaceFit, landmarks: Tensor, side: int) -> tuple[FaceFit, Tensor]:
    """One fit in a picture of `side` px, moved, turned and scaled until its five points are about as near to
    `landmarks` (5, 2) as `TRUST` says; and these points (5, 2)."""
    points = FaceFitter.landmarks_5(fit, side)[0]
    span = (landmarks - landmarks.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    distance = (points - landmarks).norm(dim=1).mean() / span
    if distance <= TRUST:
        return fit, points
    wanted = torch.lerp(points, landmarks, float(1 - TRUST / distance))
    fit = move_fit(fit, similarity_between(points, wanted)[None], before=side, after=side)
    return fit, FaceFitter.landmarks_5(fit, side)[0]
