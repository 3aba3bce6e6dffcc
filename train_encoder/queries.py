"""Training queries: a face and a description, with the picture that answers them."""

import numpy as np
import torch

from faceclip.data.portraits import People
from faceclip.data.recorded import RecordedPortraits
from faceclip.encoder import TEMPLATE
from faceclip.errors import DataError
from faceclip.towers.text import tokenize
from faceclip.training import MapSource
from train_encoder.config import SamplingConfig
from train_encoder.split_features import SplitFeatures
from train_encoder.text_states import BOTH, FACE_ONLY, TEXT_ONLY, TextStates


class QuerySource(MapSource):
    """A sample is one person: `images` queries whose answers are different pictures of that person.

    A batch therefore contains, for every query, the same person under other descriptions, and other persons; these are
    the hard negatives of a composed query. In data without identities (`features.single`) a sample is one query, whose
    reference is the picture itself.

    Fields of a sample, with M = images: face_tokens (M, P, W) and face_identity (M, E) of the reference; tokens (M,
    77); text (M, C), the embedding of the plain caption; answer_identity (M, E); answer_image (M, C); mode (M,); row
    (M,) of the answer; person (M,); words (M,), equal for equal captions. With `states`, which fix the reference of
    every caption, also text_states (M, 77, W).

    Raises DataError if a person has fewer than `images` pictures.
    """

    def __init__(self, features: SplitFeatures, sampling: SamplingConfig, states: TextStates | None = None) -> None:
        self.features, self.sampling, self.states = features, sampling, states
        # With one picture per person there is one query, which asks for the picture by its own face and caption.
        self.images = 1 if features.single else sampling.images
        self.people = People(np.asarray(features.portraits.identity))
        few = self.people.with_fewer(self.images)
        if len(few):
            first = features.portraits.names[few[0]]
            remedies = ["lower it"] if self.people.counts.min() > 1 else []
            remedies.append("give more pictures")
            if isinstance(features.portraits, RecordedPortraits):  # this project's own layout is read as it is
                remedies.append("leave such persons out by data.few_pictures=drop")
            raise DataError(
                f"{len(few)} persons (the first: {first!r}) have fewer than sampling.images="
                f"{sampling.images} pictures: {' or '.join(remedies)}"
            )

    def __len__(self) -> int:
        return len(self.people)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray | torch.Tensor]:
        features, sampling = self.features, self.sampling
        rows = rng.choice(self.people[index], self.images, replace=False)
        odds = (1 - sampling.face_only - sampling.text_only, sampling.face_only, sampling.text_only)
        mode = rng.choice(3, self.images, p=odds)
        references, captions, prompts, known = [], [], [], []
        for row, kind in zip(rows, mode, strict=True):
            others = self.people.others(row)
            own = rng.random() < sampling.same_picture or len(others) == 0
            reference = row if own else rng.choice(others)
            choice = features.portraits.captions[row]
            number = int(rng.integers(len(choice)))
            caption = features.portraits.caption_start[row] + number
            if self.states is not None:
                if kind == BOTH:
                    reference = self.states.rows.reference[caption]
                known.append(self.states.rows.number(kind, caption, reference))
            references.append(reference)
            captions.append(caption)
            text = "" if kind == FACE_ONLY else choice[number].text
            prompts.append(text if kind == TEXT_ONLY else TEMPLATE + text)
        references, captions = np.asarray(references), np.asarray(captions)
        stored = {} if self.states is None else {"text_states": self.states.states[np.asarray(known)]}
        return stored | {
            "face_tokens": np.asarray(features.tokens[references]),
            "face_identity": np.asarray(features.identity[references]),
            "tokens": tokenize(prompts),
            "text": np.asarray(features.caption[captions]),
            "answer_identity": np.asarray(features.identity[rows]),
            "answer_image": np.asarray(features.image[rows]),
            "mode": mode,
            "row": rows.astype(np.int64),
            "person": np.full(len(rows), index),
            "words": features.portraits.words[captions],
        }
