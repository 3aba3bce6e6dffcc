"""The text towers' states of all queries that training can ask, on disk: the rest of the frozen work.

With the projections of the identity frozen (`train_identity=false`) the towers' states of a prompt and a face do not
change. To keep the queries few, every caption has one reference picture, drawn once. Rows: first one for every caption
with its reference's face, then one for every picture's face without a caption, then one for every different caption
without a face; the last two only if such queries are sampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.data.blocks import kept_rows
from faceclip.data.mapping import DataConfig
from faceclip.data.portraits import People
from faceclip.encoder import TEMPLATE, FaceCLIP
from faceclip.storage.hashes import module_hash
from faceclip.storage.shards import ShardedArray
from faceclip.towers.placement import lying_on, named_device
from faceclip.towers.text import tokenize
from train_encoder.config import SamplingConfig
from train_encoder.split_features import SplitFeatures

BOTH, FACE_ONLY, TEXT_ONLY = 0, 1, 2  # what a query holds


class QueryRows:
    """Which queries there are, in N pictures with M captions.

    reference (M,): the row of the picture whose face stands for the person of each caption's picture: another one of
    the person, or, for the share `same_picture` and for who has one picture only, the picture itself.
    """

    def __init__(self, features: SplitFeatures, sampling: SamplingConfig) -> None:
        self.features = features
        self.picture = np.repeat(np.arange(len(features.identity)), np.diff(features.portraits.caption_start))  # (M,)
        self.reference = _references(features, self.picture, sampling.same_picture)
        _, self.first, self.words = np.unique(features.portraits.words, return_index=True, return_inverse=True)
        self.faces = len(features.identity) if sampling.face_only else 0
        self.texts = len(self.first) if sampling.text_only else 0

    def __len__(self) -> int:
        return len(self.picture) + self.faces + self.texts

    def number(self, kind: int, caption: int, reference: int) -> int:
        """Row of a query of this kind, with this caption or about the face of this picture."""
        if kind == FACE_ONLY:
            return len(self.picture) + reference
        return caption if kind == BOTH else len(self.picture) + self.faces + int(self.words[caption])

    def prompts(self, rows: Sequence[int]) -> tuple[list[str], list[int]]:
        """Prompt, and the picture whose face it is about (-1: none), of each row."""
        captions = len(self.picture)
        texts, pictures = [], []
        for row in rows:
            if row < captions:
                texts.append(TEMPLATE + self._caption(row))
                pictures.append(int(self.reference[row]))
            elif row < captions + self.faces:
                texts.append(TEMPLATE)
                pictures.append(row - captions)
            else:
                texts.append(self._caption(int(self.first[row - captions - self.faces])))
                pictures.append(-1)
        return texts, pictures

    def _caption(self, number: int) -> str:
        picture = int(self.picture[number])
        portraits = self.features.portraits
        return portraits.captions[picture][number - int(portraits.caption_start[picture])].text


@dataclass(frozen=True, kw_only=True)
class TextStates:
    """states (R, 77, W) float16, W the widths of both text towers; `rows` says which query each row is."""

    states: ShardedArray
    rows: QueryRows


def text_states_of(
    model: FaceCLIP, features: SplitFeatures, sampling: SamplingConfig, data: DataConfig, cache: Path
) -> TextStates:
    """States of the training split, built or completed first where they are missing.

    model: with the frozen projections of the identity, on the CPU; it is on `data.device` only while states are built.

    Raises DataError for a damaged shard, for missing ones where nothing can be written, and for a full disk;
    ConfigError when there is no such device, or the cache's folder cannot be made.
    """
    rows = QueryRows(features, sampling)
    parts = [module for branch in model.branches for module in (branch.text, branch.identity_projection)]
    about = {
        "data": [features.portraits.content_hash, features.faces],
        "model": [module_hash(module) for module in (model.face_encoder, *parts)],
        "sampling": [sampling.same_picture, rows.faces, rows.texts],
    }
    batch = data.batch_size

    @torch.no_grad()
    def build(start: int, stop: int) -> dict[str, NDArray]:
        found = [_states(model, rows, range(first, min(first + batch, stop))) for first in range(start, stop, batch)]
        return {"states": np.concatenate(found)}

    found = kept_rows(
        cache,
        "train-states",
        about,
        len(rows),
        build,
        rows=data.shard_rows,
        # The face encoder says where the model lies.
        around=lambda: lying_on(named_device(data.device), model.face_encoder, *parts),
        hashes=data.verify == "hashes",
    )
    return TextStates(states=found["states"], rows=rows)


def _states(model: FaceCLIP, rows: QueryRows, numbers: range) -> NDArray[np.float16]:
    prompts, pictures = rows.prompts(numbers)
    identity = torch.from_numpy(np.asarray(rows.features.identity[np.maximum(pictures, 0)], np.float32))
    has_face = torch.tensor(pictures) >= 0
    return model.text_states(tokenize(prompts), identity, has_face=has_face).to(torch.float16).cpu().numpy()


def _references(features: SplitFeatures, picture: NDArray[np.int64], same: float) -> NDArray[np.int64]:
    """A picture of the same person for each of these (M,) pictures."""
    rng = np.random.default_rng(23)  # not the training's seed: runs that differ in it share the states
    own, turn = rng.random(len(picture)) < same, rng.random(len(picture))
    if features.single:
        return picture
    people = People(np.asarray(features.portraits.identity))
    place = np.empty_like(people.order)
    place[people.order] = np.arange(len(place))
    start, size = people.starts[people.person[picture]], people.counts[people.person[picture]]
    steps = 1 + (turn * (size - 1)).astype(np.int64)  # 1 … size − 1: round to any other picture of the person
    steps[own | (size == 1)] = 0
    return people.order[start + (place[picture] - start + steps) % size]
