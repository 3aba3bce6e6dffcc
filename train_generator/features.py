"""What stage 2 caches: latents of the targets, and frozen features of every portrait as a reference."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.encoder import FaceCLIP
from faceclip.faces.align import CROP_SIZE, align_face
from faceclip.storage.cache import cached_features
from faceclip.storage.hashes import module_hash
from faceclip.storage.locks import locked_cache
from faceclip.towers.image import ImageTower
from faceclip.training.progress import bar
from train_generator.towers.latents import accelerator, cached_latents

CROP = 112  # px of the cached reference crops at least: the template's own size


@dataclass(frozen=True, kw_only=True)
class ReferenceFeatures:
    """N portraits: `arrays` at the size that is generated, latents (N, C, h, w), and reference features of the aligned
    face: identity (N, E), tokens (N, P, W) of the face encoder, image_tokens (N, T, V) of the image tower."""

    arrays: FaceArrays
    latents: NDArray[np.float32]
    identity: NDArray[np.float32]
    tokens: NDArray[np.float16]
    image_tokens: NDArray[np.float16]


def crop_size(encoder: FaceCLIP, image_tower: ImageTower, portrait: int) -> int:
    """Side in px of the reference crops of portraits of this side: as much as the recognizer and the image tower can
    read, or the pipeline's own crop where faces may be so large that a smaller one would be another picture."""
    side = max(CROP, encoder.face_encoder.config.image_size, image_tower.config.image_size)
    return side if portrait <= 2 * side else CROP_SIZE


def aligned_faces(arrays: FaceArrays, rows: Iterable[int], size: int) -> Tensor:
    """Crops (N, 3, size, size) in [0, 1] of some portraits by their true landmarks."""
    crops = [align_face(np.asarray(arrays.images[i]), np.array(arrays.landmarks_5[i], np.float64), size) for i in rows]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def reference_features(
    directory: Path, split: str, *, size: int, vae: Path, encoder: FaceCLIP, image_tower: ImageTower, cache: Path
) -> ReferenceFeatures:
    """Reads or builds the features of a split, on the accelerator where there is one; the towers lie on the CPU
    afterwards. Faces are cut from the stored portraits by their true landmarks."""
    large = load_arrays(directory, split, labelled=False)
    arrays = large if large.size == size else load_arrays(directory, split, size=size, labelled=False)
    side = crop_size(encoder, image_tower, large.size)
    towers = (encoder.face_encoder, image_tower)

    def build(start: int, stop: int) -> dict[str, NDArray]:
        device = accelerator()
        for tower in towers:
            tower.to(device)
        faces = aligned_faces(large, range(start, stop), side).to(device)
        face, image = encoder.face_features(faces), image_tower(faces)
        return {
            "identity": face.identity.cpu().numpy(),
            "tokens": face.tokens.to(torch.float16).cpu().numpy(),
            "image_tokens": image.tokens.to(torch.float16).cpu().numpy(),
        }

    model_hash = module_hash(encoder.face_encoder) + module_hash(image_tower)
    with locked_cache(cache), bar(f"{split} references", len(arrays)) as advance:
        found = cached_features(
            cache,
            f"{split}-references",
            data_hash=large.content_hash,
            model_hash=model_hash,
            preprocessing=f"landmarks, {side} px",
            count=len(arrays),
            build=build,
            progress=advance,
        )
    for tower in towers:
        tower.to("cpu")
    return ReferenceFeatures(arrays=arrays, latents=cached_latents(vae, arrays), **found)
