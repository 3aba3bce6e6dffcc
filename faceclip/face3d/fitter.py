"""From one aligned face crop to the 3D channel's parameters, and from them to a shading map."""

from collections.abc import Sequence

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
from faceclip.faces.align import CROP_SIZE, align_face, invert_affine, similarity_transform

POSE, CAMERA, LIGHT = 3, 4, 27


class FaceFitter(ModelMixin, ConfigMixin):
    """Aligned crop (the canonical 448 px crop, or a smaller view of it) → `FaceFit` in the frame of the crop.

    A residual network (He et al. 2016) regresses all parameters at once, standardized by `mean` and
    `deviation`; the camera's scale and distance as logarithms. `fit` and `shading` go from whole portraits to
    shading maps.
    """

    @register_to_config
    def __init__(
        self,
        shape_size: int = 48,
        expression_size: int = 21,
        image_size: int = 64,
        widths: Sequence[int] = (32, 64, 128, 192),
        hidden: int = 384,
    ) -> None:
        super().__init__()
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
        self.trunk = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        side = image_size // 2 ** len(widths)
        count = shape_size + expression_size + POSE + CAMERA + LIGHT
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * side * side, hidden), nn.ReLU())
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
        values = self.head(self.neck(self.trunk(crops * 2 - 1))).float()
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
    def fit(self, images: Sequence[NDArray[np.uint8]], landmarks: NDArray[np.floating]) -> FaceFit:
        """Fit faces with `landmarks` (B, 5, 2) px in `images` (uint8 RGB, any sizes), in the frame of a portrait.

        A square image is the portrait. Of any other image only the face counts: its pose is kept and the face is
        framed as the training portraits are (camera of scale 1 in the middle). The fit is on the CPU.
        """
        points = torch.as_tensor(np.asarray(landmarks), dtype=torch.float32)
        crops = [align_face(image, p) for image, p in zip(images, points.double().numpy(), strict=True)]
        batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(self.device, self.dtype) / 255
        cropped = self(batch)
        cropped = FaceFit(**{name: value.float().cpu() for name, value in vars(cropped).items()})
        back = invert_affine(similarity_transform(points))
        rows = []
        for row, image in enumerate(images):
            one = FaceFit(**{name: value[row : row + 1] for name, value in vars(cropped).items()})
            height, width = image.shape[:2]
            moved = move_fit(one, back[row : row + 1], before=CROP_SIZE, after=min(height, width))
            if height != width:
                camera = moved.camera.clone()
                camera[:, :3] = torch.tensor([1.0, 0.0, 0.0])
                moved = FaceFit(**(vars(moved) | {"camera": camera}))
            rows.append(moved)
        return FaceFit(**{name: torch.cat([getattr(row, name) for row in rows]) for name in vars(cropped)})

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
        head, found = default_head(), []
        for row in range(len(fit.pose)):
            vertices = head.vertices(fit.shape[row].numpy(), fit.expression[row].numpy())
            posed = pose_vertices(vertices, head.head_weight, tuple(fit.pose[row].tolist()))
            points = project(posed[head.landmarks_68], Camera.from_array(fit.camera[row].numpy()), size)
            found.append(points[:, :2])
        return torch.from_numpy(np.stack(found)).float()
