"""Prompts that are followed: a classifier of noisy latents tells the base which named attributes it fails to draw.

The squared error alone rewards the average of all faces that fit the noisy picture, and a smile or a thin rim is lost
in it. The classifier learns from real latents, in the same run; its own weights see no gradient of drawn ones.
It is a part of the training alone and never the judge of the result (`eval.judge`), which is of another kind and sees
pictures. The gradient of a noise-aware classifier at sampling time is Dhariwal & Nichol 2021 (arXiv:2105.05233, section
4); here it is a loss, so that sampling costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from faceclip.data.arrays import FaceArrays
from makeup_plugin.latent_recognizer import LatentTrunk
from train_encoder.towers.judge import visible_labels

IGNORED = -100  # class of what is not to be told, as in `F.cross_entropy`


@dataclass(frozen=True, kw_only=True)
class Reading:
    """logits: of every attribute (B, classes); features: what the blocks see, (B, C, h, w) from fine to coarse."""

    logits: list[Tensor]
    features: list[Tensor]


class LatentClassifier(nn.Module):
    """Noisy latents → attributes, at any noise level.

    latents: (channels, side), side a multiple of 4; classes: number of values of each attribute.
    """

    def __init__(
        self, latents: tuple[int, int], classes: Sequence[int], *, widths: Sequence[int] = (64, 128, 192)
    ) -> None:
        super().__init__()
        self.trunk = LatentTrunk(latents, widths)
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(self.trunk.features, 256), nn.SiLU())
        self.heads = nn.ModuleList(nn.Linear(256, count) for count in classes)

    def forward(self, latents: Tensor, timesteps: Tensor) -> Reading:
        """What is seen in noisy latents (B, C, s, s) at timesteps (B,)."""
        features = self.trunk(latents, timesteps)
        seen = self.neck(features[-1])
        return Reading(logits=[head(seen).float() for head in self.heads], features=features)

    def frozen(self, latents: Tensor, timesteps: Tensor) -> Reading:
        """The same with a gradient to the latents alone."""
        weights = {name: value.detach() for name, value in self.named_parameters()}
        return functional_call(self, weights, (latents, timesteps))


def attribute_classes(arrays: FaceArrays, names: Sequence[str]) -> NDArray[np.int64]:
    """Classes (N, A) of every portrait; `IGNORED` where an attribute cannot be seen."""
    labels = visible_labels(arrays, list(names))
    return np.stack([labels[name] for name in names], axis=1)


def named_attributes(arrays: FaceArrays, names: Sequence[str], kinds: int) -> NDArray[np.bool_]:
    """(N, kinds, A): whether the caption of each kind names the attribute."""
    return np.array(
        [[[name in caption.named for name in names] for caption in row[:kinds]] for row in arrays.captions], dtype=bool
    )


def attribute_loss(logits: Sequence[Tensor], classes: Tensor) -> Tensor:
    """Cross-entropy per attribute, averaged over all (B, A) classes that are not `IGNORED`; zero without any."""
    errors = torch.stack(
        [F.cross_entropy(one, classes[:, a], ignore_index=IGNORED, reduction="none") for a, one in enumerate(logits)],
        dim=1,
    )
    return errors.sum() / (classes != IGNORED).sum().clamp(min=1)


def feature_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Mean over blocks and cells of the squared distance between features (B, C, h, w) of unit length along C, as in
    LPIPS (Zhang et al. 2018, arXiv:1801.03924, eq. 1) without its learned weights; in [0, 4]."""
    return torch.stack(
        [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(dim=1).mean()
            for a, b in zip(first, second, strict=True)
        ]
    ).mean()
