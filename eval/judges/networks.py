"""Evaluation-only networks: the attribute judge and a second face recognizer.

Neither is ever used to train or to condition the generator; they only look at its images. Both are residual
networks of torchvision's blocks (He et al. 2016), another family than the transformers they check on.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from faceclip.storage.loading import StrictlyLoaded

POSE_SCALE = 45.0  # degrees per unit of the pose head, so that its targets have about unit size


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the judge sees in B images: logits per attribute, pose and landmarks, and the features it tells them by."""

    attributes: dict[str, Tensor]  # name → logits (B, values), in the order of the judge's vocabularies
    pose: Tensor  # (B, 3) yaw, pitch, roll in degrees, the data set's convention
    landmarks: Tensor  # (B, 5, 2) pixels of the given images
    features: Tensor  # (B, hidden)


def _square(images: Tensor, size: int) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected RGB images (B, 3, H, W) in [0, 1], got shape {tuple(images.shape)}")
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return images * 2 - 1


def _trunk(widths: Sequence[int]) -> nn.Sequential:
    """Returns a stem and one residual block per further width, each halving the resolution."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(inplace=True),
    ]
    for before, after in itertools.pairwise(widths):
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after))
        layers.append(BasicBlock(before, after, stride=2, downsample=shortcut))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


class Judge(StrictlyLoaded, ModelMixin, ConfigMixin):
    """Portrait → attributes, head pose and five landmarks.

    vocabularies: attribute name → its values in order; image_size: px the portrait is resized to.
    """

    @register_to_config
    def __init__(
        self,
        vocabularies: Mapping[str, Sequence[str]],
        image_size: int = 64,
        widths: Sequence[int] = (32, 64, 128, 192),
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self.trunk = _trunk(widths)
        side = image_size // 2 ** len(widths)
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * side * side, hidden), nn.ReLU())
        self.attributes = nn.ModuleDict({k: nn.Linear(hidden, len(v)) for k, v in vocabularies.items()})
        self.pose = nn.Linear(hidden, 3)
        self.landmarks = nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Judgement:
        """Judges RGB images (B, 3, H, W) in [0, 1] of any size."""
        height, width = images.shape[-2:]
        features = self.neck(self.trunk(_square(images, self.config.image_size)))
        # Landmarks are predicted as fractions of the image, around its center.
        points = (self.landmarks(features).float().unflatten(1, (5, 2)) + 1) / 2
        extent = torch.tensor([width, height], dtype=points.dtype, device=points.device)
        return Judgement(
            attributes={name: head(features).float() for name, head in self.attributes.items()},
            pose=self.pose(features).float() * POSE_SCALE,
            landmarks=points * extent - 0.5,
            features=features.float(),
        )

    @torch.no_grad()
    def values(self, images: Tensor) -> dict[str, list[str]]:
        """Returns the most likely value of every attribute for each of B images."""
        logits = self(images).attributes
        vocabularies = self.config.vocabularies
        return {k: [vocabularies[k][i] for i in v.argmax(dim=1).tolist()] for k, v in logits.items()}


class SecondRecognizer(StrictlyLoaded, ModelMixin, ConfigMixin):
    """Aligned crop → identity embedding, by a residual network that training of the generator never sees."""

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        widths: Sequence[int] = (32, 64, 128, 192),
        embedding_dim: int = 128,
    ) -> None:
        super().__init__()
        self.trunk = _trunk(widths)
        side = image_size // 2 ** len(widths)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(widths[-1] * side * side, embedding_dim), nn.BatchNorm1d(embedding_dim)
        )

    def forward(self, crops: Tensor) -> Tensor:
        """Returns embeddings (B, embedding_dim), unnormalized, of aligned RGB crops (B, 3, H, W) in [0, 1]."""
        return self.head(self.trunk(_square(crops, self.config.image_size))).float()
