"""Face recognizer: the vision transformer of insightface's arcface_torch, at any size.

Parameter names are those of `vit_l_dp005_mask_005`, so that published weights load without renaming. No class
token: every patch token, in order, goes through one linear layer into the identity embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from faceclip.storage.loading import StrictlyLoaded


@dataclass(frozen=True, kw_only=True)
class FaceFeatures:
    """What the face encoder knows of B faces: patch tokens (B, P, width), identity (B, E) unnormalized; second: what
    the second branch's own face encoder knows of them, where there is one."""

    tokens: Tensor
    identity: Tensor
    second: "FaceFeatures | None" = None


def resized_crops(images: Tensor, size: int) -> Tensor:
    """Returns RGB crops (B, 3, H, W) in [0, 1] at (size, size), bilinear as published; those of that size as they are.

    Raises ValueError for another number of dimensions or channels.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected RGB crops (B, 3, H, W) in [0, 1], got shape {tuple(images.shape)}")
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False)


def sine_positions(grid: int, width: int) -> Tensor:
    """Returns two-dimensional sines (grid², width) in [−1, 1] (Vaswani et al. 2017, as in MoCo v3), row by row."""
    axis = torch.arange(grid, dtype=torch.float32)
    rates = 100 ** (-torch.arange(-(-width // 4), dtype=torch.float32) / (width / 4))
    waves = torch.cat([(axis[:, None] * rates).sin(), (axis[:, None] * rates).cos()], dim=1)
    rows = waves[:, None].expand(grid, grid, -1)
    return torch.cat([rows, rows.transpose(0, 1)], dim=-1).flatten(0, 1)[:, :width]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu6(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.mlp = _Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _PatchEmbed(nn.Module):
    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class FaceViT(StrictlyLoaded, ModelMixin, ConfigMixin):
    """Aligned face crop → patch tokens and identity embedding.

    Published size: 112 px, patch 9 (12 × 12 tokens; the last 4 px are not seen), width 768, 24 blocks, 8
    heads, 512-d. `mask_ratio`: share of tokens hidden from the blocks in training (the released model used
    .05).
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 112,
        patch_size: int = 9,
        width: int = 768,
        depth: int = 24,
        heads: int = 8,
        embedding_dim: int = 512,
        mlp_ratio: float = 4.0,
        mask_ratio: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.grid = image_size // patch_size
        count = self.grid**2
        self.patch_embed = _PatchEmbed(patch_size, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, count, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(_Block(width, heads, int(width * mlp_ratio)) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(width * count, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim, eps=2e-5),
        )
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # Input variance is kept at any width; the usual .02 is that only near width 2500 and stalls small ones.
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if name.endswith((".attn.proj", ".mlp.fc2")):
                    module.weight.data.mul_((2 * depth) ** -0.5)  # the residual stream keeps its size (GPT-2)
        self._start_patches()
        nn.init.normal_(self.mask_token, std=0.02)

    @torch.no_grad()
    def _start_patches(self) -> None:
        """Starts patch embedding and positions of like size, from which a small model on few images learns at once.

        Pixels in [0, 1] carry a large mean: weights start as if they met (pixel − ½) / ¼. Positions start as two
        dimensional sines; with the usual noise of .02 they would drown in it.
        """
        conv, width = self.patch_embed.proj, self.pos_embed.shape[-1]
        conv.weight.mul_(4)
        assert conv.bias is not None  # this convolution has one
        conv.bias.copy_(-0.5 * conv.weight.sum(dim=(1, 2, 3)))
        self.pos_embed.copy_(0.5 * sine_positions(self.grid, width)[None])

    def forward(self, images: Tensor) -> FaceFeatures:
        """Encodes RGB crops (B, 3, H, W) in [0, 1] (not normalized, as published); any size is resized.

        Raises ValueError for another number of dimensions or channels.
        """
        images = resized_crops(images, self.config.image_size)
        x = self.patch_embed(images) + self.pos_embed
        hidden = self._hidden_tokens(x) if self.training and self.config.mask_ratio > 0 else None
        if hidden is not None:
            order, kept = hidden
            x = x.gather(1, order[:, :kept, None].expand(-1, -1, x.shape[-1]))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if hidden is not None:
            # Hidden places get the mask token only now: the blocks never spend work on them (He et al. 2022,
            # MAE).
            filler = self.mask_token.to(x.dtype).expand(x.shape[0], order.shape[1] - kept, -1)
            back = order.argsort(dim=1)[..., None].expand(-1, -1, x.shape[-1])
            x = torch.cat([x, filler], dim=1).gather(1, back)
        return FaceFeatures(tokens=x, identity=self.feature(x.flatten(1)))

    def _hidden_tokens(self, x: Tensor) -> tuple[Tensor, int]:
        """Returns a random order of each image's tokens and how many of its first ones the blocks may see."""
        order = torch.rand(x.shape[:2], device=x.device).argsort(dim=1)
        return order, int(x.shape[1] * (1 - self.config.mask_ratio))
