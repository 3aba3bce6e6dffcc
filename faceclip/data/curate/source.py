"""Reads the rows of a split in blocks and locates their pictures. Both passes use it: to measure, and to write."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from faceclip.data.blocks import row_blocks, row_count
from faceclip.data.cells import RejectedRecord
from faceclip.data.curate.shards import Row
from faceclip.data.mapping import DataConfig, RawRecord, RowMapping
from faceclip.data.portrait_reader import PortraitReader
from faceclip.data.sources import Position, open_source
from faceclip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of `data.shard_rows` rows; the last block of a split may have fewer.

    records: by row number, for rows whose picture was located. position: of the stream after the block, if it has one.
    """

    number: int
    rows: tuple[Row, ...]
    records: Mapping[int, RawRecord]
    position: Position | None


class SplitReader:
    """Reads one split of a source.

    memo: file that keeps digests of the source's files. out: folder of the command's output, which is not searched for
    pictures. Raises DataError if the split or a column is missing.
    """

    def __init__(self, data: DataConfig, split: str, memo: Path, out: Path) -> None:
        self.data, self.split = data, split
        self.source = open_source(data, split, memo)
        self.mapping = RowMapping(
            data, self.source.layout, self.source.columns, self.source.name, captions_needed=False
        )
        hub = self.source.name if self.source.folder is None else ""
        self.reader = PortraitReader(data, folder=self.source.folder, crop_size=1, picture_size=1, cache=out, hub=hub)

    @property
    def facts(self) -> list[str]:
        """Texts that change whenever rows or pictures may change: content hash, column mapping, picture store."""
        store = self.reader.store.fingerprint() if self.reader.store else ""
        return [self.source.content_hash, self.mapping.facts, store]

    @property
    def count(self) -> int | None:
        """The number of rows, or None if a stream does not know it."""
        return row_count(self.data, self.source)

    def blocks(self, first: int = 0, position: Position | None = None) -> Iterator[Block]:
        """Yields block number `first` and the following ones. `position` is that of the stream before it, if known."""
        for number, block in row_blocks(self.data, self.source, first, position):
            start = number * self.data.shard_rows
            located = [self._locate(row, start + place) for place, row in enumerate(block)]
            yield Block(
                number=number,
                rows=tuple(row for row, _ in located),
                records={row.number: raw for row, raw in located if raw is not None},
                position=self.source.position(),
            )

    def path_of(self, row: Row) -> str:
        """Returns the path of a row's picture relative to the folder of pictures.

        Raises ConfigError if the picture is no file in that folder.
        """
        folder = self.reader.folder
        if isinstance(row.picture, str) and folder is not None:
            path = Path(row.picture).resolve()
            if path.is_relative_to(folder.resolve()):
                return path.relative_to(folder.resolve()).as_posix()
        raise ConfigError(
            f"pictures=paths: {row.key} of {self.source.name} is no file below {folder or 'a folder of the data'}: "
            "take pictures=copy"
        )

    def check_paths(self) -> None:
        """Raises ConfigError if the first picture has no `path_of`: the error comes before hours of measuring."""
        for number, row in enumerate(islice(self.source.rows(0), self.data.shard_rows)):
            located, raw = self._locate(row, number)
            if raw is not None:
                self.path_of(located)
                return

    def _locate(self, row: Mapping[str, Any], number: int) -> tuple[Row, RawRecord | None]:
        try:
            raw = self.mapping.read(row, number)
            picture, scale = self.reader.locate(raw)
        except RejectedRecord as rejected:
            rejected = rejected.with_traceback(None)  # which would keep what is read
            return Row(number=number, key=f"row {number}", person="", picture=None, rejected=rejected), None
        if scale != 1 and self.data.box_units == "pixels":  # convert to pixels of the stored, scaled picture
            points, box = (
                value if value is None else (value + 0.5) * scale - 0.5 for value in (raw.landmarks, raw.box)
            )
            raw = replace(raw, landmarks=points, box=box)
        person = raw.person if self.mapping.identity else ""
        return Row(number=number, key=raw.key, person=person, picture=picture), raw
