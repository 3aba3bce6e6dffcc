"""Aligns the base's features with those of a frozen recognizer (REPA: Yu et al. 2024, arXiv:2410.06940).

A recognizer's patch tokens belong to places of the aligned face. They are interpolated at the places of the cells of
the UNet's middle block; cells outside of the aligned crop have no target.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from faceclip.data.arrays import FaceArrays
from faceclip.data.blocks import kept_rows
from faceclip.faces.align import apply_affine, similarity_transform
from faceclip.storage.hashes import module_hash
from faceclip.storage.shards import ShardedArray
from faceclip.towers.face import FaceViT
from train_generator.reference_features import aligned_faces


class Alignment(nn.Module):
    """Projects features of a UNet, `channels` wide, to a recognizer's tokens, `width` wide."""

    def __init__(self, channels: int, width: int, hidden: int = 384) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, width, 1))

    def forward(self, features: Tensor, targets: Tensor, seen: Tensor) -> Tensor:
        """Returns 1 − the mean cosine, in [0, 2], of features (B, C, s, s) and targets (B, W, s, s) over the cells with
        `seen` (B, s, s); 0 if there are none."""
        cosine = F.cosine_similarity(self.project(features).float(), targets.float(), dim=1)
        return ((1 - cosine) * seen).sum() / seen.sum().clamp(min=1)


@contextmanager
def middle_features(unet: nn.Module) -> Iterator[list[Tensor]]:
    """Yields a list to which every call of the UNet in the context appends its middle block's output, (B, C, s, s)."""
    found: list[Tensor] = []
    handle = unet.mid_block.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()


def portrait_tokens(arrays: FaceArrays, recognizer: FaceViT, name: str) -> ShardedArray:
    """Returns the recognizer's patch tokens (N, P, W) float16 of portraits, cut by true landmarks; cached beside the
    data."""
    size = recognizer.config.image_size

    def build(start: int, stop: int) -> dict[str, NDArray]:
        with torch.inference_mode():
            tokens = recognizer(aligned_faces(arrays, range(start, stop), size)).tokens
        return {"tokens": tokens.to(torch.float16).numpy()}

    facts = {
        "data": arrays.content_hash,
        "model": module_hash(recognizer),
        "preprocessing": f"landmarks, {size} px of portraits of {arrays.size} px",
    }
    return kept_rows(arrays.cache, f"{name}-tokens", facts, len(arrays), build)["tokens"]


def tokens_in_place(
    tokens: Tensor, landmarks: Tensor, *, portrait: int, cells: int, crop: int, patch: int
) -> tuple[Tensor, Tensor]:
    """Interpolates the tokens (B, P, W) of aligned crops at the cells × cells places of portraits.

    landmarks (B, 5, 2): px of the portraits, which have `portrait` px. The crops have `crop` px and patches of `patch`
    px. Returns targets (B, W, cells, cells), and (B, cells, cells) float, 1 for cells within the patches.
    """
    count, grid = len(tokens), round(tokens.shape[1] ** 0.5)
    axis = (torch.arange(cells, device=tokens.device) + 0.5) * (portrait / cells) - 0.5
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    places = torch.stack([columns, rows], dim=-1).reshape(1, cells**2, 2)
    inside = apply_affine(similarity_transform(landmarks.float(), crop), places)  # px of the crop
    places = ((inside + 0.5) * (2 / (grid * patch)) - 1).reshape(count, cells, cells, 2)
    maps = tokens.float().transpose(1, 2).reshape(count, -1, grid, grid)
    targets = F.grid_sample(maps, places, mode="bilinear", padding_mode="border", align_corners=False)
    return targets, (places.abs() <= 1).all(dim=-1).float()
