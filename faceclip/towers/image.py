"""CLIP image tower: open_clip's `VisionTransformer`, with the penultimate tokens that identity channels read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from faceclip.cpu.sequences import project_at_once
from faceclip.errors import ConfigError
from faceclip.storage.loading import StrictlyLoaded


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """embedding (B, embed_dim) unnormalized; tokens (B, 1+P, width) after the last block but one."""

    embedding: Tensor
    tokens: Tensor


class ImageTower(StrictlyLoaded, ModelMixin, ConfigMixin):
    """Image → joint image-text embedding and patch tokens, by open_clip's own transformer.

    ViT-H-14 is image_size 224, patch_size 14, width 1280, 32 layers, 16 heads, embed_dim 1024. `mean` and `std` of the
    three channels belong to the weights: open_clip trained most on OpenAI's, some on others. Raises ConfigError when
    they are not three, or a std is not positive.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 14,
        width: int = 1280,
        layers: int = 32,
        heads: int = 16,
        embed_dim: int = 1024,
        mlp_ratio: float = 4.0,
        quick_gelu: bool = False,
        mean: Sequence[float] = OPENAI_DATASET_MEAN,
        std: Sequence[float] = OPENAI_DATASET_STD,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(f"mean and std must be three numbers each, std positive, got {mean} and {std}")
        self.tower = VisionTransformer(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            layers=layers,
            heads=heads,
            mlp_ratio=mlp_ratio,
            output_dim=embed_dim,
            act_layer=QuickGELU if quick_gelu else nn.GELU,
        )
        project_at_once(self.tower)

    def forward(self, images: Tensor) -> ImageFeatures:
        """Encodes RGB images (B, 3, H, W) in [0, 1]; resizing (bicubic) and normalization happen here.

        Raises ValueError for another number of dimensions or channels.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected RGB images (B, 3, H, W) in [0, 1], got shape {tuple(images.shape)}")
        size = self.config.image_size
        if images.shape[-2:] != (size, size):
            resized = F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)
            images = resized.clamp(0, 1)
        mean, std = (
            torch.tensor(values, dtype=images.dtype, device=images.device).view(3, 1, 1)
            for values in (self.config.mean, self.config.std)
        )
        x = self.tower._embeds((images - mean) / std)
        *blocks, last = self.tower.transformer.resblocks
        for block in blocks:
            x = block(x)
        pooled, _ = self.tower._pool(last(x))
        return ImageFeatures(embedding=pooled @ self.tower.proj, tokens=x)
