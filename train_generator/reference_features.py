"""Computes and caches what stage 2 reads: latents of targets, and frozen features of portraits as references."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.data.blocks import kept_rows
from faceclip.encoder import FaceCLIP
from faceclip.faces.align import CROP_SIZE, align_face
from faceclip.storage.hashes import module_hash
from faceclip.storage.shards import ShardedArray
from faceclip.towers.image import ImageTower
from faceclip.towers.placement import accelerator, lying_on
from train_generator.precision import read_references
from train_generator.streamed.portraits import Latents, StreamedPortraits
from train_generator.towers.latents import cached_latents

CROP = 112  # px, smallest side of cached reference crops: that of the alignment template


@dataclass(frozen=True, kw_only=True)
class ReferenceFeatures:
    """Features of N portraits.

    arrays: portraits at the generated size. latents: (C, h, w) float32 of each. identity (N, E) float32 and tokens
    (N, P, W) float16: of the aligned faces by the face encoder. image_tokens (N, T, V) float16: by the image tower.
    """

    arrays: FaceArrays | StreamedPortraits
    latents: ShardedArray | Latents
    identity: ShardedArray
    tokens: ShardedArray
    image_tokens: ShardedArray

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """Numbers (N,) that are equal for portraits of the same shape; None if all have the same."""
        return self.arrays.groups if isinstance(self.arrays, StreamedPortraits) else None

    def time_ids(self, row: int) -> NDArray[np.float32]:
        """Returns SDXL's size conditioning (6,): the true size of the picture, the crop's place in it, and the
        generated size. Data that do not know the first two count as uncropped pictures of the generated size, like
        renders."""
        arrays = self.arrays
        if isinstance(arrays, StreamedPortraits):
            return np.array(arrays.sizes[row])
        known = (arrays.size, arrays.size, 0, 0) if arrays.sizes is None else arrays.sizes[row]
        return np.array([*known, arrays.size, arrays.size], np.float32)


def crop_size(encoder: FaceCLIP, image_tower: ImageTower, portrait: int) -> int:
    """Returns the side in px of the reference crops of portraits with this side.

    It is the larger input size of recognizer and image tower; for portraits of more than twice that side it is the
    pipeline's own crop size, because a smaller crop of a large face would differ from what the pipeline sees.
    """
    side = max(CROP, encoder.face_encoder.config.image_size, image_tower.config.image_size)
    return side if portrait <= 2 * side else CROP_SIZE


def aligned_faces(arrays: FaceArrays, rows: Iterable[int], size: int) -> Tensor:
    """Returns crops (N, 3, size, size) in [0, 1] of these portraits, cut by true landmarks."""
    crops = [align_face(np.asarray(arrays.images[i]), np.array(arrays.landmarks_5[i], np.float64), size) for i in rows]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def reference_features(
    directory: Path,
    split: str,
    *,
    size: int,
    vae: Path,
    encoder: FaceCLIP,
    image_tower: ImageTower,
    cache: Path,
) -> ReferenceFeatures:
    """Reads or builds the features of a split, on the accelerator if there is one; the towers are on the CPU
    afterwards.

    size: side of the generated pictures in px. Faces are cut from the stored portraits by true landmarks.
    """
    large = load_arrays(directory, split, labelled=False)
    arrays = large if large.size == size else load_arrays(directory, split, size=size, labelled=False)
    side = crop_size(encoder, image_tower, large.size)
    towers, place = (encoder.face_encoder, image_tower), accelerator()

    def build(start: int, stop: int) -> dict[str, NDArray]:
        faces = aligned_faces(large, range(start, stop), side).to(place)
        return read_references(encoder, image_tower, faces)

    facts = {
        "data": large.content_hash,
        "models": [module_hash(tower) for tower in towers],
        "preprocessing": f"landmarks, {side} px",
    }
    found = kept_rows(cache, f"{split}-references", facts, len(arrays), build, around=lambda: lying_on(place, *towers))
    return ReferenceFeatures(arrays=arrays, latents=cached_latents(vae, arrays), **found)
