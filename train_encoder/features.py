"""Frozen features of a split, cached on disk: identities, patch tokens, image and caption embeddings."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.data.cache import cached_features, module_hash
from faceclip.faces.align import align_face
from faceclip.runtime.progress import bar
from faceclip.text_tower import tokenize, used_tokens
from train_encoder.towers_io import Towers


@dataclass(frozen=True, kw_only=True)
class SplitFeatures:
    """Features of N portraits and of their captions (row `caption_start[i] + c` is caption c of portrait i)."""

    arrays: FaceArrays
    identity: NDArray[np.float32]  # (N, E) of the recognizer, unnormalized
    tokens: NDArray[np.float16]  # (N, P, W) patch tokens
    image: NDArray[np.float32]  # (N, C) CLIP image embedding, unnormalized
    caption: NDArray[np.float32]  # (M, C) CLIP text embedding of the plain captions, unnormalized
    caption_start: NDArray[np.int64]  # (N + 1,)


@torch.no_grad()
def split_features(directory: Path, split: str, towers: Towers, cache: Path) -> SplitFeatures:
    """Reads or builds the features of a split; the face crop is cut by the true landmarks."""
    arrays = load_arrays(directory, split)
    size, side = towers.recognizer.config.image_size, towers.image.config.image_size

    def faces(start: int, stop: int) -> dict[str, NDArray]:
        crops = [align_face(np.asarray(arrays.images[i]), np.array(arrays.landmarks_5[i], np.float64), size)
                 for i in range(start, stop)]  # fmt: skip
        features = towers.recognizer(_unit(np.stack(crops)))
        return {"identity": features.identity.numpy(), "tokens": features.tokens.to(torch.float16).numpy()}

    def images(start: int, stop: int) -> dict[str, NDArray]:
        return {"image": towers.image(_unit(np.asarray(arrays.images[start:stop]))).embedding.numpy()}

    texts = [caption.text for captions in arrays.captions for caption in captions]

    def captions(start: int, stop: int) -> dict[str, NDArray]:
        return {"caption": towers.text_g(used_tokens(tokenize(texts[start:stop]))).embedding.numpy()}

    def cached(name: str, tower: torch.nn.Module, preprocessing: str, count: int, build) -> dict[str, NDArray]:
        with bar(f"{split} {name}", count) as advance:
            return cached_features(
                cache, f"{split}-{name}", data_hash=arrays.content_hash, model_hash=module_hash(tower),
                preprocessing=preprocessing, count=count, build=build, progress=advance,
            )  # fmt: skip

    face = cached("faces", towers.recognizer, f"landmarks, {size} px", len(arrays), faces)
    picture = cached("images", towers.image, f"portrait, {side} px", len(arrays), images)
    text = cached("captions", towers.text_g, "plain", len(texts), captions)
    starts = np.cumsum([0] + [len(c) for c in arrays.captions])
    return SplitFeatures(
        arrays=arrays, identity=face["identity"], tokens=face["tokens"], image=picture["image"],
        caption=text["caption"], caption_start=starts,
    )  # fmt: skip


def _unit(images: NDArray[np.uint8]) -> torch.Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
