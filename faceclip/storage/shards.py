"""Keeps shards of arrays on disk: written in order, resumable after a kill, verified and memory-mapped when they are
read.

A folder holds `00000.safetensors`, … and `manifest.json` with the SHA-256 and size of each. A shard is written beside
its place, synced and renamed before the manifest lists it, so what the manifest lists is whole; a shard that was not
listed yet is written again, with the same bytes.
"""

import errno
import json
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from faceclip.errors import DataError
from faceclip.storage.files import write_bytes, write_json
from faceclip.storage.hashes import bytes_hash, file_hash
from faceclip.storage.regular import parse_json

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}


class ShardFolder:
    """A folder of one kind of shards. about: facts behind its key, which the manifest keeps for people to read.

    Raises DataError for a damaged manifest.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.about = folder, dict(about)
        self.entries: list[dict[str, Any]] = []
        self.complete = False
        self._maps: dict[int, dict[str, NDArray]] = {}
        path = folder / "manifest.json"
        if path.is_file():
            try:
                stored = parse_json(path.read_bytes())
                self.entries, self.complete = stored["shards"], stored["complete"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} is corrupt ({error}): delete {folder}, it is built again") from error

    def __len__(self) -> int:
        return len(self.entries)

    def append(self, fields: Mapping[str, NDArray], **facts: Any) -> None:
        """Writes the next shard, and `facts` about it into the manifest.

        Raises DataError if the disk is full, or if the fields have other shapes or types than those of the first shard.
        """
        path = self.path(len(self))
        first = self.read(0) if self.entries else fields
        for name in first.keys() | fields.keys():
            before, now = (_row_of(given.get(name)) for given in (first, fields))
            if before != now:
                raise DataError(f"{path}: {name} has rows of {now}, in the first shard {before}")
        data = save({name: np.ascontiguousarray(values) for name, values in fields.items()})
        write_bytes(path, data, alone=True)
        self.entries.append({"bytes": len(data), "sha256": bytes_hash(data), **facts})
        self._save()

    def finish(self) -> None:
        """Marks the folder as complete."""
        if not self.complete:
            self.complete = True
            self._save()

    def cut(self, count: int) -> None:
        """Removes all but the first `count` shards."""
        if count < len(self):
            self.entries, self.complete = self.entries[:count], False
            self._maps = {number: arrays for number, arrays in self._maps.items() if number < count}
            self._save()

    def _save(self) -> None:
        manifest = {"about": self.about, "complete": self.complete, "shards": self.entries}
        write_json(self.folder / "manifest.json", manifest, alone=True)

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    def verify(self, number: int, *, hashes: bool = True) -> None:
        """Raises DataError if a shard is missing, truncated, or (with `hashes`) changed in any bit."""
        path, entry = self.path(number), self.entries[number]
        remedy = f"delete the folder {self.folder} and run again, it is built anew"
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                raise DataError(f"{path} is corrupt: {size:,} bytes, {entry['bytes']:,} were written; {remedy}")
            if hashes and file_hash(path) != entry["sha256"]:
                raise DataError(f"{path} is corrupt: its SHA-256 differs from the one noted when written; {remedy}")
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); {remedy}") from error

    def read(self, number: int) -> dict[str, NDArray]:
        """Returns the fields of a verified shard, memory-mapped and read-only."""
        if number not in self._maps:
            self._maps[number] = map_safetensors(self.path(number))
        return self._maps[number]

    def open(self, *, hashes: bool = True) -> dict[str, "ShardedArray"]:
        """Verifies all shards and returns them as one array per field. Raises DataError."""
        for number in range(len(self)):
            self.verify(number, hashes=hashes)
        shards = [self.read(number) for number in range(len(self))]
        return {name: ShardedArray([shard[name] for shard in shards]) for name in shards[0]} if shards else {}


def _row_of(values: NDArray | None) -> str:
    """Returns shape and type of one row as text."""
    return "nothing" if values is None else f"shape {values.shape[1:]} and type {values.dtype}"


def map_safetensors(path: Path) -> dict[str, NDArray]:
    """Returns the tensors of a safetensors file as read-only views of one memory map (a process may have about 65,000).

    The format is: 8 bytes with the length of a JSON header, the header, the data. Raises DataError if the file cannot
    be mapped.
    """
    try:
        data = _map(path)
    except OSError as error:
        remedy = "raise the limit of open files (`ulimit -n`)" if error.errno == errno.EMFILE else "is it readable?"
        raise DataError(f"{path} cannot be mapped into memory ({error.strerror}): {remedy}") from error
    length = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + length].tobytes())
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            arrays[name] = data[start:stop].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        return np.memmap(path, np.uint8, "r")
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    # Each map keeps a file open, and the usual limit, a thousand, may be raised by the process itself.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # a system that has another limit behind this one
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return np.memmap(path, np.uint8, "r")


@dataclass(frozen=True)
class ShardedArray:
    """Arrays joined along their first axis without copying; `values[rows]` reads those rows only.

    rows: the rows shown, in order, when only some are; None: all.
    """

    parts: Sequence[NDArray]
    rows: NDArray[np.int64] | None = None
    _starts: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        starts = np.cumsum([0, *(len(part) for part in self.parts)])
        object.__setattr__(self, "_starts", starts)

    def __len__(self) -> int:
        return int(self._starts[-1]) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    def take(self, rows: NDArray[np.int64]) -> "ShardedArray":
        """Returns the same data with only these rows."""
        return ShardedArray(self.parts, rows if self.rows is None else self.rows[rows])

    def __iter__(self) -> Iterator[NDArray]:
        """Yields a copy of each row."""
        return (self[row] for row in range(len(self)))

    def __getitem__(self, index: Any) -> NDArray:
        """Returns a copy of the rows of an int, a slice, integers of any shape, or a mask of all rows."""
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        index = np.asarray(index)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise IndexError(f"a mask of shape {index.shape} does not fit {len(self)} rows")
            index = np.flatnonzero(index)
        if index.size and (index.min() < -len(self) or index.max() >= len(self)):
            row = index.max() if index.max() >= len(self) else index.min()
            raise IndexError(f"row {row} of {len(self)}")
        flat = np.where(index < 0, index + len(self), index).reshape(-1).astype(np.int64)
        if self.rows is not None:
            flat = self.rows[flat]
        result = np.empty((len(flat), *self.shape[1:]), self.dtype)
        which = np.searchsorted(self._starts, flat, side="right") - 1
        for part in np.unique(which):
            here = which == part
            result[here] = self.parts[part][flat[here] - self._starts[part]]
        return result.reshape((*index.shape, *self.shape[1:]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        values = self[:]
        return values if dtype is None else values.astype(dtype)
