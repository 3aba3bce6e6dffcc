"""Training samples of the base: latents of portraits with one of their captions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceclip.data.arrays import FaceArrays
from faceclip.storage.shards import ShardedArray
from faceclip.towers.text import tokenize
from faceclip.training import MapSource
from faceclip.training.towers.labels import JUDGED
from train_generator.towers.attributes import attribute_classes, named_attributes
from train_generator.towers.latents import cached_latents
from train_generator.towers.regions import region_weights, weight_table

# Probability of each kind of caption: short, long, emotion, both.
CAPTION_ODDS = (0.2, 0.35, 0.1, 0.35)


def tokenized_captions(arrays: FaceArrays) -> NDArray[np.int32]:
    """Returns the token ids (N, kinds, 77) of the captions of every portrait, one of each kind."""
    kinds = len(CAPTION_ODDS)
    texts = [caption.text for row in arrays.captions for caption in row[:kinds]]
    unique, place = np.unique(np.array(texts), return_inverse=True)
    tokens = tokenize(unique.tolist()).numpy().astype(np.int32)
    return tokens[place].reshape(len(arrays), kinds, -1)


class LatentSource(MapSource):
    """Cached latents with a random caption of their portrait as token ids; a share `text_dropout` has the empty text.

    face_tokens (N, P, W): tokens of a recognizer; batches then contain them and the five points (B, 5, 2) px.
    """

    def __init__(
        self,
        arrays: FaceArrays,
        vae: Path,
        *,
        text_dropout: float,
        weights: Mapping[str, float] | None = None,
        face_tokens: NDArray[np.float16] | ShardedArray | None = None,
    ) -> None:
        self.arrays, self.latents = arrays, cached_latents(vae, arrays)
        assert arrays.regions is not None  # of renders
        self.regions = arrays.regions
        self.weights = weight_table(weights or {})
        self.captions = tokenized_captions(arrays)
        self.classes = attribute_classes(arrays, JUDGED)
        self.named = named_attributes(arrays, JUDGED, len(CAPTION_ODDS))
        self.empty = tokenize("")[0].numpy().astype(np.int32)
        self.text_dropout = text_dropout
        self.face_tokens = face_tokens

    def __len__(self) -> int:
        return len(self.latents)

    def get_batch(self, indices: list[int], rngs: list[np.random.Generator]) -> dict[str, Tensor]:
        """Returns latents (B, C, s, s), weights (B, 1, s, s) of their cells, tokens (B, 77), classes (B, A) of the
        judged attributes, and named (B, A), whether the text names them."""
        tokens, named = [], []
        for index, rng in zip(indices, rngs, strict=True):
            dropped = rng.random() < self.text_dropout
            kind = rng.choice(len(CAPTION_ODDS), p=CAPTION_ODDS)
            tokens.append(self.empty if dropped else self.captions[index, kind])
            named.append(self.named[index, kind] & (not dropped))
        rows = np.asarray(indices)
        batch = {
            "latents": torch.from_numpy(self.latents[rows]),
            "weights": region_weights(self.regions[rows], self.weights, side=self.latents.shape[-1]),
            "tokens": torch.from_numpy(np.stack(tokens)).long(),
            "classes": torch.from_numpy(self.classes[rows]),
            "named": torch.from_numpy(np.stack(named)),
        }
        if self.face_tokens is not None:
            batch["face_tokens"] = torch.from_numpy(self.face_tokens[rows])
            batch["landmarks"] = torch.from_numpy(self.arrays.landmarks_5[rows])
        return batch
