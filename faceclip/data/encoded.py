"""Photographs stay encoded on disk and are decoded on access, because they are many and large."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceclip.data.writing import encode_picture
from faceclip.errors import DataError
from faceclip.storage.ragged import RaggedRows, pack
from faceclip.storage.shards import ShardedArray

FORMATS = ("PNG", "JPEG", "WEBP")


def decode_picture(data: bytes, mode: str, where: str) -> NDArray[np.uint8]:
    """Decodes a stored picture, (H, W, 3) in RGB or (H, W) in mode L. Raises DataError, which begins with `where`."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return np.array(image.convert(mode))
    except (OSError, SyntaxError) as error:
        raise DataError(f"{where} is not a readable picture in one of {', '.join(FORMATS)} ({error})") from error


def decode_square(stored: dict | None, mode: str, where: str) -> NDArray[np.uint8]:
    """Decodes the square picture of a `datasets.Image` cell. Raises DataError, which begins with `where`."""
    if not stored or not stored.get("bytes"):
        raise DataError(f"{where} has no picture")
    picture = decode_picture(stored["bytes"], mode, where)
    if picture.shape[0] != picture.shape[1]:
        raise DataError(f"{where} is {picture.shape[1]}×{picture.shape[0]}, expected a square")
    return picture


def encoded_fields(
    name: str, stored: Sequence[bytes], decoded: Sequence[NDArray[np.uint8]], *, resized: bool
) -> dict[str, NDArray]:
    """Returns fields of a shard with pictures as files: as they were stored, or as PNG if they were `resized`."""
    files = [encode_picture(picture, compress_level=1) for picture in decoded] if resized else list(stored)
    return pack(name, [np.frombuffer(file, np.uint8) for file in files], np.uint8)


@dataclass(frozen=True)
class EncodedPictures:
    """N pictures of one shape, indexed like a `ShardedArray` of uint8: by a row, a slice, or an array of rows."""

    stored: RaggedRows
    mode: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, fields: Mapping[str, ShardedArray], name: str, mode: str = "RGB") -> "EncodedPictures":
        """Returns the pictures whose files `encoded_fields` packed under this name."""
        stored = RaggedRows.of(fields, name)
        first = decode_picture(stored[0].tobytes(), mode, f"{name}, row 0")
        return cls(stored, mode, (len(stored), *first.shape))

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.stored)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return self._read(int(rows))
        read = [self._read(int(row)) for row in rows.reshape(-1)]
        values = np.stack(read) if read else np.empty((0, *self.shape[1:]), np.uint8)
        return values.reshape(*rows.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        values = self[:]
        return values if dtype is None else values.astype(dtype)

    def _read(self, row: int) -> NDArray[np.uint8]:
        where = f"{self.stored.name}, row {row}, in the cache"
        picture = decode_picture(self.stored[row].tobytes(), self.mode, where)
        if picture.shape != self.shape[1:]:
            raise DataError(f"{where} has shape {picture.shape}, the first one {self.shape[1:]}: they must be as large")
        return picture


def pictures_of(stored: Mapping[str, ShardedArray], name: str) -> ShardedArray:
    """Returns the pictures of this name (label maps for "regions") among the fields of shards, decoded or encoded."""
    if name in stored:
        return stored[name]
    # Read like a ShardedArray, and decoded on the way.
    return cast(ShardedArray, EncodedPictures.of(stored, name, "L" if name == "regions" else "RGB"))
