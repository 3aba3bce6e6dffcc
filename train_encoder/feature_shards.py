"""Computes the frozen features of any data set in one pass over its rows, and keeps them as safetensors shards.

Each split has four kinds of shards, each in a folder with its own key, so that a new text tower does not detect faces
again: `records` (usable rows: person, captions, landmarks; key: content hash, column mapping and face finding), `faces`
(identity and patch tokens of the recognizer), `images` (image tower) and `captions` (text tower), each keyed by the
records, the tower's hash and its preprocessing. Shard i is a function of source rows [i·K, (i+1)·K) alone, so a killed
build resumes with the same bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faceclip.data.blocks import Block, SourceBlocks, check_writable, usable
from faceclip.data.mapping import DataConfig
from faceclip.data.portrait_reader import FoundPortrait
from faceclip.data.record_shards import (
    check_same_rows,
    cut_strangers,
    first_outdated,
    known_landmarks,
    made_of,
    named_pictures,
    read_position,
)
from faceclip.data.recorded import record_fields, unpack_texts
from faceclip.data.rejects import RejectCounts
from faceclip.data.sources import open_source
from faceclip.errors import DataError, EmptyDatasetError
from faceclip.storage.files import write_json
from faceclip.storage.hashes import short_key
from faceclip.storage.shards import ShardFolder
from faceclip.training.progress import bar
from train_encoder.frozen import FrozenTowers
from train_encoder.towers_io import Towers

KINDS = ("records", "faces", "images", "captions")


class FeatureBuilder:
    """Builds the cache of one split of a source. Callers hold the cache's lock from here to the end of `build`.

    Raises DataError if the source, the split or a mapped column is missing.
    """

    def __init__(self, config: DataConfig, split: str, towers: Towers, cache: Path) -> None:
        self.config, self.split, self.cache = config, split, cache
        self.frozen = FrozenTowers(towers=towers, device=config.device, batch=config.batch_size)
        self.blocks = SourceBlocks(
            config,
            open_source(config, split, cache / "digests.json"),
            crop_size=towers.recognizer.config.image_size,
            picture_size=towers.image.config.image_size,
            cache=cache,
        )
        self.source, self.reader = self.blocks.source, self.blocks.reader
        crop, picture = self.reader.cutting
        facts = [*self.blocks.facts, config.limit, config.shard_rows]
        done = {"faces": crop, "images": picture, "captions": "plain"}
        self.about: dict[str, dict[str, Any]] = {
            kind: {"model": model, "preprocessing": done[kind]} for kind, model in self.frozen.hashes().items()
        }
        self.about["records"] = {"source": config.path, "split": split, "facts": facts}
        records = short_key("records 2", *facts)
        self.keys = {kind: short_key(kind, records, *map(str, self.about[kind].values())) for kind in KINDS[1:]}
        self.keys["records"] = records
        self.report = cache / f"{split}-report-{records}.json"

    def build(self, *, writable: bool = True) -> dict[str, ShardFolder]:
        """Builds the missing shards, prints how many rows were rejected, and returns the folders by kind.

        writable: false if the cache can only be read. Raises TooManyBadRecordsError; DataError for a damaged shard, a
        source that changed meanwhile, or missing shards that cannot be written; and EmptyDatasetError if no row is
        usable.
        """
        folders = {
            kind: ShardFolder(self.cache / f"{self.split}-{kind}-{self.keys[kind]}", self.about[kind]) for kind in KINDS
        }
        self._drop_outdated(folders)
        cut_strangers(*folders.values())
        fresh = not all(folder.complete for folder in folders.values())
        if fresh:
            check_writable(writable, self.cache, f"{self.source.name}, split {self.split},")
            with self.frozen.placed():
                self._build_pictures(folders)
                self._build_captions(folders)
        counts = self._counts(folders["records"])
        counts.check(self.config.max_bad_share, self.report, self.source.name, at_end=True)
        if fresh:
            cut = sum(entry["cut"] for entry in folders["captions"].entries)
            counts.write(self.report, self.source.name, captions_cut=cut)
            words = f"; {cut:,} captions are longer than the text tower reads, their ends are lost" if cut else ""
            print(f"{self.split}: {counts}{words}; report {self.report}", flush=True)
        if counts.rows == counts.bad:
            raise EmptyDatasetError(f"{self.source.name}, split {self.split}: no usable row; see {self.report}")
        return folders

    def _drop_outdated(self, folders: Mapping[str, ShardFolder]) -> None:
        """Drops the shards from the first one whose pictures, named by path, were added, removed or replaced since."""
        number = first_outdated(folders["records"], self.reader, hashes=self.config.verify == "hashes")
        if number is None:
            return
        print(
            f"{self.split}: pictures changed since the cache was built; it is built again from row "
            f"{number * self.config.shard_rows} on",
            flush=True,
        )
        for kind in KINDS:
            folders[kind].cut(number)

    def _counts(self, records: ShardFolder) -> RejectCounts:
        counts = RejectCounts()
        for entry in records.entries:
            counts.merge(entry["rejected"])
        return counts

    def _build_pictures(self, folders: Mapping[str, ShardFolder]) -> None:
        """Builds the missing shards of records, faces and images, block by block."""
        parts = [folders[kind] for kind in ("records", "faces", "images")]
        cut_strangers(*parts)
        if all(folder.complete for folder in parts):
            return
        records, faces, images = parts
        first = min(map(len, parts))
        resume = self.cache / f"{self.split}-position-{self.keys['records']}.json"
        counts = self._counts(records)
        for block in self.blocks.read(first, read_position(resume, first), f"{self.split} pictures"):
            number = block.number
            if number < len(records):
                records.verify(number)
                portraits = self._known(block, records)
            else:
                portraits = self._record(block, records, counts)
            cut_strangers(records, faces, images)
            if number >= len(faces):
                faces.append(self.frozen.faces([portrait.crop for portrait in portraits]), **made_of(records, number))
            if number >= len(images):
                pictures = [portrait.picture for portrait in portraits]
                images.append(self.frozen.images(pictures), **made_of(records, number))
            if (position := self.source.position()) is not None:
                write_json(resume, {"block": number + 1, "position": position}, alone=True)
            block.done()
            counts.check(self.config.max_bad_share, self.report, self.source.name, at_end=False)
        if len({len(folder) for folder in parts}) > 1:
            raise DataError(f"{self.source.name} ended early: the cache holds more rows; delete {records.folder}")
        for folder in parts:
            folder.finish()
        resume.unlink(missing_ok=True)
        resume.with_name(f".{resume.name}.tmp").unlink(missing_ok=True)  # of a build killed while writing it

    def _known(self, block: Block, records: ShardFolder) -> list[FoundPortrait]:
        """Cuts the portraits of a block whose records are written, by the landmarks in these."""
        known = records.read(block.number)
        good = usable(block.prepare(known_landmarks(known)), RejectCounts())
        check_same_rows(good, known, block, records, self.source.name)
        return [portrait for _, _, portrait in good]

    def _record(self, block: Block, records: ShardFolder, counts: RejectCounts) -> list[FoundPortrait]:
        """Finds and cuts the portraits of a block's usable rows, and writes its records."""
        rejected = RejectCounts(rows=len(block.rows))
        good = usable(block.prepare(), rejected)
        counts.merge(rejected.to_dict())
        fields = record_fields(good) | named_pictures(self.blocks, block)
        records.append(fields, rows=len(good), rejected=rejected.to_dict(), pictures=len(fields["bytes"]))
        return [portrait for _, _, portrait in good]

    def _build_captions(self, folders: Mapping[str, ShardFolder]) -> None:
        records, captions = folders["records"], folders["captions"]
        cut_strangers(records, captions)
        with bar(f"{self.split} captions", len(records)) as advance:
            for number in range(len(captions), len(records)):
                records.verify(number)
                texts = unpack_texts("caption", records.read(number))
                fields, cut = self.frozen.captions(texts)
                captions.append(fields, cut=cut, **made_of(records, number))
                advance(number + 1, len(records))
        captions.finish()
