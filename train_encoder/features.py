"""Reads the frozen features of a split: identities, patch tokens, image and caption embeddings.

    python -m train_encoder.features data.path=DIR [data.identity=none …] [--preset bigg14]

The command takes the settings of `python -m train_encoder` and builds the cache that training reads. It resumes after a
kill.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.data.arrays import load_arrays
from faceclip.data.blocks import ROWS, Builder, kept_rows
from faceclip.data.mapping import DataConfig, data_at
from faceclip.data.portraits import check_pairs
from faceclip.data.recorded import RecordedPortraits, rows_of_split
from faceclip.data.sources import check_own_layout, find_layout
from faceclip.errors import ConfigError
from faceclip.faces.align import encoder_crop
from faceclip.settings import run
from faceclip.storage.locks import locked_cache
from faceclip.storage.shards import ShardedArray
from train_encoder.config import PRESETS, EncoderConfig
from train_encoder.feature_shards import FeatureBuilder
from train_encoder.frozen import FrozenTowers
from train_encoder.split_features import SplitFeatures, in_memory
from train_encoder.start import load_start
from train_encoder.text_states import text_states_of
from train_encoder.towers_io import Towers


def check_data(config: EncoderConfig) -> None:
    """Raises ConfigError for settings of `data` that would have no effect and for a metric that the data cannot give,
    and DataError if there are no data."""
    data = data_at(config.data)
    if find_layout(data) == "portraits":
        used = {"device"} | ({"batch_size"} if data.device != "cpu" else set())
        check_own_layout(data, used | ({"batch_size", "verify", "shard_rows"} if config.cached_text else set()))
    elif data.identity == "none" and (config.trainer.best_metric or "").startswith(("composed", "face")):
        raise ConfigError(
            f"trainer.best_metric={config.trainer.best_metric}: with data.identity=none no person has a second "
            "picture; set trainer.best_metric=self_joint or trainer.best_metric=null"
        )


def load_features(data: DataConfig, split: str, towers: Towers, cache: Path, *, pictures: int = 2) -> SplitFeatures:
    """Returns the features of the split "train" or "validation" of any data; builds missing ones first.

    pictures: number that a person of the training split needs if `data.few_pictures` is "drop". Raises DataError and
    its subclasses for the data, and ConfigError if the device does not exist.
    """
    if find_layout(data) == "portraits":
        if split == "validation":
            check_pairs(data.path, load_arrays(Path(data.path), split, labelled=False).identity)
        return split_features(Path(data.path), split, towers, cache, device=data.device, batch_size=data.batch_size)
    divided = bool(data.columns.split) or data.validation_share > 0
    with locked_cache(cache) as writable:
        builder = FeatureBuilder(data, data.undivided if divided else getattr(data, split), towers, cache)
        folders = builder.build(writable=writable)
    hashes = data.verify == "hashes"
    records = folders["records"].open(hashes=hashes)
    fields = {kind: folders[kind].open(hashes=hashes) for kind in ("faces", "images", "captions")}
    rows = rows_of_split(data, split, records, pictures)
    portraits = RecordedPortraits(folders["records"], records, rows)
    return SplitFeatures(
        portraits=portraits,
        identity=in_memory(fields["faces"]["identity"].take(rows)),
        tokens=fields["faces"]["tokens"].take(rows),
        image=in_memory(fields["images"]["image"].take(rows)),
        caption=in_memory(fields["captions"]["caption"].take(portraits.caption_rows)),
        single=data.identity == "none",
        faces=folders["faces"].folder.name,
    )


def split_features(
    directory: Path, split: str, towers: Towers, cache: Path, *, device: str = "cpu", batch_size: int = 64
) -> SplitFeatures:
    """Returns the features of a split in this project's own data layout. Faces are cut by the stored landmarks.

    On the CPU a block of the cache is computed at once, on another device `batch_size` rows.
    """
    arrays = load_arrays(directory, split, labelled=False)
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
    return SplitFeatures(
        portraits=arrays,
        identity=in_memory(face["identity"]),
        tokens=face["tokens"],
        image=in_memory(picture["image"]),
        caption=in_memory(text["caption"]),
        faces=f"{models['faces']} {cut}",
    )


def build_all(config: EncoderConfig) -> Iterator[str]:
    """Builds both splits, and with `cached_text` the states of the text towers; yields a line about each."""
    check_data(config)
    start, data = load_start(config), data_at(config.data)
    for split in ("train", "validation"):
        found = load_features(data, split, start.towers, config.cache_path, pictures=config.sampling.images)
        people = len(np.unique(found.portraits.identity))
        yield (
            f"{split}: {len(found.portraits):,} pictures of {people:,} persons, {len(found.caption):,} captions, "
            f"tokens {found.tokens.shape}"
        )
        if split == "train" and config.cached_text:
            states = text_states_of(start.model(config), found, config.sampling, data, config.cache_path)
            yield f"{split}: states of the text towers {states.states.shape}"


def build(config: EncoderConfig) -> None:
    """Builds all features and prints their sizes."""
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    for line in build_all(config):
        print(line)
    print(f"features in {config.cache_path}")


main = partial(run, build, EncoderConfig, presets=PRESETS, interrupted="interrupted; the same command resumes")

if __name__ == "__main__":
    sys.exit(main())
