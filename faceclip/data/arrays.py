"""Loads a split of a portrait data set as numpy arrays, which are decoded once and then memory-mapped.

Photographs stay encoded and are decoded on access (`faceclip.data.encoded`). The arrays are shards
(`faceclip.storage.shards`) in ``DIR/.arrays``, keyed by the content of the parquet files and the size; a killed build
resumes. The parquet files are compared with the hashes in ``dataset.json``, because parquet has no checksum and a
changed byte in a column of numbers would pass as another label.
"""

import json
import os
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from faceclip.captions.visibility import seen_values
from faceclip.data.blocks import ROWS, kept_rows
from faceclip.data.encoded import decode_square, encoded_fields, pictures_of
from faceclip.data.masks import MASKS, mask_number
from faceclip.data.placement import PLACEMENT, crop_sizes
from faceclip.data.portraits import number_captions
from faceclip.data.records import (
    LABELS,
    PHOTO_VOCABULARIES,
    READ,
    REGIONS,
    SPLITS,
    VOCABULARIES,
    Caption,
    caption_from_dict,
    features,
)
from faceclip.errors import ConfigError, DataError, EmptyDatasetError
from faceclip.storage.hashes import bytes_hash, file_hash
from faceclip.storage.ragged import RaggedTexts, pack_texts
from faceclip.storage.regular import parse_json
from faceclip.storage.shards import ShardedArray

_FORMAT = "2"
_IMAGES = {"image": "images", "regions": "regions", "shading": "shading", MASKS: "masks"}
_NOT_NUMBERS = (*_IMAGES.values(), "attributes", "vocabularies", "content_hash", "texts", "cache", "sizes")
_READ = "mouth"  # an attribute that only photos have
UNKNOWN = -1
"""Class of an attribute that a photo does not show."""
T = TypeVar("T")


