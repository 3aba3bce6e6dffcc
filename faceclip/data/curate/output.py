"""Pass two: writes the kept rows as a data set that `data.path` reads, and the decision about every row.

OUT/data/SPLIT-00000.parquet        the kept rows of a shard: image, captions, person, key, landmarks or box
OUT/decisions/SPLIT-00000.parquet   all rows of a shard: row, key, kept, reasons, instead
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
    """Writes the kept rows and the decisions into `config.out`."""

    def __init__(self, config: CurateConfig, splits: Sequence[Shards], decision: Decision) -> None:
        self.config, self.splits, self.decision = config, splits, decision
        self.out = Path(config.out)
        files = [shards.manifest(number)["sha256"] for shards in splits for number in range(shards.count)]
        instead = sorted(decision.instead.items())
        self.key = short_key(config.pictures, decision.names, bytes_hash(decision.bits), instead, files)
        """Hash of the decision, of the figures and of `config.pictures`; names the folder of unfinished output."""

    def write(
        self, readers: Mapping[str, SplitReader], wanted: set[tuple[str, int]]
    ) -> tuple[dict[str, int], Pictures]:
        """Writes both folders; returns the number of kept rows by split, and the encoded pictures of the `wanted`
        (split, row number).

        A killed run resumes after its last file. Raises DataError if the source changed since pass one or the disk is
        full, and ConfigError if `pictures=paths` is set and rows contain their pictures.
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
        # The decisions move first: if the run is killed between the two moves, the next run finds no decisions and
        # writes both again. In the other order it would take every shard for finished and move an empty data folder.
        with disk_errors(self.out):
            for name in (DECISIONS, DATA):
                shutil.rmtree(self.out / name, ignore_errors=True)
                if name == DECISIONS or self.config.pictures != "none":
                    os.replace(folder / name, self.out / name)
            shutil.rmtree(folder.parent)
        return counts, pictures

    def _folder(self) -> Path:
        """Makes the folder that holds this decision's files until all are written; removes those of other decisions."""
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
        """Writes the two files of a shard, unless they exist; returns the number of kept rows."""
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
        """Returns "SPLIT ROW" of the picture that is kept in place of this near-duplicate, or None for other rows."""
        if place not in self.decision.instead:
            return None
        split, row = self.decision.row(self.decision.instead[place])
        return f"{split} {row}"

    def _kept_table(self, kept: Sequence[Row], block: Block, reader: SplitReader, shards: Shards) -> pa.Table:
        """Returns the kept rows in the columns that `data.path` reads.

        Box and landmarks are those of the source. If it has neither, the landmarks of the measured face are written, so
        that later commands need not detect it again.
        """
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
    """Yields the rows of a split as pass one recorded them, without their pictures."""
    for number in range(shards.count):
        lines = shards.table(number, ["row", "key", "person"]).to_pylist()
        rows = (Row(number=line["row"], key=line["key"], person=line["person"], picture=None) for line in lines)
        yield Block(number=number, rows=tuple(rows), records={}, position=None)


def picture_bytes(row: Row) -> bytes:
    """Returns the encoded picture of a row whose picture is known. Raises DataError if its file is gone."""
    assert row.picture is not None
    if isinstance(row.picture, bytes):
        return row.picture
    try:
        return read_file(Path(row.picture), row.key)
    except RejectedRecord as error:
        raise DataError(f"{error}: it was there when it was measured; put it back, or choose another out=") from error
