"""Frozen features of any data set, computed once in one pass over its rows and kept as safetensors shards.

Four kinds of shards per split, each in a folder of its own key, so that another text tower does not detect faces again:
`records` (usable rows: person, captions, landmarks; key: content hash + column mapping + face finding), `faces`
(recognizer: identity and patch tokens), `images` (image tower) and `captions` (text tower), each keyed by the records,
the tower's hash and its preprocessing. Shard i is a function of source rows [i·K, (i+1)·K) alone, which makes a build
that was killed go on with the same bytes.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faceclip.data.mapping import DataConfig, RejectedRecord, RowMapping, text_hash
from faceclip.data.portrait_pool import PortraitPool
from faceclip.data.portraits import Portrait, PortraitReader
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
    """The cache of one split of a source. One process at a time: hold the cache's lock from here to the end of `build`.

    Raises DataError when source, split or a mapped column is missing.
    """

    def __init__(self, config: DataConfig, split: str, towers: Towers, cache: Path) -> None:
        self.config, self.split, self.cache = config, split, cache
        self.frozen = FrozenTowers(towers=towers, device=config.device, batch=config.batch_size)
        self.source = open_source(config, split, cache / "digests.json")
        self.mapping = RowMapping(config, self.source.layout, self.source.columns, self.source.name)
        self.reader = PortraitReader(
            config,
            folder=self.source.folder,
            crop_size=towers.recognizer.config.image_size,
            picture_size=towers.image.config.image_size,
            cache=cache,
        )
        crop, picture = self.reader.cutting
        facts = (self.source.content_hash, self.mapping.facts, self.reader.finding, config.limit, config.shard_rows)
        done = {"faces": crop, "images": picture, "captions": "plain"}
        self.about: dict[str, dict[str, Any]] = {
            kind: {"model": model, "preprocessing": done[kind]} for kind, model in self.frozen.hashes().items()
        }
        self.about["records"] = {"source": config.path, "split": split, "facts": list(facts)}
        records = short_key("records 2", *facts)
        self.keys = {kind: short_key(kind, records, *map(str, self.about[kind].values())) for kind in KINDS[1:]}
        self.keys["records"] = records
        self.report = cache / f"{split}-report-{records}.json"

    def build(self, *, writable: bool = True) -> dict[str, ShardFolder]:
        """All shards, built where missing; prints what was left out. writable: false where only reading is possible.

        Raises TooManyBadRecordsError, DataError for a damaged shard, a source that changed meanwhile or missing shards
        that cannot be written, EmptyDatasetError when no row is usable.
        """
        folders = {
            kind: ShardFolder(self.cache / f"{self.split}-{kind}-{self.keys[kind]}", self.about[kind]) for kind in KINDS
        }
        self._drop_outdated(folders)
        cut_strangers(*folders.values())
        fresh = not all(folder.complete for folder in folders.values())
        if fresh and not writable:
            raise DataError(
                f"cache={self.cache}: the features of {self.source.name}, split {self.split}, are not "
                "complete there and it cannot be written: name another folder by cache=DIR"
            )
        if fresh:
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
        """Cuts the cache off where pictures that rows name by path were added, removed or replaced since."""
        records = folders["records"]
        for number, entry in enumerate(records.entries):
            if not entry["pictures"]:
                continue
            records.verify(number, hashes=self.config.verify == "hashes")
            shard = records.read(number)
            if [self.reader.bytes_of(path) for path in unpack_texts("picture", shard)] != shard["bytes"].tolist():
                print(
                    f"{self.split}: pictures changed since the cache was built; it is built again from row "
                    f"{number * self.config.shard_rows} on",
                    flush=True,
                )
                records.cut(number)
                for kind in KINDS[1:]:
                    folders[kind].cut(number)
                return

    def _counts(self, records: ShardFolder) -> RejectCounts:
        counts = RejectCounts()
        for entry in records.entries:
            counts.merge(entry["rejected"])
        return counts

    def _build_pictures(self, folders: Mapping[str, ShardFolder]) -> None:
        """Records, faces and images, block by block; what exists is not computed again."""
        parts = [folders[kind] for kind in ("records", "faces", "images")]
        cut_strangers(*parts)
        if all(folder.complete for folder in parts):
            return
        records, faces, images = parts
        size, limit = self.config.shard_rows, self.config.limit or None
        first = min(map(len, parts))
        total = self.source.count if limit is None else min(limit, self.source.count or limit)
        resume = self.cache / f"{self.split}-position-{self.keys['records']}.json"
        rows = self.source.rows(first * size, _read_position(resume, first))
        rows = itertools.islice(rows, None if limit is None else max(0, limit - first * size))
        counts = self._counts(records)
        title = f"{self.split} pictures"
        with PortraitPool(self.config, self.mapping, self.reader) as pool, bar(title, total) as advance:
            for number in itertools.count(first):
                block = list(itertools.islice(rows, size))
                if not block:
                    break
                known = None
                if number < len(records):
                    records.verify(number)
                    known = records.read(number)
                portraits = self._prepare(block, number * size, known, pool, records, counts)
                cut_strangers(records, faces, images)
                if number >= len(faces):
                    faces.append(
                        self.frozen.faces([portrait.crop for portrait in portraits]), **records_of(records, number)
                    )
                if number >= len(images):
                    pictures = self.frozen.images([portrait.picture for portrait in portraits])
                    images.append(pictures, **records_of(records, number))
                if (position := self.source.position()) is not None:
                    write_json(resume, {"block": number + 1, "position": position})
                advance(number * size + len(block), total)
                counts.check(self.config.max_bad_share, self.report, self.source.name, at_end=False)
        if len({len(folder) for folder in parts}) > 1:
            raise DataError(f"{self.source.name} ended early: the cache holds more rows; delete {records.folder}")
        for folder in parts:
            folder.finish()
        resume.unlink(missing_ok=True)
        resume.with_name(f".{resume.name}.tmp").unlink(missing_ok=True)  # of a build killed while writing it

    def _prepare(
        self,
        block: Sequence[Mapping[str, Any]],
        start: int,
        known: Mapping[str, NDArray] | None,
        pool: PortraitPool,
        records: ShardFolder,
        counts: RejectCounts,
    ) -> list[Portrait]:
        """Portraits of the usable rows of a block; writes its records when they are not known yet."""
        landmarks = None if known is None else dict(zip(known["row"].tolist(), known["landmarks"], strict=True))
        outcomes = pool.prepare(block, start, landmarks)
        good = [outcome for outcome in outcomes if not isinstance(outcome, RejectedRecord)]
        if known is not None:
            if [portrait.digest for _, _, portrait in good] != known["digest"].tolist():
                raise DataError(
                    f"{self.source.name}: rows {start} to {start + len(block)} are not the ones that {records.folder} "
                    "was built from: delete this folder, it is built anew"
                )
            return [portrait for _, _, portrait in good]
        rejected = RejectCounts(rows=len(block))
        for outcome in outcomes:
            if isinstance(outcome, RejectedRecord):
                rejected.add(outcome)
        counts.merge(rejected.to_dict())
        texts = [raw.captions for _, raw, _ in good]
        flat = [text for row in texts for text in row]
        fields = {
            "row": np.array([number for number, _, _ in good], np.int64),
            "person": np.array([text_hash(raw.person) for _, raw, _ in good], np.int64),
            "split": np.array([text_hash(raw.split) for _, raw, _ in good], np.int64),
            "landmarks": np.array([p.landmarks for _, _, p in good], np.float32).reshape(-1, 5, 2),
            "digest": np.array([portrait.digest for _, _, portrait in good], np.int64),
            "captions": np.array([len(row) for row in texts], np.int64),
            "words": np.array([text_hash(text) for text in flat], np.int64),
        }
        fields |= pack_texts("caption", flat) | pack_texts("name", [raw.person for _, raw, _ in good])
        # An image folder lists its pictures; elsewhere only the rows say which files they name, found or missing.
        named = [] if self.source.layout == "image_folder" else map(self.mapping.picture_path, block)
        paths = [path for path in named if path]
        fields |= pack_texts("picture", paths) | {"bytes": np.array([self.reader.bytes_of(p) for p in paths], np.int64)}
        records.append(fields, rows=len(good), rejected=rejected.to_dict(), pictures=len(paths))
        return [portrait for _, _, portrait in good]

    def _build_captions(self, folders: Mapping[str, ShardFolder]) -> None:
        records, captions = folders["records"], folders["captions"]
        cut_strangers(records, captions)
        with bar(f"{self.split} captions", len(records)) as advance:
            for number in range(len(captions), len(records)):
                records.verify(number)
                texts = unpack_texts("caption", records.read(number))
                fields, cut = self.frozen.captions(texts)
                captions.append(fields, cut=cut, **records_of(records, number))
                advance(number + 1, len(records))
        captions.finish()


def records_of(records: ShardFolder, number: int) -> dict[str, str]:
    """What a shard of features notes about the records it was made from."""
    return {"records": records.entries[number]["sha256"]}


def cut_strangers(records: ShardFolder, *parts: ShardFolder) -> None:
    """Cuts each part off where it was made from other records than those that are there now."""
    for part in parts:
        for number, (entry, source) in enumerate(zip(part.entries, records.entries, strict=False)):
            if entry["records"] != source["sha256"]:
                part.cut(number)
                break


def _read_position(path: Path, block: int) -> dict[str, Any] | None:
    """Where a stream stood when it had given `block` blocks, or None when that was not noted."""
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_bytes())
        return stored["position"] if stored["block"] == block else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is corrupt ({error}): delete it, the rows are then skipped one by one") from error


def pack_texts(name: str, texts: Sequence[str]) -> dict[str, NDArray]:
    """Texts as UTF-8 bytes and the end of each: fields `NAME_text` (bytes,) and `NAME_end` (count,)."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return {f"{name}_text": np.frombuffer(b"".join(encoded), np.uint8), f"{name}_end": ends}


def unpack_texts(name: str, shard: Mapping[str, NDArray]) -> list[str]:
    """The inverse of `pack_texts`."""
    data, ends = shard[f"{name}_text"].tobytes(), shard[f"{name}_end"].tolist()
    return [data[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)]
