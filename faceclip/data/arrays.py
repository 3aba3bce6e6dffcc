"""A split of a portrait data set as numpy arrays: decoded once, then memory-mapped.

The cache lies beside the data in ``DIR/.arrays``, keyed by the content of the shards, the size and this
module's format; it is built in a temporary folder and renamed, so that a killed process leaves nothing half.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from faceclip.data.records import SPLITS, VOCABULARIES, Caption, caption_from_dict, features
from faceclip.errors import DataError, EmptyDatasetError

_FORMAT = "1"
_IMAGES = {"image": "images", "regions": "regions", "shading": "shading"}
_ROW_BATCH = 256
T = TypeVar("T")


@dataclass(frozen=True)
class FaceArrays:
    """N portraits of one split at S px. Landmarks are pixels of these S px images; angles are degrees."""

    images: NDArray[np.uint8]  # (N, S, S, 3) RGB
    regions: NDArray[np.uint8]  # (N, S, S) labels of `REGIONS`
    shading: NDArray[np.uint8]  # (N, S, S, 3) lit grey geometry, black outside the face
    identity: NDArray[np.int64]  # (N,)
    index: NDArray[np.int64]  # (N,) within the identity; 0 is the frontal portrait
    pose: NDArray[np.float32]  # (N, 3) yaw, pitch, roll
    landmarks_5: NDArray[np.float32]  # (N, 5, 2)
    landmarks_68: NDArray[np.float32]  # (N, 68, 2)
    light: NDArray[np.float32]  # (N, 27)
    shape: NDArray[np.float32]  # (N, K)
    expression: NDArray[np.float32]  # (N, E)
    camera: NDArray[np.float32]  # (N, C)
    attributes: dict[str, NDArray[np.int64]]  # name → (N,) classes, positions in `vocabularies`
    vocabularies: dict[str, tuple[str, ...]]
    content_hash: str
    captions_path: Path

    def __len__(self) -> int:
        return len(self.identity)

    @property
    def size(self) -> int:
        """Side S of the images in pixels."""
        return self.images.shape[1]

    @cached_property
    def captions(self) -> list[list[Caption]]:
        """The captions of each portrait; parsed on first use."""
        rows = json.loads(self.captions_path.read_text(encoding="utf-8"))
        return [[caption_from_dict(stored) for stored in row] for row in rows]

    def attribute_values(self, name: str) -> NDArray[np.str_]:
        """The attribute as words (N,) instead of classes."""
        return np.array(self.vocabularies[name])[self.attributes[name]]


def load_arrays(
    directory: str | os.PathLike[str], split: str, *, size: int | None = None, workers: int = 2
) -> FaceArrays:
    """Arrays of one split, decoded on first use and memory-mapped (read-only) after that.

    `size` resizes pictures (area average), label maps (nearest) and landmarks; None keeps the stored size.
    Raises `DataError` for missing or corrupt shards and columns, `EmptyDatasetError` for an empty split.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    root = Path(directory)
    shards = shard_paths(root, split)
    content = _content_hash(shards)
    cache = root / ".arrays" / f"{split}-{size or 'stored'}-{content[:16]}-{_FORMAT}"
    if not cache.is_dir():
        _build(cache, shards, size, workers)
    return _open(cache, content)


def shard_paths(root: Path, split: str) -> list[Path]:
    """The parquet files of a split in order. Raises `DataError` when there are none or some are missing."""
    shards = sorted((root / "data").glob(f"{split}-*.parquet"))
    if not shards:
        raise DataError(
            f"no data/{split}-*.parquet below {root}: check the path, or generate the data with "
            f"`python -m faceclip.data.synthetic --out {root}`"
        )
    announced = shards[0].stem.rsplit("-of-", 1)
    if len(announced) == 2 and announced[1].isdigit() and int(announced[1]) != len(shards):
        raise DataError(
            f"{root}/data has {len(shards)} of {int(announced[1])} {split} shards: run the generator again, "
            "it completes what is missing"
        )
    return shards


def _content_hash(shards: list[Path]) -> str:
    digest = hashlib.sha256()
    for shard in shards:
        with shard.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _build(cache: Path, shards: list[Path], size: int | None, workers: int) -> None:
    count = sum(_row_count(shard) for shard in shards)
    if count == 0:
        raise EmptyDatasetError(f"{shards[0].parent} holds no portraits in {shards[0].name.split('-')[0]}")
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=cache.parent, prefix=".building-"))
    try:
        _write_arrays(temporary, shards, count, size, workers)
        try:
            temporary.rename(cache)
        except OSError:
            # Another process was faster; its cache has the same content.
            if not cache.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _row_count(shard: Path) -> int:
    return _read(shard, lambda: pq.ParquetFile(shard).metadata.num_rows)


def _read(shard: Path, action: Callable[[], T]) -> T:
    try:
        return action()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shard} is corrupt ({error}): delete it and run the generator again") from error


