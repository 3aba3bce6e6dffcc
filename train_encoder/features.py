"""Frozen features of a split: identities, patch tokens, image and caption embeddings, read from disk.

    python -m train_encoder.features data.path=DIR [data.identity=none …] [--preset bigg14]

takes the words of `python -m train_encoder` and builds the cache that training reads; it can be killed and run again.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.data.blocks import ROWS, Builder, kept_rows
from faceclip.data.mapping import DataConfig, kept_for_validation, text_hash
from faceclip.data.records import Caption
from faceclip.data.sources import find_layout
from faceclip.errors import ConfigError, DataError, EmptyDatasetError
from faceclip.faces.align import encoder_crop
from faceclip.settings import run
from faceclip.storage.hashes import bytes_hash
from faceclip.storage.locks import locked_cache
from faceclip.storage.shards import ShardedArray
from train_encoder.config import PRESETS, EncoderConfig, cache_folder, data_config
from train_encoder.feature_shards import FeatureBuilder
from train_encoder.frozen import FrozenTowers
from train_encoder.start import load_start
from train_encoder.text_states import text_states_of
from train_encoder.towers_io import Towers

Rows = NDArray | ShardedArray
IN_MEMORY = 1 << 30  # bytes of a field up to which it is read at once


@dataclass(frozen=True, kw_only=True)
class PortraitLabels:
    """What is known of N portraits of a user's data set: who (N,), in which words, and who in words."""

    identity: NDArray[np.int64]
    captions: Sequence[Sequence[Caption]]
    names: Sequence[str] = field(default=())
    pictures: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # (N,) digests of what was cut

    def __len__(self) -> int:
        return len(self.identity)


@dataclass(frozen=True, kw_only=True)
class SplitFeatures:
    """Features of N portraits and of their captions (row `caption_start[i] + c` is caption c of portrait i).

    single: every portrait is a person of its own, so that no other picture of a person can be asked for. faces: key of
    how identities and tokens were made of the pictures.
    """

    arrays: FaceArrays | PortraitLabels
    identity: Rows  # (N, E) float32 of the recognizer, unnormalized
    tokens: Rows  # (N, P, W) float16 patch tokens
    image: Rows  # (N, C) float32 CLIP image embedding, unnormalized
    caption: Rows  # (M, C) float32 CLIP text embedding of the plain captions, unnormalized
    caption_start: NDArray[np.int64]  # (N + 1,)
    words: NDArray[np.int64]  # (M,) equal for equal captions
    single: bool = False
    faces: str = ""

    @property
    def content_hash(self) -> str:
        """Hash of data in this project's layout; of others, of who is shown, in which picture and in which words."""
        known = getattr(self.arrays, "content_hash", None)
        if known is not None:
            return known
        shown = (self.arrays.identity, self.arrays.pictures, self.words, self.caption_start)
        return bytes_hash(*map(np.ascontiguousarray, shown))


def features_of(config: EncoderConfig, split: str, towers: Towers) -> SplitFeatures:
    """Features of "train" or "validation" of the configured data, built or completed first where they are missing.

    Raises ConfigError for a metric that the data cannot give, DataError and its kinds for the data.
    """
    data = data_config(config)
    cache = cache_folder(config)
    if find_layout(data) == "portraits":
        usual = DataConfig()
        used = {"path", "layout", "device"} | ({"batch_size"} if data.device != "cpu" else set())
        used |= {"batch_size", "verify", "shard_rows"} if config.cached_text else set()
        unused = [
            f"data.{f.name}"
            for f in fields(data)
            if f.name not in used and getattr(data, f.name) != getattr(usual, f.name)
        ]
        if unused:
            raise ConfigError(
                f"data.path={data.path} is in this project's own layout, which is read as it is: leave out "
                f"{', '.join(unused)}, which would change nothing, or set data.layout=files"
            )
        if split == "validation":
            check_pairs(data.path, load_arrays(Path(data.path), split).identity)
        return split_features(Path(data.path), split, towers, cache, device=data.device, batch_size=data.batch_size)
    if data.identity == "none" and (config.trainer.best_metric or "").startswith(("composed", "face")):
        raise ConfigError(
            f"trainer.best_metric={config.trainer.best_metric}: with data.identity=none no person has a second "
            "picture; set trainer.best_metric=self_joint or trainer.best_metric=null"
        )
    return load_features(data, split, towers, cache, pictures=config.sampling.images)


