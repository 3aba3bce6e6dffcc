"""Helpers of resumable passes that write shards of records and shards of what is computed from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faceclip.data.blocks import Block, SourceBlocks
from faceclip.data.portrait_pool import Usable
from faceclip.data.portrait_reader import PortraitReader
from faceclip.data.recorded import pack_texts, unpack_texts
from faceclip.errors import DataError
from faceclip.storage.regular import parse_json
from faceclip.storage.shards import ShardFolder


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
