"""What noisy latents show: a network that reads latents at any noise level, for losses without decoding.

The squared error alone rewards the average of all faces that fit the noisy picture, and a smile or a thin rim is lost
in it. The gradient of a noise-aware classifier at sampling time is Dhariwal & Nichol 2021 (arXiv:2105.05233, section
4); here it is a loss of the training, so that sampling costs nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from faceclip.storage.loading import StrictlyLoaded
from makeup_plugin.diffusion import NoiseSchedule

GROUPS = 16
Reading = TypeVar("Reading")


class LatentTrunk(nn.Module):
    """Residual blocks of diffusers with a timestep embedding, each width at half the resolution of the one before.

    latents: (channels, side), side a multiple of 2 ** (len(widths) - 1); widths: multiples of 16.
    """

    def __init__(self, latents: tuple[int, int], widths: Sequence[int], *, depth: int = 1) -> None:
        super().__init__()
        channels, side = latents
        self.time = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embedding = TimestepEmbedding(widths[0], 4 * widths[0])
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        before = widths[0]
        for width in widths:
            blocks = [
                ResnetBlock2D(
                    in_channels=before if number == 0 else width,
                    out_channels=width,
                    temb_channels=4 * widths[0],
                    groups=GROUPS,
                )
                for number in range(depth)
            ]
            self.levels.append(nn.ModuleList(blocks))
            before = width
        self.features = before * (side // 2 ** (len(widths) - 1)) ** 2

    def forward(self, latents: Tensor, timesteps: Tensor) -> list[Tensor]:
        """Features (B, width, h, w) of every level for noisy latents (B, C, s, s) at timesteps (B,)."""
        time = self.embedding(self.time(timesteps).to(latents.dtype))
        hidden = self.stem(latents)
        features = []
        for position, blocks in enumerate(self.levels):
            if position:
                hidden = F.avg_pool2d(hidden, 2)
            for block in blocks:
                hidden = block(hidden, time)
            features.append(hidden)
        return features


@dataclass(frozen=True, kw_only=True)
class LatentReading:
    """identity: embeddings (B, E), unnormalized; attributes: name → logits (B, values), fp32; features: what the blocks
    see, (B, width, h, w) from fine to coarse."""

    identity: Tensor
    attributes: dict[str, Tensor]
    features: list[Tensor]


class LatentRecognizer(StrictlyLoaded, ModelMixin, ConfigMixin):
    """Noisy latents of a portrait → an embedding near the one that the face recognizer gives its person, and the
    attributes of the picture.

    It needs no landmarks: it learns where faces are. The noise levels are those of the scheduler it was trained with.
    vocabularies: attribute name → its values in order; read in the order of the names, which a stored configuration
    keeps.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 8,
        side: int = 16,
        widths: Sequence[int] = (64, 96, 128),
        depth: int = 2,
        embedding_dim: int = 256,
        vocabularies: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.trunk = LatentTrunk((channels, side), widths, depth=depth)
        width = self.trunk.features
        self.identity = nn.Linear(width, embedding_dim)
        self.attributes = nn.ModuleDict({k: nn.Linear(width, len(v)) for k, v in sorted((vocabularies or {}).items())})

    def forward(self, latents: Tensor, timesteps: Tensor) -> LatentReading:
        """What is seen in scaled noisy latents (B, C, s, s) at timesteps (B,)."""
        features = self.trunk(latents, timesteps)
        seen = F.silu(features[-1]).flatten(1)
        return LatentReading(
            identity=self.identity(seen).float(),
            attributes={name: head(seen).float() for name, head in self.attributes.items()},
            features=features,
        )


def read_estimates(
    reader: Callable[[Tensor, Tensor], Reading],
    schedule: NoiseSchedule,
    prediction: Tensor,
    noisy: Tensor,
    clean: Tensor,
    timesteps: Tensor,
    generator: torch.Generator,
) -> tuple[Reading, Reading]:
    """What a reader of noisy latents and timesteps sees in the latents that a prediction implies, and in the true ones
    `clean`, all (B, C, s, s).

    Both are noised again with the same noise (`NoiseSchedule.noise_again`); the second reading has no gradient.
    """
    estimate = schedule.clean(prediction.float(), noisy, timesteps)
    again, lower = schedule.noise_again(estimate, timesteps, generator)
    signal, _ = schedule.signal_and_sigma(lower, estimate)
    with torch.no_grad():
        true = reader(again + signal * (clean - estimate), lower)
    return reader(again, lower), true
