"""Resumable passes that write shards of records and shards of what is computed from them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faceclip.data.blocks import Block, SourceBlocks, check_writable
from faceclip.data.portrait_pool import Usable
from faceclip.data.portrait_reader import PortraitReader
from faceclip.data.rejects import RejectCounts
from faceclip.errors import DataError, EmptyDatasetError
from faceclip.storage.files import write_json
from faceclip.storage.ragged import pack_texts, unpack_texts
from faceclip.storage.regular import parse_json
from faceclip.storage.shards import ShardFolder


class SplitBuilder(ABC):
    """Builds the shards of one split of a source. Callers hold the cache's lock from here to the end of `build`.

    stem: begins the names of the split's files in the cache. keys: of the folder of each kind of shards, that of the
    records first. about: what each folder notes of itself. Shard i is a function of source rows [i·K, (i+1)·K) alone.
    """

    def __init__(
        self,
        blocks: SourceBlocks,
        split: str,
        cache: Path,
        *,
        stem: str,
        keys: Mapping[str, str],
        about: Mapping[str, dict[str, Any]],
    ) -> None:
        self.blocks, self.config, self.source = blocks, blocks.config, blocks.source
        self.split, self.cache, self.stem, self.keys, self.about = split, cache, stem, keys, about
        self.records = next(iter(keys))
        self.report = cache / f"{stem}-report-{keys[self.records]}.json"

    @abstractmethod
    def fill(self, folders: Mapping[str, ShardFolder]) -> None:
        """Writes the missing shards of the folders by kind."""

    def remarks(self, folders: Mapping[str, ShardFolder]) -> tuple[dict[str, int], str]:
        """Returns further numbers for the report, and words about them."""
        return {}, ""

    def build(self, *, writable: bool = True) -> dict[str, ShardFolder]:
        """Builds the missing shards, prints how many rows were rejected, and returns the folders by kind.

        Shards from the first one whose pictures, named by path, were added, removed or replaced are built again.
        writable: false if the cache can only be read. Raises TooManyBadRecordsError; DataError for a damaged shard, a
        source that changed meanwhile, or missing shards that cannot be written; and EmptyDatasetError if no row is
        usable.
        """
        folders = {
            kind: ShardFolder(self.cache / f"{self.stem}-{kind}-{key}", self.about[kind])
            for kind, key in self.keys.items()
        }
        records = folders[self.records]
        old = first_outdated(records, self.blocks.reader, hashes=self.config.verify == "hashes")
        if old is not None:
            row = old * self.config.shard_rows
            print(f"{self.split}: pictures changed; the cache is built again from row {row} on", flush=True)
            for folder in folders.values():
                folder.cut(old)
        cut_strangers(*folders.values())
        fresh = not all(folder.complete for folder in folders.values())
        if fresh:
            check_writable(writable, self.cache, f"{self.source.name}, split {self.split},")
            self.fill(folders)
        counts = self.counts(records)
        counts.check(self.config.max_bad_share, self.report, self.source.name, at_end=True)
        if fresh:
            noted, words = self.remarks(folders)
            counts.write(self.report, self.source.name, **noted)
            print(f"{self.split}: {counts}{words}; report {self.report}", flush=True)
        if counts.rows == counts.bad:
            raise EmptyDatasetError(f"{self.source.name}, split {self.split}: no usable row; see {self.report}")
        return folders

    def counts(self, records: ShardFolder) -> RejectCounts:
        """Returns how many rows of the written records were rejected."""
        counts = RejectCounts()
        for entry in records.entries:
            counts.merge(entry["rejected"])
        return counts

    def missing_blocks(self, folders: Sequence[ShardFolder], counts: RejectCounts) -> Iterator[Block]:
        """Yields the blocks of rows that lack a shard in any of these folders, of which the first has the records.

        The caller writes their shards and adds what it rejects to `counts` before it takes the next block. After the
        last one the folders are complete.
        """
        first = min(map(len, folders))
        resume = self.cache / f"{self.stem}-position-{self.keys[self.records]}.json"
        for block in self.blocks.read(first, read_position(resume, first), f"{self.split} pictures"):
            yield block
            if (position := self.source.position()) is not None:
                write_json(resume, {"block": block.number + 1, "position": position}, alone=True)
            block.done()
            counts.check(self.config.max_bad_share, self.report, self.source.name, at_end=False)
        if len({len(folder) for folder in folders}) > 1:
            raise DataError(f"{self.source.name} ended early: the cache holds more rows; delete {folders[0].folder}")
        for folder in folders:
            folder.finish()
        resume.unlink(missing_ok=True)
        resume.with_name(f".{resume.name}.tmp").unlink(missing_ok=True)  # of a build killed while writing it


def named_pictures(blocks: SourceBlocks, block: Block) -> dict[str, NDArray]:
    """Returns the fields `picture_…` and `bytes`: the files that the rows of a block name, and their sizes (−1:
    missing)."""
    # An image folder lists its pictures; elsewhere only the rows say which files they name, found or missing.
    named = [] if blocks.source.layout == "image_folder" else map(blocks.mapping.picture_path, block.rows)
    paths = [path for path in named if path]
    sizes = np.array([blocks.reader.bytes_of(path) for path in paths], np.int64)
    return pack_texts("picture", paths) | {"bytes": sizes}


def first_outdated(records: ShardFolder, reader: PortraitReader, *, hashes: bool) -> int | None:
    """Returns the first shard with a picture that was added, removed or replaced by one of another size since, or None.

    hashes: whether shards are compared bit by bit. Raises DataError for a damaged one.
    """
    for number, entry in enumerate(records.entries):
        if not entry["pictures"]:
            continue
        records.verify(number, hashes=hashes)
        shard = records.read(number)
        if [reader.bytes_of(path) for path in unpack_texts("picture", shard)] != shard["bytes"].tolist():
            return number
    return None


def known_landmarks(shard: Mapping[str, NDArray]) -> dict[int, NDArray]:
    """Returns the landmarks of a shard's usable rows by their numbers."""
    return dict(zip(shard["row"].tolist(), shard["landmarks"], strict=True))


def check_same_rows(
    good: Sequence[Usable], shard: Mapping[str, NDArray], block: Block, records: ShardFolder, source: str
) -> None:
    """Raises DataError unless the rows that were read again are those of the shard."""
    if [portrait.digest for _, _, portrait in good] != shard["digest"].tolist():
        raise DataError(
            f"{source}: rows {block.start} to {block.start + len(block.rows)} are not the ones that "
            f"{records.folder} was built from: delete this folder, it is built anew"
        )


def made_of(records: ShardFolder, number: int) -> dict[str, str]:
    """Returns the note by which a shard of features identifies its records."""
    return {"records": records.entries[number]["sha256"]}


def cut_strangers(records: ShardFolder, *parts: ShardFolder) -> None:
    """Removes the shards of each part that were made from other records than the present ones."""
    for part in parts:
        for number, (entry, source) in enumerate(zip(part.entries, records.entries, strict=False)):
            if entry["records"] != source["sha256"]:
                part.cut(number)
                break


def read_position(path: Path, block: int) -> dict[str, Any] | None:
    """Returns the noted position of a stream after `block` blocks, or None if there is no note."""
    if not path.is_file():
        return None
    try:
        stored = parse_json(path.read_bytes())
        return stored["position"] if stored["block"] == block else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is corrupt ({error}): delete it, the rows are then skipped one by one") from error
