"""Keeps the text towers' states of all training queries on disk.

If the projections of the identity are frozen (`train_identity=false`), the towers' states of a prompt and a face do not
change. To limit the number of queries, every caption has one reference picture, drawn once. The rows are: one per
caption with its reference's face; then one per picture's face without a caption; then one per distinct caption without
a face. The last two exist only if such queries are sampled.
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
    """Numbers the queries of N pictures with M captions.

    reference (M,): for each caption, the row of the picture whose face is used. It is another picture of the person;
    for a share `same_picture`, and for persons with one picture, it is the caption's own picture.
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
        """Returns the row of a query of this kind, with this caption or with the face of this picture."""
        if kind == FACE_ONLY:
            return len(self.picture) + reference
        return caption if kind == BOTH else len(self.picture) + self.faces + int(self.words[caption])

    def prompts(self, rows: Sequence[int]) -> tuple[list[str], list[int]]:
        """Returns the prompt of each row, and the picture whose face it uses (−1: none)."""
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
    """states (R, 77, W) float16, where W is the sum of both text towers' widths. `rows` numbers the R queries."""

    states: ShardedArray
    rows: QueryRows


def text_states_of(
    model: FaceCLIP, features: SplitFeatures, sampling: SamplingConfig, data: DataConfig, cache: Path
) -> TextStates:
    """Returns the states of the training split; builds missing ones first.

    model: has the frozen projections of the identity, and is on the CPU; it moves to `data.device` only for building.

    Raises DataError for a damaged shard, for missing shards in a read-only cache, and for a full disk; and ConfigError
    if the device does not exist or the cache's folder cannot be made.
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
    """Draws a picture of the same person for each of these pictures (M,)."""
    rng = np.random.default_rng(23)  # a fixed seed, so that runs with different seeds share the states
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
