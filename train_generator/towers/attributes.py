"""A classifier of noisy latents, whose loss trains the base to draw the attributes that prompts name.

It learns from real latents in the same run; its own weights receive no gradient from drawn ones. A network that was
frozen before the run (`makeup_plugin.latent_recognizer`) was tried in its place for 9,000 steps and was fooled: named
attributes were judged present more often (smiles in 1.00 of the prompts instead of .82), but they were drawn smeared
and doubled, and the Fréchet distance by the judge's features rose from 100 to 192 (96 pictures, guidance 2). The
classifier is only a part of the training. The judge of the results (`eval.judges`) is another kind of network and sees
pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from faceclip.data.arrays import FaceArrays
from faceclip.training.towers.labels import visible_labels
from makeup_plugin.latent_recognizer import LatentTrunk


@dataclass(frozen=True, kw_only=True)
class Reading:
    """logits: (B, classes) of every attribute. features: of the blocks, (B, C, h, w) from fine to coarse."""

    logits: list[Tensor]
    features: list[Tensor]


class LatentClassifier(nn.Module):
    """Classifies attributes in noisy latents, at any noise level.

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
        """Reads noisy latents (B, C, s, s) at timesteps (B,)."""
        features = self.trunk(latents, timesteps)
        seen = self.neck(features[-1])
        return Reading(logits=[head(seen).float() for head in self.heads], features=features)

    def frozen(self, latents: Tensor, timesteps: Tensor) -> Reading:
        """Reads latents like `forward`, with a gradient for the latents but not for the weights."""
        weights = {name: value.detach() for name, value in self.named_parameters()}
        return functional_call(self, weights, (latents, timesteps))


def attribute_classes(arrays: FaceArrays, names: Sequence[str]) -> NDArray[np.int64]:
    """Returns the classes (N, A) of every portrait; −100 (`makeup_plugin.losses.IGNORED`) for invisible attributes."""
    labels = visible_labels(arrays, list(names))
    return np.stack([labels[name] for name in names], axis=1) if names else np.empty((len(arrays), 0), np.int64)


def named_attributes(arrays: FaceArrays, names: Sequence[str], kinds: int) -> NDArray[np.bool_]:
    """Returns whether the caption of each kind names each attribute, (N, kinds, A)."""
    return np.array(
        [[[name in caption.named for name in names] for caption in row[:kinds]] for row in arrays.captions], dtype=bool
    )