@dataclass(frozen=True)
class FaceArrays:
    """N portraits of one split at S px. Landmarks are pixels of these S px images; angles are degrees.

    Photos have the 3D fitter's estimates of shape, expression, pose, camera, light, shading and landmarks_68. Where
    their captions were made, they also have the regions and attributes that were read, many of which are unknown.
    """

    images: ShardedArray  # (N, S, S, 3) uint8 RGB, on disk
    regions: ShardedArray | None  # (N, S, S) uint8 labels of `REGIONS`, on disk; None of photos that nobody read
    shading: ShardedArray  # (N, S, S, 3) uint8 lit grey geometry, black outside the face, on disk
    identity: NDArray[np.int64]  # (N,)
    index: NDArray[np.int64]  # (N,) within the identity; 0 is the frontal portrait
    pose: NDArray[np.float32]  # (N, 3) yaw, pitch, roll
    landmarks_5: NDArray[np.float32]  # (N, 5, 2)
    landmarks_68: NDArray[np.float32]  # (N, 68, 2)
    light: NDArray[np.float32]  # (N, 27)
    shape: NDArray[np.float32]  # (N, K)
    expression: NDArray[np.float32]  # (N, E)
    camera: NDArray[np.float32]  # (N, C)
    attributes: dict[str, NDArray[np.int64]]  # name → (N,), positions in `vocabularies`; UNKNOWN of photos
    vocabularies: dict[str, tuple[str, ...]]
    content_hash: str
    texts: Iterable[str]  # (N,) the captions of each portrait as JSON
    cache: Path  # the folder beside the data for what is computed of them
    masks: ShardedArray | None = None  # (N, S, S, 3) uint8 bits of `faceclip.data.masks`, on disk; None without any
    sizes: NDArray[np.float32] | None = None  # (N, 4) of `placement.crop_sizes` at S px; None of renders

    def __len__(self) -> int:
        return len(self.identity)

    @property
    def size(self) -> int:
        """Side S of the images in pixels."""
        return self.images.shape[1]

    @property
    def are_photos(self) -> bool:
        """Whether the portraits are photos, whose attributes are not known for certain."""
        return self.vocabularies.keys() != VOCABULARIES.keys()

    @cached_property
    def captions(self) -> list[list[Caption]]:
        """The captions of each portrait, parsed on first use."""
        try:
            return [[caption_from_dict(stored) for stored in json.loads(row)] for row in self.texts]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"captions in {self.cache} are damaged ({error!r}): delete it, it is built again"
            ) from error

    @cached_property
    def names(self) -> list[str]:
        """The person in each portrait, as "identity NUMBER"."""
        return [f"identity {person}" for person in self.identity]

    @property
    def caption_start(self) -> NDArray[np.int64]:
        """Numbers (N + 1,) of each portrait's first caption among all captions."""
        return self._numbered[0]

    @property
    def words(self) -> NDArray[np.int64]:
        """Numbers (M,) that are equal for equal captions."""
        return self._numbered[1]

    @cached_property
    def _numbered(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return number_captions(self.captions)

    def attribute_values(self, name: str) -> NDArray[np.str_]:
        """Returns an attribute as words (N,) instead of classes; "" if it is unknown."""
        return np.array((*self.vocabularies[name], ""))[self.attributes[name]]

    @cached_property
    def seen_values(self) -> dict[str, NDArray[np.str_]]:
        """The visible values of each attribute as words (N,): "" if a value cannot be seen."""
        values = {name: self.attribute_values(name) for name in self.vocabularies}
        if self.regions is None or not values or self.are_photos:
            return values
        seen = seen_values(values, self.regions)
        for row, captions in enumerate(self.captions):  # at another size a region may seem to be just too small
            for name in {name for caption in captions for name in caption.named}:
                seen[name][row] = values[name][row]
        return seen


def load_arrays(
    directory: str | os.PathLike[str], split: str, *, size: int | None = None, workers: int = 2, labelled: bool = True
) -> FaceArrays:
    """Loads the arrays of one split; they are decoded on first use and then memory-mapped read-only.

    size: side in px to which pictures (area average), label maps (nearest) and landmarks are resized; None keeps the
    stored size. labelled: false accepts photos too.

    Raises DataError for missing, changed or corrupt shards and columns, a damaged cache, or a full disk, and
    EmptyDatasetError for an empty split.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if size is not None and size < 1:
        raise DataError(f"size must be at least 1 px, got {size}")
    root = Path(directory)
    shards = shard_paths(root, split)
    content = _content_hash(root, split, shards)
    names = _columns(shards[0], labelled)
    count = sum(_row_count(shard) for shard in shards)
    if count == 0:
        raise EmptyDatasetError(f"{shards[0].parent} holds no portraits in {shards[0].name.split('-')[0]}")
    rows: Iterator[tuple[Path, dict]] | None = None

    def build(start: int, stop: int) -> dict[str, NDArray]:
        nonlocal rows
        rows = rows or islice(_rows(shards, names), start, None)
        with ThreadPoolExecutor(workers) as pool:
            return _arrays_of(list(islice(rows, stop - start)), size, pool)

    kind, cache = f"{split}-{size or 'stored'}", root / ".arrays"
    facts = {"content": content, "kind": kind, "format": _FORMAT}
    try:
        stored = kept_rows(cache, kind, facts, count, build, hashes=False)
    except ConfigError as error:
        raise DataError(
            f"the arrays of {count:,} portraits cannot be kept in {cache} ({error}): make that folder writable"
        ) from error
    return _open(stored, cache, content)


def _columns(shard: Path, labelled: bool) -> list[str]:
    """Returns the columns to read. Raises DataError if one is missing."""
    expected = list(features())
    present = _read(shard, lambda: pq.ParquetFile(shard)).schema_arrow.names
    known = [name for name in (PLACEMENT, MASKS) if name in present]
    missing = [name for name in expected if name not in present]
    photos = missing == list(LABELS) or READ[0] in present
    if photos and labelled:
        raise DataError(
            f"{shard.parent.parent} holds photos, whose regions and attributes nobody knows for certain: only both "
            "stages, train_encoder.towers.clip and eval.retrieval read them"
        )
    if photos and missing in ([], list(LABELS)):
        return [name for name in expected if name in present] + known
    if missing:
        raise DataError(f"{shard} lacks the columns {', '.join(missing)}")
    return expected + known


def shard_paths(root: Path, split: str) -> list[Path]:
    """Returns the parquet files of a split in order. Raises DataError if there are none or some are missing."""
    shards = sorted((root / "data").glob(f"{split}-*.parquet"))
    if not shards:
        raise DataError(
            f"no data/{split}-*.parquet below {root}: check the path, or make the data with that split by "
            f"`python -m faceclip.people --out {root}`, of photos by `python -m faceclip.data.photos`"
        )
    announced = shards[0].stem.rsplit("-of-", 1)
    if len(announced) == 2 and announced[1].isdigit() and int(announced[1]) != len(shards):
        raise DataError(
            f"{root}/data has {len(shards)} of {int(announced[1])} {split} shards: run the generator again, "
            "it completes what is missing"
        )
    return shards


def _content_hash(root: Path, split: str, shards: list[Path]) -> str:
    announced = _announced_hashes(root / "dataset.json")
    there = {shard.name for shard in shards}
    if lost := sorted(name for name in announced if name.startswith(f"{split}-") and name not in there):
        raise DataError(f"{root}/data lacks {', '.join(lost)}: run the command that made the data set again")
    digests = []
    for shard in shards:
        own = file_hash(shard)
        expected = announced.get(shard.name, own)
        if own != expected:
            raise DataError(
                f"{shard} is corrupt: its SHA-256 is {own[:12]}…, dataset.json says {expected[:12]}…; "
                "run the command that made the data set again"
            )
        digests.append(bytes.fromhex(own))
    return bytes_hash(*digests)


def _announced_hashes(path: Path) -> dict[str, str]:
    """Returns SHA-256 by file name; empty for data without a dataset.json."""
    if not path.is_file():
        return {}
    try:
        return {Path(item["path"]).name: item["sha256"] for item in parse_json(path.read_bytes())["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is corrupt ({error}): delete it and run what made it again") from error


def _row_count(shard: Path) -> int:
    return _read(shard, lambda: pq.ParquetFile(shard).metadata.num_rows)


def _read(shard: Path, action: Callable[[], T]) -> T:
    try:
        return action()
    # Damaged text is no UTF-8; Arrow notices only when it is read.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{shard} is corrupt ({error}): delete it and run what made it again") from error


def _rows(shards: list[Path], names: list[str]) -> Iterator[tuple[Path, dict]]:
    """Yields each row with its file."""
    for shard in shards:
        file = _read(shard, partial(pq.ParquetFile, shard))
        missing = sorted(set(names) - set(file.schema_arrow.names))
        if missing:
            raise DataError(f"{shard} lacks the columns {', '.join(missing)}")
        batches = file.iter_batches(batch_size=ROWS, columns=names)
        while (batch := _read(shard, partial(next, batches, None))) is not None:
            for row in _read(shard, batch.to_pylist):
                yield shard, row


def _arrays_of(rows: list[tuple[Path, dict]], size: int | None, pool: ThreadPoolExecutor) -> dict[str, NDArray]:
    """Returns the fields of a block of rows, each of which comes with its file."""
    for shard, row in rows:
        _check_captions(row, shard)
    decoded = list(pool.map(lambda found: _decode(found[1], size, found[0]), rows))
    texts = pack_texts("captions", [json.dumps(row["captions"]) for _, row in rows])
    if PLACEMENT in rows[0][1]:  # photographs stay encoded
        for column, name in _IMAGES.items():
            if column in rows[0][1]:
                pictures = list(_stack([row.pop(name) for row in decoded], name, rows[0][0]))
                files = [row[column]["bytes"] for _, row in rows]
                texts |= encoded_fields(name, files, pictures, resized=size is not None)
    return {name: _stack([row[name] for row in decoded], name, rows[0][0]) for name in decoded[0]} | texts


def _check_captions(row: dict, shard: Path) -> None:
    where = f"{shard}, identity {row['identity']}, index {row['index']}, captions"
    try:
        captions = [caption_from_dict(stored) for stored in row["captions"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: a field is missing or empty ({error!r})") from error
    for caption in captions:
        for phrase in caption.phrases:
            known = phrase.region in REGIONS or (MASKS in row and mask_number(phrase.region) is not None)
            if caption.text[phrase.start : phrase.end] != phrase.text or not known:
                raise DataError(
                    f"{where}: {phrase.text!r} ({phrase.region}) is not at {phrase.start} to {phrase.end} of "
                    f"{caption.text!r}, or its region is none of {', '.join(REGIONS)}"
                )


def _stack(values: list[NDArray], name: str, shard: Path) -> NDArray:
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        raise DataError(f"{shard}: {name} has rows of different shapes {sorted(shapes)}")
    return np.stack(values)


def _decode(row: dict, size: int | None, shard: Path) -> dict[str, NDArray]:
    where = f"{shard}, identity {row['identity']}, index {row['index']}"
    empty = [name for name, value in row.items() if value is None]
    if empty:
        raise DataError(f"{where}: {', '.join(empty)} without a value")
    result: dict[str, NDArray] = {}
    stored = 0
    for column, name in _IMAGES.items():
        if column not in row:
            continue
        picture = decode_square(row[column], "L" if column == "regions" else "RGB", f"{where}, {column}")
        if stored not in (0, picture.shape[0]):
            raise DataError(f"{where}: {column} is {picture.shape[0]} px wide, image {stored}: they must be as large")
        stored = picture.shape[0]
        if size is not None and size != stored:
            shrinks = cv2.INTER_AREA if size < stored else cv2.INTER_CUBIC
            interpolation = cv2.INTER_NEAREST_EXACT if column in ("regions", MASKS) else shrinks
            picture = cv2.resize(picture, (size, size), interpolation=interpolation)
        result[name] = picture
    if "regions" in result and result["regions"].max() >= len(REGIONS):
        raise DataError(f"{where}: regions hold label {result['regions'].max()}, the last known is {len(REGIONS) - 1}")
    scale = (size or stored) / stored
    if PLACEMENT in row:
        result["sizes"] = crop_sizes(row[PLACEMENT], size or stored, where)
    for name, shape in (("landmarks_5", (5, 2)), ("landmarks_68", (68, 2))):
        points = np.asarray(row[name], dtype=np.float32)
        if points.shape != shape:
            raise DataError(f"{where}: {name} has shape {points.shape}, expected {shape}")
        result[name] = (points + 0.5) * scale - 0.5
    pose = row["pose"]
    result["pose"] = np.array([pose["yaw"], pose["pitch"], pose["roll"]], dtype=np.float32)
    for name in ("light", "shape", "expression", "camera"):
        result[name] = np.asarray(row[name], dtype=np.float32)
    for name in ("pose", "landmarks_5", "landmarks_68", "light", "shape", "expression", "camera"):
        if not np.isfinite(result[name]).all():
            raise DataError(f"{where}: {name} holds values that are not finite numbers")
    for name in ("identity", "index"):
        result[name] = np.array(row[name], dtype=np.int64)
    for name, values in _vocabularies(row.get("attributes", ())).items():
        value = row["attributes"].get(name)
        unknown = value == "" and _READ in row["attributes"]
        if value not in values and not unknown:
            raise DataError(f"{where}: attribute {name}={value!r} is none of {', '.join(values)}")
        result[f"attribute_{name}"] = np.array(UNKNOWN if unknown else values.index(value), dtype=np.int64)
    return result


def _vocabularies(names: Container[str]) -> dict[str, tuple[str, ...]]:
    """Returns the vocabularies of renders, or of photos whose attributes were read, by attribute."""
    return PHOTO_VOCABULARIES if _READ in names else VOCABULARIES if next(iter(VOCABULARIES)) in names else {}


def _open(stored: dict[str, ShardedArray], cache: Path, content: str) -> FaceArrays:
    names = [item.name for item in fields(FaceArrays) if item.name not in _NOT_NUMBERS]
    known = {name.removeprefix("attribute_") for name in stored if name.startswith("attribute_")}
    vocabularies = dict(_vocabularies(known))
    return FaceArrays(
        **{name: _numbers(stored[name]) for name in names},
        images=pictures_of(stored, "images"),
        regions=pictures_of(stored, "regions") if {"regions", "regions_end"} & stored.keys() else None,
        shading=pictures_of(stored, "shading"),
        masks=pictures_of(stored, "masks") if {"masks", "masks_end"} & stored.keys() else None,
        attributes={name: _numbers(stored[f"attribute_{name}"]) for name in vocabularies},
        vocabularies=vocabularies,
        content_hash=content,
        texts=RaggedTexts.of(stored, "captions"),
        cache=cache,
        sizes=_numbers(stored["sizes"]) if "sizes" in stored else None,
    )


def _numbers(stored: ShardedArray) -> NDArray:
    """Reads a field of few bytes per portrait into memory, read-only."""
    values = stored[:]
    values.flags.writeable = False
    return values
