"""Training samples of stage 2: a reference picture of a person, a description, and the target picture."""

import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.data.masks import mask_number, mask_of
from faceclip.data.portraits import People
from faceclip.data.records import REGIONS, Phrase
from faceclip.encoder import TEMPLATE
from faceclip.errors import DataError
from faceclip.towers.text import tokenize
from faceclip.training import MapSource
from makeup_plugin.phrases import phrase_token_mask
from train_generator.config import DropoutConfig
from train_generator.reference_features import ReferenceFeatures

MAX_PHRASES = 6


class GenerationSource(MapSource):
    """A sample is a target portrait, one of its captions, and a reference of the same person.

    The reference is another picture of the person. For a share `same_picture` of the samples, and for persons with one
    picture, the target is its own reference. pair_cosine: smallest and largest cosine of the two faces, if the person
    has such a pair.

    Fields: latents (C, h, w), shading (3, H, W) uint8, landmarks (5, 2) px, target_identity (E,), time_ids (6,) and the
    number person () of the target; face_tokens (P, W), face_identity (E,) and image_tokens (T, V) of the reference;
    tokens (77,); phrase_masks (M, H, W) uint8 and phrase_tokens (M, 77) bool of the described regions; keep_text,
    keep_face, keep_identity and keep_shading, bool. Raises DataError if all persons have a single picture and
    `same_picture` is below 1.
    """

    def __init__(
        self,
        features: ReferenceFeatures,
        dropout: DropoutConfig,
        *,
        same_picture: float,
        pair_cosine: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        self.features, self.dropout, self.same_picture = features, dropout, same_picture
        self.pair_cosine = pair_cosine
        self.people = People(np.asarray(features.arrays.identity))
        self.alone = self.people.with_fewer(2)
        if same_picture < 1 and len(self.alone) == len(self.people):
            raise DataError(
                f"{features.arrays.names[self.alone[0]]}, like everyone here, has a single picture: stage 2 takes "
                "another one as the reference; give more, or set same_picture=1, where every reference is the target "
                "itself"
            )

    def __len__(self) -> int:
        return len(self.features.arrays)

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """Numbers (N,) that are equal for portraits of the same shape; None if all have the same."""
        return self.features.groups

    def get(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray | torch.Tensor | int]:
        features, arrays = self.features, self.features.arrays
        reference = index
        if rng.random() >= self.same_picture:
            reference = self._another(index, rng)
        choice = arrays.captions[index]
        caption = choice[int(rng.integers(len(choice)))]
        draw = rng.random(5)
        everything = draw[0] < self.dropout.all
        alone = not everything and draw[0] < self.dropout.all + self.dropout.reference  # words without a reference
        keep_text = not everything and (alone or draw[1] >= self.dropout.text)
        keep_face = not everything and not alone and draw[2] >= self.dropout.face
        text = caption.text if keep_text else ""
        prefix = TEMPLATE if keep_face else ""
        shading = np.ascontiguousarray(np.asarray(arrays.shading[index]).transpose(2, 0, 1))
        masks = np.zeros((MAX_PHRASES, *shading.shape[1:]), np.uint8)
        words = torch.zeros(MAX_PHRASES, 77, dtype=torch.bool)
        if keep_text:
            described = [p for p in caption.phrases if p.region and not self._absent(p, index)][:MAX_PHRASES]
            # Each access decodes a map. `load_arrays` ensures that the regions and masks of phrases exist.
            regions = np.asarray(arrays.regions[index]) if described and arrays.regions is not None else None
            given = np.asarray(arrays.masks[index]) if described and arrays.masks is not None else None
            for number, phrase in enumerate(described):
                masks[number] = _mask(phrase, regions, given)
                words[number] = phrase_token_mask(text, phrase.start, phrase.end, prefix=prefix)
        return {
            "latents": np.array(features.latents[index]),
            "shading": shading,
            "landmarks": np.array(arrays.landmarks_5[index], np.float32),
            "target_identity": np.array(features.identity[index]),
            "time_ids": features.time_ids(index),
            "person": int(features.arrays.identity[index]),
            "face_tokens": np.array(features.tokens[reference]),
            "face_identity": np.array(features.identity[reference]),
            "image_tokens": np.array(features.image_tokens[reference]),
            "tokens": tokenize(prefix + text)[0],
            "phrase_masks": masks,
            "phrase_tokens": words,
            "keep_text": keep_text,
            "keep_face": keep_face,
            "keep_identity": not everything and not alone and bool(draw[3] >= self.dropout.identity),
            "keep_shading": not alone and bool(draw[4] >= self.dropout.shading),
        }

    def _another(self, index: int, rng: np.random.Generator) -> int:
        """Draws another picture of the person, preferably with a cosine of the faces within `pair_cosine`; returns
        `index` if there is no other picture."""
        others = self.people.others(index)
        if not len(others):
            return index
        if self.pair_cosine != (-1.0, 1.0):
            low, high = self.pair_cosine
            identity = np.stack([self.features.identity[row] for row in (index, *others.tolist())]).astype(np.float64)
            identity /= np.linalg.norm(identity, axis=1, keepdims=True)
            cosines = identity[1:] @ identity[0]
            near = others[(cosines >= low) & (cosines <= high)]
            others = near if len(near) else others
        return int(rng.choice(others))

    def _absent(self, phrase: Phrase, index: int) -> bool:
        """Returns whether a phrase names something absent ("no hat"), whose words no region shows."""
        arrays = self.features.arrays
        return any(arrays.vocabularies[n][int(arrays.attributes[n][index])] == "none" for n in phrase.attributes)


def _mask(phrase: Phrase, regions: NDArray[np.uint8] | None, given: NDArray[np.uint8] | None) -> NDArray[np.bool_]:
    """Returns the mask (S, S) of a phrase, from the portrait's region map (S, S) or its given masks (S, S, 3)."""
    number = mask_number(phrase.region)
    if number is None:
        assert regions is not None
        return regions == REGIONS.index(phrase.region)
    assert given is not None
    return mask_of(given, number)
