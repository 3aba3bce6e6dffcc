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

from faceclip.data.blocks import Block, SourceBlocks, usable
from faceclip.data.mapping import DataConfig
from faceclip.data.portrait_reader import FoundPortrait
from faceclip.data.record_shards import (
    SplitBuilder,
    check_same_rows,
    cut_strangers,
    known_landmarks,
    made_of,
    named_pictures,
)
from faceclip.data.recorded import record_fields
from faceclip.data.rejects import RejectCounts
from faceclip.data.sources import open_source
from faceclip.storage.hashes import short_key
from faceclip.storage.ragged import unpack_texts
from faceclip.storage.shards import ShardFolder
from faceclip.training.progress import bar
from train_encoder.frozen import FrozenTowers
from train_encoder.towers_io import Towers


class FeatureBuilder(SplitBuilder):
    """Builds the cache of one split of a source. Raises DataError if the source, the split or a mapped column is
    missing."""

    def __init__(self, config: DataConfig, split: str, towers: Towers, cache: Path) -> None:
        self.frozen = FrozenTowers(towers=towers, device=config.device, batch=config.batch_size)
        blocks = SourceBlocks(
            config,
            open_source(config, split, cache / "digests.json"),
            crop_size=towers.recognizer.config.image_size,
            picture_size=towers.image.config.image_size,
            cache=cache,
        )
        crop, picture = blocks.reader.cutting
        facts = [*blocks.facts, config.limit, config.shard_rows]
        done = {"faces": crop, "images": picture, "captions": "plain"}
        about: dict[str, dict[str, Any]] = {"records": {"source": config.path, "split": split, "facts": facts}}
        keys = {"records": short_key("records 2", *facts)}
        for kind, model in self.frozen.hashes().items():
            about[kind] = {"model": model, "preprocessing": done[kind]}
            keys[kind] = short_key(kind, keys["records"], *map(str, about[kind].values()))
        super().__init__(blocks, split, cache, stem=split, keys=keys, about=about)

    def fill(self, folders: Mapping[str, ShardFolder]) -> None:
        with self.frozen.placed():
            self._build_pictures(folders)
            self._build_captions(folders)

    def remarks(self, folders: Mapping[str, ShardFolder]) -> tuple[dict[str, int], str]:
        cut = sum(entry["cut"] for entry in folders["captions"].entries)
        words = f"; {cut:,} captions are longer than the text tower reads, their ends are lost" if cut else ""
        return {"captions_cut": cut}, words

    def _build_pictures(self, folders: Mapping[str, ShardFolder]) -> None:
        """Builds the missing shards of records, faces and images, block by block."""
        parts = records, faces, images = [folders[kind] for kind in ("records", "faces", "images")]
        if all(folder.complete for folder in parts):
            return
        counts = self.counts(records)
        for block in self.missing_blocks(parts, counts):
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