def _rows(shards: list[Path]) -> Iterator[tuple[Path, list[dict]]]:
    expected = features()
    for shard in shards:
        file = _read(shard, lambda shard=shard: pq.ParquetFile(shard))
        missing = sorted(set(expected) - set(file.schema_arrow.names))
        if missing:
            raise DataError(f"{shard} lacks the columns {', '.join(missing)}")
        batches = file.iter_batches(batch_size=_ROW_BATCH, columns=list(expected))
        while (batch := _read(shard, lambda batches=batches: next(batches, None))) is not None:
            yield shard, batch.to_pylist()


def _write_arrays(target: Path, shards: list[Path], count: int, size: int | None, workers: int) -> None:
    maps: dict[str, np.memmap] = {}
    captions: list[list[dict]] = []
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        for shard, rows in _rows(shards):
            decoded = list(pool.map(lambda row, shard=shard: _decode(row, size, shard), rows))
            for name in decoded[0]:
                stacked = _stack([row[name] for row in decoded], name, shard)
                if name not in maps:
                    shape = (count, *stacked.shape[1:])
                    maps[name] = np.lib.format.open_memmap(
                        target / f"{name}.npy", mode="w+", dtype=stacked.dtype, shape=shape
                    )
                if maps[name].shape[1:] != stacked.shape[1:]:
                    raise DataError(f"{shard}: {name} has shape {stacked.shape[1:]}, before {maps[name].shape[1:]}")
                maps[name][done : done + len(rows)] = stacked
            captions += [row["captions"] for row in rows]
            done += len(rows)
    for array in maps.values():
        array.flush()
    (target / "captions.json").write_text(json.dumps(captions), encoding="utf-8")


def _stack(values: list[NDArray], name: str, shard: Path) -> NDArray:
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        raise DataError(f"{shard}: {name} has rows of different shapes {sorted(shapes)}")
    return np.stack(values)


def _decode(row: dict, size: int | None, shard: Path) -> dict[str, NDArray]:
    where = f"{shard}, identity {row['identity']}, index {row['index']}"
    result: dict[str, NDArray] = {}
    stored = 0
    for column, name in _IMAGES.items():
        picture = _decode_png(row[column], "L" if column == "regions" else "RGB", f"{where}, {column}")
        stored = picture.shape[0]
        if size is not None and size != stored:
            shrinks = cv2.INTER_AREA if size < stored else cv2.INTER_CUBIC
            interpolation = cv2.INTER_NEAREST_EXACT if column == "regions" else shrinks
            picture = cv2.resize(picture, (size, size), interpolation=interpolation)
        result[name] = picture
    scale = (size or stored) / stored
    for name, shape in (("landmarks_5", (5, 2)), ("landmarks_68", (68, 2))):
        points = np.asarray(row[name], dtype=np.float32)
        if points.shape != shape:
            raise DataError(f"{where}: {name} has shape {points.shape}, expected {shape}")
        result[name] = (points + 0.5) * scale - 0.5
    pose = row["pose"]
    result["pose"] = np.array([pose["yaw"], pose["pitch"], pose["roll"]], dtype=np.float32)
    for name in ("light", "shape", "expression", "camera"):
        result[name] = np.asarray(row[name], dtype=np.float32)
    for name in ("identity", "index"):
        result[name] = np.array(row[name], dtype=np.int64)
    for name, values in VOCABULARIES.items():
        value = row["attributes"].get(name)
        if value not in values:
            raise DataError(f"{where}: attribute {name}={value!r} is none of {', '.join(values)}")
        result[f"attribute_{name}"] = np.array(values.index(value), dtype=np.int64)
    return result


def _decode_png(stored: dict | None, mode: str, where: str) -> NDArray[np.uint8]:
    if not stored or not stored.get("bytes"):
        raise DataError(f"{where} has no picture")
    try:
        with Image.open(io.BytesIO(stored["bytes"]), formats=("PNG",)) as image:
            picture = np.array(image.convert(mode))
    except (OSError, SyntaxError) as error:
        raise DataError(f"{where} is not a readable PNG ({error})") from error
    if picture.shape[0] != picture.shape[1]:
        raise DataError(f"{where} is {picture.shape[1]}×{picture.shape[0]}, expected a square")
    return picture


def _open(cache: Path, content: str) -> FaceArrays:
    plain = {
        item.name: np.load(cache / f"{item.name}.npy", mmap_mode="r")
        for item in fields(FaceArrays)
        if (cache / f"{item.name}.npy").is_file()
    }
    attributes = {name: np.load(cache / f"attribute_{name}.npy") for name in VOCABULARIES}
    return FaceArrays(
        **plain,
        attributes=attributes,
        vocabularies=dict(VOCABULARIES),
        content_hash=content,
        captions_path=cache / "captions.json",
    )
