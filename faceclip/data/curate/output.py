"""Pass two: the kept rows as a data set that `data.path` reads, and a list of every row with what became of it.

OUT/data/SPLIT-00000.parquet        image, captions, person, key, landmarks or box: kept rows of a shard
OUT/decisions/SPLIT-00000.parquet   row, key, kept, reasons, instead: every row of a shard
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from faceclip.data.cells import RejectedRecord
from faceclip.data.curate.config import CurateConfig
from faceclip.data.curate.deciding import Decision
from faceclip.data.curate.measuring import Shards
from faceclip.data.curate.shards import Row
from faceclip.data.curate.source import Block, SplitReader
from faceclip.data.row_files import read_file
from faceclip.data.writing import write_shard
from faceclip.errors import DataError
from faceclip.storage.files import disk_errors, replacing
from faceclip.storage.hashes import bytes_hash, short_key

DATA, DECISIONS = "data", "decisions"
Pictures = dict[tuple[str, int], bytes]
_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


class Output:
    """Writes what a decision keeps into `config.out`."""

    def __init__(self, config: CurateConfig, splits: Sequence[Shards], decision: Decision) -> None:
        self.config, self.splits, self.decision = config, splits, decision
        self.out = Path(config.out)
        files = [shards.manifest(number)["sha256"] for shards in splits for number in range(shards.count)]
        instead = sorted(decision.instead.items())
        self.key = short_key(config.pictures, decision.names, bytes_hash(decision.bits), instead, files)
        """Changes with the decision, and with how pictures are written."""

    def write(
        self, readers: Mapping[str, SplitReader], wanted: set[tuple[str, int]]
    ) -> tuple[dict[str, int], Pictures]:
        """Kept rows by split, and the encoded pictures of the wanted (split, row number).

        A run that was killed goes on after its last file. Raises DataError for a source that changed since pass one and
        for a disk that is full, ConfigError for `pictures=paths` where rows hold their pictures.
        """
        folder = self._folder()
        counts: dict[str, int] = {}
        pictures: Pictures = {}
        for shards in self.splits:
            counts[shards.split] = 0
            reader = readers[shards.split]
            read = wanted or self.config.pictures != "none"
            for block in self._blocks(reader, shards) if read else _unread_blocks(shards):
                counts[shards.split] += self._write(shards, block, reader, folder)
                for row in block.rows:
                    if (shards.split, row.number) in wanted and row.picture is not None:
                        pictures[shards.split, row.number] = picture_bytes(row)
        # The decisions first: where a run is killed between the two, the next one finds none and writes both again. The
        # other way round it would take every shard for finished, and put an empty folder in the place of the data.
        with disk_errors(self.out):
            for name in (DECISIONS, DATA):
                shutil.rmtree(self.out / name, ignore_errors=True)
                if name == DECISIONS or self.config.pictures != "none":
                    os.replace(folder / name, self.out / name)
            shutil.rmtree(folder.parent)
        return counts, pictures

    def _folder(self) -> Path:
        """Where this decision's files are written until all are there; those of other decisions are removed."""
        folder = self.out / ".partial" / self.key
        with disk_errors(folder):
            for other in folder.parent.glob("*"):
                if other != folder:
                    shutil.rmtree(other)
            for name in (DATA, DECISIONS):
                (folder / name).mkdir(parents=True, exist_ok=True)
                for leftover in (folder / name).glob(".*.tmp"):
                    leftover.unlink()  # of a killed process
        return folder

    @staticmethod
    def _blocks(reader: SplitReader, shards: Shards) -> Iterator[Block]:
        changed = DataError(f"{reader.source.name} has other rows than when it was measured: choose another out=")
        read = 0
        for block in reader.blocks():
            keys = [row.key for row in block.rows]
            if block.number >= shards.count or keys != shards.table(block.number, ["key"])["key"].to_pylist():
                raise changed
            read += 1
            yield block
        if read < shards.count:
            raise changed

    def _write(self, shards: Shards, block: Block, reader: SplitReader, folder: Path) -> int:
        """The two files of a shard; returns how many rows are kept."""
        places = self.decision.places(shards.split, block.number)
        kept = [row for row, place in zip(block.rows, places, strict=True) if self.decision.bits[place] == 0]
        name = shards.path(block.number).name
        listed, data = folder / DECISIONS / name, folder / DATA / name
        if not listed.is_file():
            if kept and self.config.pictures != "none":
                table = self._kept_table(kept, block, reader, shards)
                with disk_errors(data):
                    write_shard(data, table)
            with disk_errors(listed), replacing(listed, alone=True) as file:
                pq.write_table(self._decisions(block, places), file, compression="zstd")
        return len(kept)

    def _decisions(self, block: Block, places: range) -> pa.Table:
        rows = [
            {
                "row": row.number,
                "key": row.key,
                "kept": bool(self.decision.bits[place] == 0),
                "reasons": self.decision.reasons(place),
                "instead": self._instead(place),
            }
            for row, place in zip(block.rows, places, strict=True)
        ]
        kinds = {"row": pa.int64(), "key": pa.string(), "kept": pa.bool_(), "reasons": pa.list_(pa.string())}
        return pa.Table.from_pylist(rows, schema=pa.schema(list((kinds | {"instead": pa.string()}).items())))

    def _instead(self, place: int) -> str | None:
        """`SPLIT ROW` of the picture that is kept in place of a near-duplicate."""
        if place not in self.decision.instead:
            return None
        split, row = self.decision.row(self.decision.instead[place])
        return f"{split} {row}"

    def _kept_table(self, kept: Sequence[Row], block: Block, reader: SplitReader, shards: Shards) -> pa.Table:
        """Rows as `data.path` reads them. box, landmarks: those of the source. Where it has neither, landmarks are
        those of the measured face, so that it is not looked for again."""
        columns: dict[str, pa.DataType] = {
            "image": _IMAGE,
            "captions": pa.list_(pa.string()),
            "person": pa.string(),
            "key": pa.string(),
        }
        points: dict[int, Any] = {}
        given = reader.mapping.landmarks or reader.mapping.box
        if not given and "landmarks" in pq.read_schema(shards.path(block.number)).names:
            columns["landmarks"] = pa.list_(pa.float32())
            table = shards.table(block.number, ["row", "landmarks"])
            points = dict(zip(table["row"].to_pylist(), table["landmarks"].to_pylist(), strict=True))
        for name in ("landmarks", "box"):
            if getattr(reader.mapping, name):
                columns[name] = pa.list_(pa.float64())
        rows = []
        for row in kept:
            raw = block.records[row.number]
            five = points.get(row.number) if raw.landmarks is None else raw.landmarks.reshape(-1).tolist()
            rows.append(
                {
                    "image": self._image(row, reader),
                    "captions": list(raw.captions),
                    "person": row.person or None,
                    "key": row.key,
                    "landmarks": five,
                    "box": None if raw.box is None else raw.box.tolist(),
                }
            )
        return pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items())))

    def _image(self, row: Row, reader: SplitReader) -> dict[str, Any]:
        if self.config.pictures == "copy":
            return {"bytes": picture_bytes(row), "path": None}
        return {"bytes": None, "path": reader.path_of(row)}


def _unread_blocks(shards: Shards) -> Iterator[Block]:
    """The rows of a split as pass one noted them, without their pictures."""
    for number in range(shards.count):
        lines = shards.table(number, ["row", "key", "person"]).to_pylist()
        rows = (Row(number=line["row"], key=line["key"], person=line["person"], picture=None) for line in lines)
        yield Block(number=number, rows=tuple(rows), records={}, position=None)


def picture_bytes(row: Row) -> bytes:
    """The encoded picture of a row that was located. Raises DataError when its file is gone."""
    assert row.picture is not None
    if isinstance(row.picture, bytes):
        return row.picture
    try:
        return read_file(Path(row.picture), row.key)
    except RejectedRecord as error:
        raise DataError(f"{error}: it was there when it was measured; put it back, or choose another out=") from error
