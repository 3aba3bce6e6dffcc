"""Rows of a split in blocks, with the place of each picture: what shards are made of, and what is read again to write
the kept ones."""

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
    """rows: `data.shard_rows` rows, fewer at the end; records: theirs by number, where a picture was located; position:
    where a stream stands after them."""

    number: int
    rows: tuple[Row, ...]
    records: Mapping[int, RawRecord]
    position: Position | None


class SplitReader:
    """One split of a source. Raises DataError for a missing split or column. memo: file for digests; out: a folder that
    holds no pictures of the source."""

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
        """What decides rows and pictures."""
        store = self.reader.store.fingerprint() if self.reader.store else ""
        return [self.source.content_hash, self.mapping.facts, store]

    @property
    def count(self) -> int | None:
        """Rows, where that is known before the end."""
        return row_count(self.data, self.source)

    def blocks(self, first: int = 0, position: Position | None = None) -> Iterator[Block]:
        """Block number `first` and those after it; `position`: where a stream stood at its begin, if known."""
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
        """Where the picture of a row lies below the folder of the pictures. Raises ConfigError for one that is no file
        there."""
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
        """Raises ConfigError where the first picture has no `path_of`: before hours of measuring, not after."""
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
            problem = str(rejected)
            return Row(
                number=number, key=f"row {number}", person="", picture=None, reason=rejected.reason, problem=problem
            ), None
        if scale != 1 and self.data.box_units == "pixels":  # of the picture that is here, not of the original
            points, box = (
                value if value is None else (value + 0.5) * scale - 0.5 for value in (raw.landmarks, raw.box)
            )
            raw = replace(raw, landmarks=points, box=box)
        person = raw.person if self.mapping.identity else ""
        return Row(number=number, key=raw.key, person=person, picture=picture), raw
