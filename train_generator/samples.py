"""Training samples of stage 2: a person (from another picture), a description, and the picture to make."""

from collections.abc import Sequence

import numpy as np
import torch

from faceclip.data.portraits import People
from faceclip.data.records import REGIONS, Phrase
from faceclip.encoder import TEMPLATE
from faceclip.errors import DataError
from faceclip.towers.text import tokenize
from faceclip.training import MapSource
from makeup_plugin.phrases import phrase_token_mask
from train_generator.config import DropoutConfig
from train_generator.reference_features import ReferenceFeatures
from train_generator.towers.attributes import attribute_classes

MAX_PHRASES = 6


class GenerationSource(MapSource):
    """One sample: target portrait, one of its captions, and a reference of the same person.

    Fields: latents (C, h, w), shading (3, S, S) uint8, landmarks (5, 2) px at S, target_identity (E,), time_ids (6,)
    of the target's true size and place, person () its number; the reference's
    face_tokens, face_identity, image_tokens; tokens (77,) ids as the joint encoder reads them; phrase_masks
    (M, S, S) uint8 and phrase_tokens (M, 77) bool of the described regions; classes (A,) of `attributes` and named (A,)
    bool, whether the text names them; keep_text, keep_face, keep_identity, keep_shading bool.
    """

    def __init__(
        self,
        features: ReferenceFeatures,
        dropout: DropoutConfig,
        *,
        same_picture: float,
        attributes: Sequence[str] = (),
    ) -> None:
        self.features, self.dropout, self.same_picture = features, dropout, same_picture
        self.attributes = tuple(attributes)
        self.classes = attribute_classes(features.arrays, self.attributes)
        self.people = People(np.asarray(features.arrays.identity))
        alone = self.people.with_fewer(2)
        if same_picture < 1 and len(alone):
            raise DataError(
                f"{features.arrays.names[alone[0]]} has a single picture: stage 2 takes another one as the reference; "
                "give more, or set same_picture=1, where every reference is the target itself"
            )

    def __len__(self) -> int:
        return len(self.features.arrays)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray | torch.Tensor | bool]:
        features, arrays = self.features, self.features.arrays
        reference = index
        if rng.random() >= self.same_picture:
            reference = int(rng.choice(self.people.others(index)))
        choice = arrays.captions[index]
        caption = choice[int(rng.integers(len(choice)))]
        draw = rng.random(5)
        everything = draw[0] < self.dropout.all
        alone = not everything and draw[0] < self.dropout.all + self.dropout.reference  # words without a reference
        keep_text = not everything and (alone or draw[1] >= self.dropout.text)
        keep_face = not everything and not alone and draw[2] >= self.dropout.face
        text = caption.text if keep_text else ""
        prefix = TEMPLATE if keep_face else ""
        masks = np.zeros((MAX_PHRASES, arrays.size, arrays.size), np.uint8)
        words = torch.zeros(MAX_PHRASES, 77, dtype=torch.bool)
        if keep_text:
            described = [p for p in caption.phrases if p.region and not self._absent(p, index)][:MAX_PHRASES]
            for number, phrase in enumerate(described):
                assert arrays.regions is not None  # captions of photos have no phrases
                masks[number] = arrays.regions[index] == REGIONS.index(phrase.region)
                words[number] = phrase_token_mask(text, phrase.start, phrase.end, prefix=prefix)
        return {
            "latents": np.array(features.latents[index]),
            "shading": np.ascontiguousarray(np.asarray(arrays.shading[index]).transpose(2, 0, 1)),
            "landmarks": np.array(arrays.landmarks_5[index], np.float32),
            "target_identity": np.array(features.identity[index]),
            "time_ids": self._time_ids(index),
            "person": int(features.arrays.identity[index]),
            "face_tokens": np.array(features.tokens[reference]),
            "face_identity": np.array(features.identity[reference]),
            "image_tokens": np.array(features.image_tokens[reference]),
            "tokens": tokenize(prefix + text)[0],
            "phrase_masks": masks,
            "phrase_tokens": words,
            "classes": self.classes[index],
            "named": np.array([keep_text and name in caption.named for name in self.attributes], bool),
            "keep_text": keep_text,
            "keep_face": keep_face,
            "keep_identity": not everything and not alone and bool(draw[3] >= self.dropout.identity),
            "keep_shading": not alone and bool(draw[4] >= self.dropout.shading),
        }

    def _time_ids(self, index: int) -> np.ndarray:
        """SDXL's size conditioning (6,): the true size of the picture and the crop's place in it, where the data know
        them; else an uncropped picture of the generated size, as renders are."""
        arrays = self.features.arrays
        known = (arrays.size, arrays.size, 0, 0) if arrays.sizes is None else arrays.sizes[index]
        return np.array([*known, arrays.size, arrays.size], np.float32)

    def _absent(self, phrase: Phrase, index: int) -> bool:
        """Whether a phrase says what is not there ("no hat"): its words have nothing to look at."""
        arrays = self.features.arrays
        return any(arrays.vocabularies[n][int(arrays.attributes[n][index])] == "none" for n in phrase.attributes)