def load_features(data: DataConfig, split: str, towers: Towers, cache: Path, *, pictures: int = 2) -> SplitFeatures:
    """Features of a split of any data set; `pictures`: how many a person of the training split must have."""
    divided = bool(data.columns.split) or data.validation_share > 0
    source_split = data.undivided if divided else getattr(data, split)
    with locked_cache(cache) as writable:
        folders = FeatureBuilder(data, source_split, towers, cache).build(writable=writable)
    hashes = data.verify == "hashes"
    records = folders["records"].open(hashes=hashes)
    fields = {kind: folders[kind].open(hashes=hashes) for kind in ("faces", "images", "captions")}
    person = records["person"][:]
    rows = np.arange(len(person))
    if data.columns.split:
        rows = np.flatnonzero(records["split"][:] == text_hash(getattr(data, split)))
    elif data.validation_share > 0:
        kept = kept_for_validation(person, data.validation_share)
        rows = np.flatnonzero(kept if split == "validation" else ~kept)
    if split == "train" and data.few_pictures == "drop" and data.identity == "column":
        _, who, count = np.unique(person[rows], return_inverse=True, return_counts=True)
        enough = count[who] >= pictures
        if not enough.all():
            print(
                f"{split}: {int((~enough).sum()):,} of {len(rows):,} pictures left out, their persons have fewer "
                f"than sampling.images={pictures}",
                flush=True,
            )
        rows = rows[enough]
    if not len(rows):
        raise EmptyDatasetError(
            f"data.path={data.path} has no usable row for {split}: check data.columns.split, "
            "data.validation_share and data.few_pictures"
        )
    if split == "validation" and data.identity == "column":
        check_pairs(data.path, person[rows], "give more, or set data.identity=none")
    counts = records["captions"][:]
    ends = np.cumsum(counts)
    starts = np.cumsum([0, *counts[rows]])
    caption_rows = np.arange(starts[-1]) + np.repeat((ends - counts)[rows] - starts[:-1], counts[rows])
    words = records["words"][:][caption_rows]
    shards = [folders["records"].read(number) for number in range(len(folders["records"]))]
    labels = PortraitLabels(
        identity=person[rows],
        captions=CaptionTexts(shards, rows),
        names=PersonNames(shards, rows),
        pictures=records["digest"][:][rows],
    )
    return SplitFeatures(
        arrays=labels,
        identity=in_memory(fields["faces"]["identity"].take(rows)),
        tokens=fields["faces"]["tokens"].take(rows),
        image=in_memory(fields["images"]["image"].take(rows)),
        caption=in_memory(fields["captions"]["caption"].take(caption_rows)),
        caption_start=starts,
        words=words,
        single=data.identity == "none",
        faces=folders["faces"].folder.name,
    )


def check_apart(train: SplitFeatures, validation: SplitFeatures) -> None:
    """Raises DataError for a person of both splits: figures would be of people that were trained on."""
    both = np.flatnonzero(np.isin(validation.arrays.identity, train.arrays.identity))
    if len(both) and not validation.single:
        names = getattr(validation.arrays, "names", validation.arrays.identity)
        count = len(np.unique(np.asarray(validation.arrays.identity)[both]))
        raise DataError(
            f"{count:,} persons are in the training and in the validation split (as {names[both[0]]}): "
            "divide the data by persons, or set data.validation_share=0.05 instead"
        )


def check_pairs(path: str, identity: NDArray[np.int64], remedy: str = "give more") -> None:
    """Raises DataError unless a person of the validation split has two pictures."""
    if len(np.unique(identity)) == len(identity):
        raise DataError(
            f"data.path={path}: no person of the validation split has two pictures, so nothing can be "
            f"asked for; {remedy}"
        )


def in_memory(values: ShardedArray) -> Rows:
    """In memory when it is small, else left on disk."""
    return values[:] if np.prod(values.shape) * values.dtype.itemsize <= IN_MEMORY else values


