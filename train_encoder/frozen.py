"""Computes features of crops, pictures and captions by the frozen towers; stage 1 keeps them on disk."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.cpu.inference import cpu_inference
from faceclip.storage.hashes import module_hash
from faceclip.towers.placement import lying_on, named_device
from faceclip.towers.text import tokenize, tokenizer, used_tokens
from train_encoder.towers_io import Towers

Fields = dict[str, NDArray]


@dataclass(frozen=True, kw_only=True)
class FrozenTowers:
    """The towers that compute features on the device named `device`, `batch` rows at a time."""

    towers: Towers
    device: str
    batch: int

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Context in which the towers are on their device, compute without gradient, and use the fastest products.

        Raises ConfigError if the device does not exist.
        """
        place, towers = named_device(self.device), self.towers
        parts = (towers.recognizer, towers.image, towers.text_g)
        with lying_on(place, *parts), torch.no_grad(), cpu_inference(place):
            yield

    def hashes(self) -> dict[str, str]:
        """Returns the hash of the tower of each kind of features."""
        towers = {"faces": self.towers.recognizer, "images": self.towers.image, "captions": self.towers.text_g}
        return {kind: module_hash(tower) for kind, tower in towers.items()}

    def faces(self, crops: Sequence[NDArray[np.uint8]]) -> Fields:
        """Returns identity (N, E) float32, unnormalized, and tokens (N, P, W) float16 of aligned crops (S, S, 3),
        uint8."""
        recognizer = self.towers.recognizer
        identity = [np.empty((0, recognizer.config.embedding_dim), np.float32)]
        tokens = [np.empty((0, recognizer.grid**2, recognizer.config.width), np.float16)]
        for images in self._batches(crops):
            found = recognizer(images)
            identity.append(found.identity.float().cpu().numpy())
            tokens.append(found.tokens.to(torch.float16).cpu().numpy())
        return {"identity": np.concatenate(identity), "tokens": np.concatenate(tokens)}

    def images(self, pictures: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Fields:
        """Returns image (N, C) float32, unnormalized, of square pictures (S, S, 3), uint8."""
        found = [np.empty((0, self.towers.image.config.embed_dim), np.float32)]
        found += [self.towers.image(batch).embedding.float().cpu().numpy() for batch in self._batches(pictures)]
        return {"image": np.concatenate(found)}

    def captions(self, texts: Sequence[str]) -> tuple[Fields, int]:
        """Returns caption (N, C) float32, unnormalized, and the number of texts that are longer than the tower
        reads."""
        found, cut = [np.empty((0, self.towers.text_g.config.embed_dim), np.float32)], 0
        for start in range(0, len(texts), self.batch):
            batch = texts[start : start + self.batch]
            tokens = tokenize(batch)
            cut += sum(
                len(tokenizer().encode(batch[row])) + 2 > tokens.shape[1]
                for row in torch.nonzero(tokens[:, -1]).flatten().tolist()
            )
            ids = used_tokens(tokens).to(named_device(self.device))
            found.append(self.towers.text_g(ids).embedding.float().cpu().numpy())
        return {"caption": np.concatenate(found)}, cut

    def _batches(self, images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Iterator[torch.Tensor]:
        """Yields batches (B, 3, S, S) in [0, 1] on the device."""
        for start in range(0, len(images), self.batch):
            stacked = torch.from_numpy(np.stack(list(images[start : start + self.batch])))
            yield stacked.to(named_device(self.device)).permute(0, 3, 1, 2).float() / 255
