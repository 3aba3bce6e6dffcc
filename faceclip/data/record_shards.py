"""Shards of records as a resumable pass over the rows of any data writes them, and what is made from them."""

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
    """Fields `picture_…` and `bytes`: the files that the rows of a block name, and their sizes, −1 for missing ones."""
    # An image folder lists its pictures; elsewhere only the rows say which files they name, found or missing.
    named = [] if blocks.source.layout == "image_folder" else map(blocks.mapping.picture_path, block.rows)
    paths = [path for path in named if path]
    sizes = np.array([blocks.reader.bytes_of(path) for path in paths], np.int64)
    return pack_texts("picture", paths) | {"bytes": sizes}


def first_outdated(records: ShardFolder, reader: PortraitReader, *, hashes: bool) -> int | None:
    """The first shard whose rows name a picture that was added, removed or replaced by one of another size since.

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
    """The landmarks of the usable rows of a shard, by their numbers."""
    return dict(zip(shard["row"].tolist(), shard["landmarks"], strict=True))


def check_same_rows(
    good: Sequence[Usable], shard: Mapping[str, NDArray], block: Block, records: ShardFolder, source: str
) -> None:
    """Raises DataError unless the pictures that were read again are those of the shard."""
    if [portrait.digest for _, _, portrait in good] != shard["digest"].tolist():
        raise DataError(
            f"{source}: rows {block.start} to {block.start + len(block.rows)} are not the ones that "
            f"{records.folder} was built from: delete this folder, it is built anew"
        )


def made_of(records: ShardFolder, number: int) -> dict[str, str]:
    """The note that a shard of features keeps about the records from which it was made."""
    return {"records": records.entries[number]["sha256"]}


def cut_strangers(records: ShardFolder, *parts: ShardFolder) -> None:
    """Removes the shards of each part that were made from other records than those that are there now."""
    for part in parts:
        for number, (entry, source) in enumerate(zip(part.entries, records.entries, strict=False)):
            if entry["records"] != source["sha256"]:
                part.cut(number)
                break


def read_position(path: Path, block: int) -> dict[str, Any] | None:
    """The position of a stream after it had given `block` blocks, or None if that was not noted."""
    if not path.is_file():
        return None
    try:
        stored = parse_json(path.read_bytes())
        return stored["position"] if stored["block"] == block else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is corrupt ({error}): delete it, the rows are then skipped one by one") from error
