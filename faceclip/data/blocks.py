"""The road from rows to portraits and to arrays on disk, block by block: resumable after a kill, verified when read.

`SourceBlocks` reads the rows of any data, finds their faces and cuts them; `kept_rows` keeps what is computed of rows
that are known already.
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
    """Fields of `count` rows each, built on first use and kept as shards in the folder `cache/NAME-KEY`.

    Several processes may ask at the same time: one builds, the others wait and read.

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
    """Raises DataError if a cache that can only be read lacks something."""
    if not writable:
        raise DataError(
            f"cache={cache}: {what} is not complete there and it cannot be written: name another folder by cache=DIR"
        )


def row_count(config: DataConfig, source: RowSource) -> int | None:
    """Number of rows of a source up to `data.limit`, or None if it is known only after reading to the end."""
    limit = config.limit or None
    return source.count if limit is None else min(limit, source.count or limit)


def row_blocks(
    config: DataConfig, source: RowSource, first: int, position: Position | None
) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
    """Number and rows of block `first` and of those after it: `data.shard_rows` rows, fewer at the end or at
    `data.limit`. `position`: where a stream stood at the begin of the first one, if that is known."""
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
        """What decides which rows are usable and where their faces are."""
        return [self.source.content_hash, self.mapping.facts, self.reader.finding]

    def read(self, first: int, position: Position | None, title: str) -> Iterator["Block"]:
        """Block number `first` and those after it. `position`: where a stream stood at its begin, if that is known;
        `title`: of the progress bar."""
        total = row_count(self.config, self.source)
        with PortraitPool(self.config, self.mapping, self.reader) as pool, bar(title, total) as advance:
            for number, rows in row_blocks(self.config, self.source, first, position):
                start = number * self.config.shard_rows
                yield Block(number, start, rows, pool, lambda done: advance(done, total))


@dataclass(frozen=True)
class Block:
    """Rows number `start`, `start` + 1, … of a source."""

    number: int
    start: int
    rows: Sequence[Mapping[str, Any]]
    pool: PortraitPool
    advance: Callable[[int], None]

    def parts(self, size: int, landmarks: Mapping[int, NDArray] | None = None) -> Iterator[list[Outcome]]:
        """Outcomes of `size` rows after another, so that only their pictures are in memory; with known `landmarks`, by
        row, of these rows alone. Raises DataError when a worker process dies."""
        for first in range(0, len(self.rows), size):
            part = self.rows[first : first + size]
            yield self.pool.prepare(part, self.start + first, landmarks)
            self.advance(self.start + first + len(part))

    def prepare(self, landmarks: Mapping[int, NDArray] | None = None) -> list[Outcome]:
        """Outcomes of all rows at once; with known `landmarks`, by row, of these rows alone. Raises DataError when a
        worker process dies."""
        return self.pool.prepare(self.rows, self.start, landmarks)

    def done(self) -> None:
        """Moves the progress bar to the end of the block."""
        self.advance(self.start + len(self.rows))


def usable(outcomes: Sequence[Outcome], rejected: RejectCounts) -> list[Usable]:
    """The usable rows among outcomes; the others are counted in `rejected`."""
    for outcome in outcomes:
        if isinstance(outcome, RejectedRecord):
            rejected.add(outcome)
    return [outcome for outcome in outcomes if not isinstance(outcome, RejectedRecord)]
