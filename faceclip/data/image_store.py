"""Finds pictures that a data set names by URL among local files; it never opens a connection.

Two forms are supported. One is a folder whose files are named by the key column, by SHA-256 or MD5 of the URL
(hexadecimal), or as the URL's last part, directly or in two-letter folders (`ab/abcd….jpg`). The other is the output of
img2dataset: parquet files with `url` and `key` beside tar files (or folders) of `KEY.jpg`; boxes are scaled to its
resized pictures.
"""

import errno
import hashlib
import logging
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from faceclip.data.cells import RejectedRecord
from faceclip.errors import DataError

logger = logging.getLogger(__name__)
ARCHIVE_ERRORS = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)  # what damaged archives raise
MAX_BYTES = 1 << 28  # of one encoded picture
SIZES = ("width", "height", "original_width", "original_height")  # of img2dataset
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def url_key(url: str) -> bytes:
    """Returns 64 bits of a URL's SHA-256, the key of the index in memory."""
    return hashlib.sha256(url.encode()).digest()[:8]


def files_below(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder in the order of names, those of a folder before those of its subfolders.

    Names that begin with a dot are skipped (for example caches; `datasets` skips them too). Links to folders are
    followed, except those that lead back to a parent. Unreadable folders are skipped with a warning.
    """
    real = Path(os.path.realpath(folder))
    return _files_below(folder, frozenset(map(str, (real, *real.parents))))


def _files_below(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError as error:
        logger.warning("%s cannot be looked into (%s): what lies there is left out", folder, error.strerror)
        return
    folders = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            folders.append(entry)
        else:
            yield Path(entry.path)
    for entry in folders:
        real = os.path.realpath(entry.path)
        if not entry.is_symlink() or real not in above:
            yield from _files_below(Path(entry.path), above | {real})


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_file(path: Path) -> bool:
    """Returns whether the file exists; impossible names do not. Raises RejectedRecord for other errors."""
    try:
        return path.is_file()
    except ValueError:  # a null byte, or text that does not encode
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise RejectedRecord("no_image", f"{path} cannot be looked for ({error.strerror})") from error


def with_slashes(name: str, folder: Path) -> str:
    """Replaces the backslashes of a path from Windows by slashes, unless a file in the folder has exactly this name."""
    if "\\" not in name or is_file(folder / name):
        return name
    return name.replace("\\", "/")


def clean_urls(cell: str) -> list[str]:
    """Returns the URLs that a cell may mean. FaceCaption-15M appends words to some of them, after a comma."""
    first = cell.split(", ", 1)[0].strip()
    return [cell] if first in ("", cell) else [cell, first]


def listing_hash(files: Iterable[Path], root: Path) -> str:
    """Returns the SHA-256 of names (relative to `root`) and sizes of files, in the given order. Raises OSError."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(os.fsencode(path.relative_to(root)) + f"\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()


class ImageStore:
    """Finds encoded pictures by URL or key below `root`. Raises DataError if the folder does not exist.

    cache: a folder that is skipped if it lies below `root`, like all names that begin with a dot.
    """

    def __init__(self, root: Path, cache: Path | None = None) -> None:
        if not root.is_dir():
            raise DataError(f"data.images={root}: no such folder; it must hold the pictures, nothing is downloaded")
        self.root, self.cache = root, cache and cache.resolve()
        self.shards: list[Path] = []
        self.index: dict[bytes, tuple[int, str, float]] = {}
        for table in self._files("*.parquet"):
            self._add_shard(table)

    def _files(self, pattern: str) -> list[Path]:
        """Returns the files below the folder in the order of their names, except hidden ones and those of the cache."""
        found = sorted(file for file in files_below(self.root) if fnmatchcase(file.name, pattern))
        cache = self.cache if self.cache and self.cache.is_relative_to(self.root.resolve()) else None
        return [file for file in found if file.is_file() and not (cache and file.resolve().is_relative_to(cache))]

    def _add_shard(self, table: Path) -> None:
        try:
            file = pq.ParquetFile(table)
            names = set(file.schema_arrow.names)
            if not {"url", "key"} <= names:
                return
            wanted = [n for n in ("url", "key", "status", *SIZES) if n in names]
            columns = file.read(columns=wanted).to_pydict()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{table} cannot be read ({error}): fetch this shard again or remove it") from error
        self.shards.append(table.with_suffix(""))
        count = len(columns["url"])
        status = columns.get("status", ["success"] * count)
        sizes = zip(*(columns.get(name, [None] * count) for name in SIZES), strict=True)
        for url, key, state, size in zip(columns["url"], columns["key"], status, sizes, strict=True):
            if state == "success" and url is not None:
                self.index[url_key(url)] = (len(self.shards) - 1, str(key), _scale(*size))

    def fingerprint(self) -> str:
        """Returns the SHA-256 of names and sizes of the files; contents are compared when pictures are read again."""
        return listing_hash(self._files("*"), self.root)

    def find(self, url: str, key: str) -> tuple[bytes | str, float]:
        """Returns the picture as bytes or path, and the factor from original pixels to its pixels.

        The factor is NaN if the picture has another shape than its original. Raises RejectedRecord.
        """
        for candidate in clean_urls(url):
            entry = self.index.get(url_key(candidate))
            if entry is not None:
                shard, name, scale = entry
                return self._member(self.shards[shard], name), scale
        for name in self._names(url, key):
            for folder in (self.root, self.root / name[:2]):
                for suffix in ("", *SUFFIXES):
                    path = folder / f"{name}{suffix}"
                    if self._holds(path):
                        return str(path), 1.0
        raise RejectedRecord("no_image", f"{key}: no picture of {url!r} below {self.root}")

    def _names(self, url: str, key: str) -> list[str]:
        names = [key]
        for candidate in clean_urls(url):
            encoded = candidate.encode()
            names += [hashlib.sha256(encoded).hexdigest(), hashlib.md5(encoded, usedforsecurity=False).hexdigest()]
            with suppress(ValueError):  # no URL, as "http://[x/y.jpg" is none: it has no last part
                names.append(Path(unquote(urlsplit(candidate).path)).name)
        # A name comes from the data: it must stay one component of a path.
        return [name for name in names if name and name not in (".", "..") and "/" not in name and "\0" not in name]

    def _holds(self, path: Path) -> bool:
        """Returns whether a path from a row is a file below the folder after links are resolved."""
        try:
            return is_file(path) and path.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError):  # links in a circle
            return False

    def _member(self, shard: Path, name: str) -> bytes | str:
        tar = shard.with_name(f"{shard.name}.tar")
        if tar.is_file():
            archive, members = _members(tar)
            for suffix in SUFFIXES:
                if (member := members.get(f"{name}{suffix}")) is not None:
                    if member[1] > MAX_BYTES:
                        raise RejectedRecord("image_too_large", f"{tar}, {name}: more than {MAX_BYTES:,} bytes")
                    with archive.open("rb") as file:
                        file.seek(member[0])
                        return file.read(member[1])
        for suffix in SUFFIXES:
            path = shard / f"{name}{suffix}"
            if "/" not in name and self._holds(path):
                return str(path)
        raise RejectedRecord("no_image", f"{shard.name}/{name} is listed in {shard.name}.parquet but is not there")


def _scale(width: int | None, height: int | None, wide: int | None, high: int | None) -> float:
    """Returns the factor from pixels of the original (wide, high) to those of the stored picture; 1 if they are
    unknown.

    It is NaN if no single factor fits, because the picture was cropped or got a border.
    """
    if not (width and wide):
        return 1.0
    # Both sides were rounded to whole pixels, up to one pixel off.
    if height and high and abs(width * high - height * wide) > max(wide, high):
        return math.nan
    return width / wide


@lru_cache(maxsize=16)
def _members(tar: Path) -> tuple[Path, dict[str, tuple[int, int]]]:
    """Returns the place of each file in a tar: name → (offset, bytes)."""
    try:
        with tarfile.open(tar) as archive:
            files = {Path(m.name).name: (m.offset_data, m.size) for m in archive.getmembers() if m.isfile()}
    except (*ARCHIVE_ERRORS, OSError) as error:
        raise DataError(f"{tar} cannot be read ({error}): fetch it again or remove it with its parquet") from error
    return tar, files
