"""Pass one: measures every shard of every split and writes each of them atomically.

OUT/measures/SPLIT-00000.parquet    the figures: `ROW_COLUMNS` and the columns of the measures
OUT/measures/SPLIT-00000.json       the manifest, written last: rows, SHA-256, unreadable pictures, stream position
OUT/seconds/SPLIT-00000.json        processor time, which differs between runs
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from faceclip.data.curate.backends import run_shards
from faceclip.data.curate.catalog import choose_measures
from faceclip.data.curate.config import CurateConfig
from faceclip.data.curate.measures import SMALLEST
from faceclip.data.curate.shards import Measured, Plan, Shard, table_schema
from faceclip.data.curate.source import SplitReader
from faceclip.data.writing import check_same
from faceclip.errors import DataError, EmptyDatasetError
from faceclip.storage.files import disk_errors, read_json, replacing, write_json
from faceclip.storage.hashes import file_hash
from faceclip.training.progress import bar

VERSION = 1
MEASURES, SECONDS, REQUEST = "measures", "seconds", "request.json"


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The finished shards of a split: numbers 0 to `count` − 1 in `folder`."""

    folder: Path
    split: str
    count: int

    def path(self, number: int) -> Path:
        """Returns the path of a shard's table of figures."""
        return self.folder / f"{self.split}-{number:05d}.parquet"

    def manifest(self, number: int) -> dict[str, Any]:
        """Returns a shard's manifest. Raises DataError if the file cannot be read or is damaged."""
        path = self.path(number).with_suffix(".json")
        try:
            return read_json(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error}): make it readable, and run again") from error

    def table(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """Returns a shard's figures (`columns`, or all). Raises DataError if the file is missing or damaged."""
        try:
            return pq.read_table(self.path(number), columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path(number)} cannot be read ({error}): delete it, and run again") from error


class Measuring:
    """Pass one of a run. Raises ConfigError if `config.out` holds figures of other data or measures."""

    def __init__(self, config: CurateConfig, readers: Mapping[str, SplitReader]) -> None:
        self.config, self.readers, self.out = config, readers, Path(config.out)
        self.measures = choose_measures(config.measures, config.plugins)
        self.schema = table_schema(self.measures)
        self.plan = Plan(
            measures=tuple(config.measures),
            plugins=tuple(config.plugins),
            detector=config.data.detector,
            accept_non_commercial=config.data.accept_non_commercial,
            max_pixels=config.data.max_pixels,
            turned=config.data.turned,
            detect_px=config.data.detect_px,
            coarse=self.coarse,
        )
        self.folder = self.out / MEASURES
        self._claim()

    @property
    def coarse(self) -> int:
        """Side in px of the smallest face looked for; 0: the detector's own, in its usual search."""
        wanted = self.config.smallest_face
        return wanted if self.config.data.detector == "mtcnn" and wanted > SMALLEST else 0

    @property
    def request(self) -> dict[str, Any]:
        """Everything that determines the figures. Thresholds are not part of it."""
        data = self.config.data
        return {
            "version": VERSION,
            "sources": {split: reader.facts for split, reader in self.readers.items()},
            "measures": [measure.facts for measure in self.measures],
            "detector": data.detector,
            # The key of folders without these words stays as it was.
            **({} if data.turned else {"turned": False}),
            **({"detect_px": data.detect_px} if data.detect_px else {}),
            **({"smallest_face": self.coarse} if self.coarse else {}),
            **{name: getattr(data, name) for name in ("max_pixels", "limit", "shard_rows")},
        }

    def _claim(self) -> None:
        stored = self.out / REQUEST
        if stored.is_file():
            check_same(self.out, read_json(stored), self.request, "figures of other data or measures")
        write_json(stored, self.request)
        with disk_errors(self.out):
            for folder in (self.folder, self.out / SECONDS):
                folder.mkdir(exist_ok=True)
                for leftover in folder.glob(".*.tmp"):
                    leftover.unlink()  # of a killed process: the lock says that no other one is writing

    def run(self) -> list[Shards]:
        """Measures the missing shards and returns the shards of every split.

        Raises EmptyDatasetError if a split has no rows, and DataError if a finished shard was changed or a worker
        dies. Finished shards are kept.
        """
        return [self._split(split, reader) for split, reader in self.readers.items()]

    def _split(self, split: str, reader: SplitReader) -> Shards:
        shards = Shards(folder=self.folder, split=split, count=0)
        done, position = 0, None
        while (shards.path(done).with_suffix(".json")).is_file():  # the finished shards before the first gap
            position = self._checked(shards, done)
            done += 1
        finished = sorted(self.folder.glob(f"{split}-*.json"))
        last = int(finished[-1].stem.rpartition("-")[2]) if finished else -1
        complete = self.folder / f".{split}-complete.json"
        total = read_json(complete)["shards"] if complete.is_file() else None
        if total is None or done < total:
            positions: dict[int, Any] = {}
            with bar(f"measuring {split}", reader.count) as advance:
                rows = done * self.config.data.shard_rows
                waiting = self._waiting(reader, shards, done, position, positions)
                for result in run_shards(waiting, self.config.backend, self.config.data.workers):
                    self._write(shards, result, positions.pop(result.number))
                    rows += len(result.table)
                    advance(rows, reader.count)
            total = self._last + 1
            write_json(complete, {"shards": total})
        if not total:
            raise EmptyDatasetError(f"data.path={self.config.data.path}: split {split!r} has no rows")
        for number in range(done, last + 1):
            self._checked(shards, number)
        return Shards(folder=self.folder, split=split, count=total)

    def _waiting(
        self, reader: SplitReader, shards: Shards, done: int, position: Any, positions: dict[int, Any]
    ) -> Iterator[Shard]:
        """Yields the unfinished shards from number `done` on, and notes their stream positions."""
        self._last = done - 1
        for block in reader.blocks(done, position):
            self._last = block.number
            if not shards.path(block.number).with_suffix(".json").is_file():
                positions[block.number] = block.position
                yield Shard(number=block.number, rows=block.rows, plan=self.plan)

    def _write(self, shards: Shards, result: Measured, position: Any) -> None:
        path = shards.path(result.number)
        with disk_errors(path):
            with replacing(path, alone=True) as file:
                pq.write_table(result.table, file, compression="zstd")
            write_json(self.out / SECONDS / f"{path.stem}.json", {"rows": len(result.table), **result.seconds})
            content = {
                "rows": len(result.table),
                "sha256": file_hash(path),
                "position": position,
                "counts": result.rejected.counts,
                "examples": result.rejected.examples,
            }
            write_json(path.with_suffix(".json"), content, alone=True)

    def _checked(self, shards: Shards, number: int) -> Any:
        """Returns the stream position after a finished shard.

        Raises DataError if its figures are missing, were changed since they were written, or cannot be read.
        """
        manifest, path = shards.manifest(number), shards.path(number)
        try:
            changed = not path.is_file() or file_hash(path) != manifest["sha256"]
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error}): make it readable, and run again") from error
        if changed:
            raise DataError(
                f"{path} is missing or was changed since it was written: delete {path.with_suffix('.json')}, and run "
                "again"
            )
        return manifest["position"]
