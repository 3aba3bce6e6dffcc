"""Processes rows block by block to portraits and to arrays on disk; passes resume after a kill and verify what they
read.

`SourceBlocks` reads the rows of any data, finds their faces and cuts them. `kept_rows` caches what is computed from
known rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from faceclip.data.cells import RejectedRecord
from faceclip.data.frames import Framing
from faceclip.data.mapping import DataConfig, RowMapping
from faceclip.data.portrait_pool import Outcome, PortraitPool, Usable
from faceclip.data.portrait_reader import PortraitReader
from faceclip.data.rejects import RejectCounts
from faceclip.data.sources import Position, RowSource
from faceclip.errors import DataError
from faceclip.storage.hashes import short_key
from faceclip.storage.locks import locked_cache
from faceclip.storage.shards import ShardedArray, ShardFolder
from faceclip.training.progress import bar

ROWS = 256  # of a block
Builder = Callable[[int, int], Mapping[str, NDArray]]


def kept_rows(
    cache: Path,
    name: str,
    facts: Mapping[str, Any],
    count: int,
    build: Builder,
    *,
    rows: int = ROWS,
    around: Callable[[], AbstractContextManager] = nullcontext,
    hashes: bool = True,
) -> dict[str, ShardedArray]:
    """Returns fields of `count` rows each, which are built on first use and kept as shards in `cache/NAME-KEY`.

    If several processes call this at the same time, one builds and the others wait and read.

    Args:
        name: words for people, joined by hyphens. facts: what decides the content; count and block count, too.
        build: rows [start, stop) → arrays of stop − start rows, always the same fields, shapes and types.
        rows: of a block. around: makes the context in which blocks are built; a complete folder does not enter it.
        hashes: whether every bit is compared with what was written, or lengths alone.

    Raises:
        DataError: a shard that was changed or truncated since it was written (the message says what to delete), a
            builder that changes its shapes, a disk that is full, or missing blocks where nothing can be written.
        ConfigError: the folder `cache` cannot be made.
    """
    about = {**facts, "count": count, "rows": rows}
    with locked_cache(cache) as writable:
        folder = ShardFolder(cache / f"{name}-{short_key(*about.values())}", about)
        if not folder.complete:
            check_writable(writable, cache, name)
            with around(), bar(name.replace("-", " "), count) as advance:
                for start in range(len(folder) * rows, count, rows):
                    stop = min(start + rows, count)
                    folder.append(build(start, stop))
                    advance(stop, count)
            folder.finish()
    # Outside of the lock: the processes of a run read terabytes side by side, not one after another.
    return folder.open(hashes=hashes)


def check_writable(writable: bool, cache: Path, what: str) -> None:
    """Raises DataError if a read-only cache is incomplete."""
    if not writable:
        raise DataError(
            f"cache={cache}: {what} is not complete there and it cannot be written: name another folder by cache=DIR"
        )


def row_count(config: DataConfig, source: RowSource) -> int | None:
    """Returns the number of rows of a source, at most `data.limit`, or None if only reading to the end tells."""
    limit = config.limit or None
    return source.count if limit is None else min(limit, source.count or limit)


def row_blocks(
    config: DataConfig, source: RowSource, first: int, position: Position | None
) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
    """Yields number and rows of block `first` and of those after it.

    A block has `data.shard_rows` rows, and fewer at the end or at `data.limit`. position: of the stream at the
    beginning of the first block, if known.
    """
    size, limit = config.shard_rows, config.limit or None
    rows = source.rows(first * size, position)
    rows = islice(rows, None if limit is None else max(0, limit - first * size))
    for number in count_from(first):
        block = list(islice(rows, size))
        if not block:
            return
        yield number, block


class SourceBlocks:
    """The rows of one split of any data in blocks of `data.shard_rows`, with their portraits found and cut.

    crop_size, picture_size, cache, framing: see `PortraitReader`; captions_needed: see `RowMapping`. Raises DataError
    for a mapped column that is missing.
    """

    def __init__(
        self,
        config: DataConfig,
        source: RowSource,
        *,
        crop_size: int,
        picture_size: int,
        cache: Path,
        framing: Framing | None = None,
        captions_needed: bool = True,
    ) -> None:
        self.config, self.source = config, source
        self.mapping = RowMapping(config, source.layout, source.columns, source.name, captions_needed=captions_needed)
        self.reader = PortraitReader(
            config,
            folder=source.folder,
            crop_size=crop_size,
            picture_size=picture_size,
            cache=cache,
            hub=source.name if source.folder is None else "",
            framing=framing,
        )

    @property
    def facts(self) -> list[str]:
        """Texts that change whenever usable rows or places of faces may change."""
        return [self.source.content_hash, self.mapping.facts, self.reader.finding]

    def read(self, first: int, position: Position | None, title: str) -> Iterator["Block"]:
        """Yields block number `first` and those after it.

        position: of the stream at the beginning of that block, if known. title: of the progress bar.
        """
        total = row_count(self.config, self.source)
        with PortraitPool(self.config, self.mapping, self.reader) as pool, bar(title, total) as advance:
            for number, rows in row_blocks(self.config, self.source, first, position):
                start = number * self.config.shard_rows
                yield Block(number, start, rows, pool, lambda done: advance(done, total))


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a source, from number `start` on."""

    number: int
    start: int
    rows: Sequence[Mapping[str, Any]]
    pool: PortraitPool
    advance: Callable[[int], None]

    def parts(self, size: int, landmarks: Mapping[int, NDArray] | None = None) -> Iterator[list[Outcome]]:
        """Yields the outcomes of `size` rows at a time, so that only their pictures are in memory.

        landmarks: by row, if they are known; then only these rows are prepared. Raises DataError if a worker dies.
        """
        for first in range(0, len(self.rows), size):
            part = self.rows[first : first + size]
            yield self.pool.prepare(part, self.start + first, landmarks)
            self.advance(self.start + first + len(part))

    def prepare(self, landmarks: Mapping[int, NDArray] | None = None) -> list[Outcome]:
        """Returns the outcomes of all rows; otherwise like `parts`."""
        return self.pool.prepare(self.rows, self.start, landmarks)

    def done(self) -> None:
        """Moves the progress bar to the end of the block."""
        self.advance(self.start + len(self.rows))


def usable(outcomes: Sequence[Outcome], rejected: RejectCounts) -> list[Usable]:
    """Returns the usable rows among outcomes, and counts the others in `rejected`."""
    for outcome in outcomes:
        if isinstance(outcome, RejectedRecord):
            rejected.add(outcome)
    return [outcome for outcome in outcomes if not isinstance(outcome, RejectedRecord)]