class _Texts(Sequence):
    """Texts of rows, decoded when asked for: millions of captions stay on disk."""

    def __init__(self, shards: Sequence[dict[str, NDArray]], rows: NDArray[np.int64]) -> None:
        self.shards, self.rows = shards, rows
        self.starts = np.cumsum([0, *(len(shard["row"]) for shard in shards)])

    def __len__(self) -> int:
        return len(self.rows)

    def _at(self, index: int) -> tuple[dict[str, NDArray], int]:
        row = self.rows[index]
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.shards[shard], int(row - self.starts[shard])

    @staticmethod
    def _text(shard: dict[str, NDArray], name: str, number: int) -> str:
        ends = shard[f"{name}_end"]
        begin = int(ends[number - 1]) if number else 0
        return shard[f"{name}_text"][begin : int(ends[number])].tobytes().decode()


class CaptionTexts(_Texts):
    """The captions of each row."""

    def __getitem__(self, index: int) -> list[Caption]:
        shard, row = self._at(index)
        begin = int(shard["captions"][:row].sum())
        texts = [self._text(shard, "caption", begin + c) for c in range(int(shard["captions"][row]))]
        return [Caption(text=text, kind="free") for text in texts]


class PersonNames(_Texts):
    """Who each row shows, as the data set says it."""

    def __getitem__(self, index: int) -> str:
        shard, row = self._at(index)
        return self._text(shard, "name", row)


def split_features(
    directory: Path, split: str, towers: Towers, cache: Path, *, device: str = "cpu", batch_size: int = 64
) -> SplitFeatures:
    """Features of a split of this project's own data layout; the face crop is cut by the true landmarks.

    The CPU takes a block of the cache at once, another device `batch_size` rows.
    """
    arrays = load_arrays(directory, split)
    frozen = FrozenTowers(towers=towers, device=device, batch=ROWS if device == "cpu" else batch_size)
    size, side = towers.recognizer.config.image_size, towers.image.config.image_size
    models, cut = frozen.hashes(), f"landmarks 2, {size} px"
    texts = [caption.text for captions in arrays.captions for caption in captions]

    def crop(row: int) -> NDArray[np.uint8]:
        return encoder_crop(np.asarray(arrays.images[row]), np.array(arrays.landmarks_5[row], np.float64), size)

    def kept(kind: str, preprocessing: str, count: int, build: Builder) -> dict[str, ShardedArray]:
        facts = {"data": arrays.content_hash, "model": models[kind], "preprocessing": preprocessing}
        return kept_rows(cache, f"{split}-{kind}", facts, count, build, around=frozen.placed)

    face = kept("faces", cut, len(arrays), lambda start, stop: frozen.faces([crop(i) for i in range(start, stop)]))
    picture = kept("images", f"portrait, {side} px", len(arrays), lambda a, b: frozen.images(arrays.images[a:b]))
    text = kept("captions", "plain", len(texts), lambda start, stop: frozen.captions(texts[start:stop])[0])
    # Equal captions must not repel each other in the text term.
    numbers: dict[str, int] = {}
    words = np.asarray([numbers.setdefault(text, len(numbers)) for text in texts])
    return SplitFeatures(
        arrays=arrays,
        identity=in_memory(face["identity"]),
        tokens=face["tokens"],
        image=in_memory(picture["image"]),
        caption=in_memory(text["caption"]),
        caption_start=np.cumsum([0] + [len(c) for c in arrays.captions]),
        words=words,
        faces=f"{models['faces']} {cut}",
    )


def build_all(config: EncoderConfig) -> Iterator[str]:
    """Builds both splits, and the states of the text towers where they are to be read; yields a line about each."""
    start = load_start(config)
    for split in ("train", "validation"):
        found = features_of(config, split, start.towers)
        people = len(np.unique(found.arrays.identity))
        yield (
            f"{split}: {len(found.arrays):,} pictures of {people:,} persons, {len(found.caption):,} captions, "
            f"tokens {found.tokens.shape}"
        )
        if split == "train" and config.cached_text:
            states = text_states_of(config, start.model(config), found)
            yield f"{split}: states of the text towers {states.states.shape}"


def build(config: EncoderConfig) -> None:
    """Builds all features and prints what there is of each split."""
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    for line in build_all(config):
        print(line)
    print(f"features in {cache_folder(config)}")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run(build, EncoderConfig, argv, presets=PRESETS, interrupted="interrupted; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
