"""Whose face noisy latents show: networks that read latents at any noise level, for losses without decoding."""

from collections.abc import Sequence

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

GROUPS = 16


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
            blocks = [ResnetBlock2D(in_channels=before if number == 0 else width, out_channels=width,
                                    temb_channels=4 * widths[0], groups=GROUPS) for number in range(depth)]  # fmt: skip
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


class LatentRecognizer(ModelMixin, ConfigMixin):
    """Noisy latents of a portrait → an embedding near the one that the face recognizer gives its person.

    It needs no landmarks: it learns where faces are. The noise levels are those of the scheduler it was trained with.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 8,
        side: int = 16,
        widths: Sequence[int] = (64, 96, 128),
        depth: int = 2,
        embedding_dim: int = 256,
    ) -> None:
        super().__init__()
        self.trunk = LatentTrunk((channels, side), widths, depth=depth)
        self.head = nn.Sequential(nn.SiLU(), nn.Flatten(), nn.Linear(self.trunk.features, embedding_dim))

    def forward(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Embeddings (B, embedding_dim), unnormalized, of scaled noisy latents (B, C, s, s) at timesteps (B,)."""
        return self.head(self.trunk(latents, timesteps)[-1]).float()
