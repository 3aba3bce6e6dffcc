"""Imports photos of any data set as portraits for stage 2: finds faces, fits shading maps, and writes captions.

    python -m faceclip.data.photos data.path=PHOTOS out=DIR [size=512] [data.identity=none …]

The command takes the `data.` settings of stage 1 (docs/data.md) and writes this project's layout without labels: square
portraits, five points, person, captions, and the 3D fit of the face with its shading map. It resumes after a kill.
DIR/data appears when everything is complete; until then shards are in DIR/.partial.
"""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from faceclip.captions import mentions
from faceclip.captions.ages import AgeAndSex
from faceclip.captions.captioner import Captioner
from faceclip.captions.photographs import PhotoDescriber
from faceclip.captions.zero_shot import load_zero_shot
from faceclip.data.blocks import SourceBlocks, usable
from faceclip.data.cells import RejectedRecord
from faceclip.data.mapping import MASK_LAYOUT, RawRecord, kept_for_validation, text_hash
from faceclip.data.masks import Masked, MaskReader
from faceclip.data.photo_card import card
from faceclip.data.photo_config import PhotosConfig
from faceclip.data.photo_rows import PhotoRows, fitter_hash, load_fitter
from faceclip.data.portrait_pool import Usable
from faceclip.data.portrait_reader import FoundPortrait
from faceclip.data.records import SPLITS, features
from faceclip.data.rejects import RejectCounts
from faceclip.data.sources import find_layout, open_source
from faceclip.data.writing import check_files, check_same, write_shard
from faceclip.errors import ConfigError, DataError, EmptyDatasetError
from faceclip.face3d.mesh_fitter import MeshFitter
from faceclip.settings import run
from faceclip.storage.files import read_json, write_json, write_text
from faceclip.storage.hashes import file_hash
from faceclip.storage.locks import locked
from faceclip.storage.places import check_place

VERSION = 1
Named = tuple[str, RawRecord, FoundPortrait]  # the name of the person first
Placed = tuple[str, Named, Masked | None]  # the split first
CROP = 112  # px of the face crop that a `PortraitReader` cuts too
REMEDIES = {"empty_caption": "captions=made reads captions off photos that have none"}


class PhotoImport:
    """One import. Raises ConfigError for settings that contradict each other, and CheckpointError for a damaged
    fitter."""

    def __init__(self, config: PhotosConfig) -> None:
        for name, value in (("data.path", config.data.path), ("out", config.out)):
            if not value:
                raise ConfigError(f"{name}: name its folder, as in {name}=DIR")
        self.config, self.out = config, Path(config.out)
        self.data = replace(config.data, portrait=config.reach)
        self.partial = self.out / ".partial"
        whole = self.out.resolve()
        self.data.check_outside(self.out)
        # Beside the folder and not in it: messages name photos by their paths, which nobody else is to read.
        self.report = whole.parent / f"{whole.name}-report.json"
        by_value, by_share = bool(self.data.columns.split), self.data.validation_share > 0
        wanted = ["" if by_share else self.data.validation, self.data.undivided if by_share else self.data.train]
        wanted = [name for name in (*wanted, config.test) if name]
        if len(set(wanted)) < len(wanted):
            raise ConfigError(f"data.train, data.validation and test name the same split: {', '.join(wanted)}")
        self.names = [self.data.undivided] if by_value or by_share else [self.data.train, self.data.validation]
        if config.test and not by_value:
            self.names.append(config.test)
            folder, held = (Path(self.data.path) / name for name in (self.names[0], config.test))
            if find_layout(self.data) == "image_folder" and held.is_dir() and not folder.is_dir():
                raise ConfigError(
                    f"test={config.test}: move the training photos to {folder}; without such a folder "
                    "the test photos would be among them"
                )
        # What each source gives: a split, or None where its rows are divided.
        self.gives = [None, SPLITS[2]] if by_value or by_share else list(SPLITS)
        self.fitter = load_fitter(config.fitter)
        self.describer = None if config.captions == "given" else self._describer()
        both = config.captions == "both"
        self.captioner = Captioner(config.captioner) if config.captioner else None
        self.rows = PhotoRows(
            self.fitter, config.size, self.describer, both=both, kind=config.format, captioner=self.captioner
        )
        self.masks: MaskReader | None = None
        if self.data.layout == MASK_LAYOUT:
            path = Path(self.data.path)
            folder = Path(self.data.masks or (path if path.is_dir() else path.parent))
            self.masks = MaskReader(folder, config.size, max_pixels=self.data.max_pixels)

    def _describer(self) -> PhotoDescriber:
        landmarker = self.fitter.landmarker if isinstance(self.fitter, MeshFitter) else None
        return PhotoDescriber(
            landmarker,
            least=self.config.least_confidence,
            zero_shot=load_zero_shot(self.config.zero_shot) if self.config.zero_shot else None,
            ages=AgeAndSex() if self.config.age_and_sex else None,
        )

    def _open(self) -> None:
        """Opens the sources.

        Raises DataError if a source, a split or a column is missing (with captions=both also that of captions).
        """
        sources = []
        for name in self.names:
            try:
                sources.append(open_source(self.data, name, self.partial / "digests.json"))
            except DataError as error:
                if name != self.config.test:
                    raise
                raise DataError(f"test={name}: name a split or folder of the data ({error})") from error
        self.sources = [
            SourceBlocks(
                self.data,
                source,
                crop_size=CROP,
                picture_size=self.config.size,
                cache=self.out,
                captions_needed=self.describer is None,
            )
            for source in sources
        ]
        for blocks in self.sources:
            if self.config.captions == "both" and not blocks.mapping.captions:
                raise DataError(
                    f"captions=both: {blocks.source.name} has no column of captions among "
                    f"{', '.join(blocks.mapping.available)}: set data.columns.captions=NAME, or captions=made"
                )

    def request(self) -> dict[str, Any]:
        """All settings that determine the shards, before persons with one picture are left out."""
        division = {
            name: getattr(self.data, name)
            for name in ("train", "validation", "validation_share", "undivided", "limit", "shard_rows")
        }
        return {
            "version": VERSION,
            "sources": [blocks.facts for blocks in self.sources],
            "fitter": fitter_hash(self.fitter),
            **({} if self.describer is None else {"captions": [self.config.captions, *self.describer.facts]}),
            **({"mentions": mentions.VERSION} if self.config.captions == "both" or self.captioner else {}),
            **({"captioner": self.captioner.facts} if self.captioner else {}),
            **({"masks": self.masks.fingerprint()} if self.masks else {}),
            **division,
            **{name: getattr(self.config, name) for name in ("test", "size", "reach", "min_side", "format")},
        }

    def run(self) -> dict[str, Any]:
        """Writes the missing shards and returns the content of dataset.json.

        Raises ConfigError if the folder holds another import, TooManyBadRecordsError, EmptyDatasetError, and DataError
        for unreadable sources, persons with one picture, and full disks. Finished shards are kept.
        """
        check_place(self.out, "out=", (".lock", "dataset.json", ".partial"))
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with locked(self.out / ".lock", wait=False):
                for leftover in self.out.glob(".*.tmp"):
                    leftover.unlink()  # of a killed process: the lock says that no other one is writing
                described = self.out / "dataset.json"
                stored = read_json(described) if described.is_file() else {}
                if (self.out / "data").is_dir() and "request" not in stored:
                    raise ConfigError(f"{self.out} holds another data set: choose another out=")
                self._open()
                return self._run()
        except OSError as error:
            raise DataError(
                f"{self.out} cannot be written ({error}): free space or make it writable, and run again; "
                "finished shards are kept"
            ) from error

    def _run(self) -> dict[str, Any]:
        request = self.request()
        if (self.out / "data").is_dir():
            shutil.rmtree(self.partial, ignore_errors=True)
            summary = read_json(self.out / "dataset.json")
            self._check_request(summary["request"], request | {"few_pictures": self.data.few_pictures})
            check_files(self.out, summary["files"], self.out)
            return summary
        progress = self.partial / "progress.json"
        state: dict[str, Any] = {"request": request, "blocks": [], "complete": []}
        if progress.is_file():
            state = read_json(progress)
        self._check_request(state["request"], request)
        (self.partial / "data").mkdir(parents=True, exist_ok=True)
        counts = RejectCounts()
        for block in state["blocks"]:
            counts.merge(block["rejected"])
        self._recall(state["blocks"])
        for number, blocks in enumerate(self.sources):
            if number not in state["complete"]:
                self._read(number, blocks, state, counts)
                state["complete"].append(number)
                write_json(progress, state)
        print(counts, flush=True)
        counts.check(self.data.max_bad_share, self.report, self.data.path, at_end=True, remedies=REMEDIES)
        counts.write(self.report, self.data.path)
        return self._finish(state, counts)

    def _check_request(self, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        earlier = {"format": "png"}  # which earlier imports did not say
        check_same(self.out, earlier | theirs, ours, "photos imported otherwise or of other content")

    def _recall(self, blocks: list[dict[str, Any]]) -> None:
        """Reads the persons of the finished shards, and removes the shards of an unfinished block."""
        files = [file for block in blocks for file in block["files"]]
        kept = {file["path"] for file in files}
        for path in sorted((self.partial / "data").iterdir()):
            if path.name not in kept:
                path.unlink()
        check_files(self.partial / "data", files, self.partial)
        for name in sorted(kept):
            path = self.partial / "data" / name
            table = pq.read_table(path, columns=["person", "identity"]).to_pydict()
            self.rows.recall(table["person"], table["identity"])

    def _read(self, number: int, blocks: SourceBlocks, state: dict[str, Any], counts: RejectCounts) -> None:
        source = blocks.source
        done = sum(block["source"] == number for block in state["blocks"])
        # Where a stream stood at the end of the last block: without it the files before would be fetched again.
        position = state["blocks"][-1]["position"] if done else None
        for block in blocks.read(done, position, source.name):
            rejected = RejectCounts(rows=len(block.rows))
            tables: dict[str, list[dict[str, Any]]] = {}
            for outcomes in block.parts(self.data.batch_size):
                placed = list(self._placed(number, usable(outcomes, rejected), rejected))
                made = self.rows.make([named for _, named, _ in placed], [masked for _, _, masked in placed])
                for (split, (_, raw, _), _), row in zip(placed, made, strict=True):
                    if row is None:
                        rejected.add(RejectedRecord("no_fit", f"{raw.key}: the head model cannot fit its face"))
                    else:
                        tables.setdefault(split, []).append(row)
            files = []
            for split, table in tables.items():
                path = self.partial / "data" / f"{split}-{number}{block.number:05d}.parquet"
                read, masked = self.describer is not None, self.masks is not None
                replied = self.captioner is not None
                schema = features(labelled=False, read=read, masked=masked, replied=replied).arrow_schema
                write_shard(path, pa.Table.from_pylist(table, schema=schema))
                files.append({"path": path.name, "rows": len(table), "sha256": file_hash(path)})
            counts.merge(rejected.to_dict())
            for earlier in state["blocks"]:
                earlier["position"] = None
            state["blocks"].append(
                {"source": number, "files": files, "rejected": rejected.to_dict(), "position": source.position()}
            )
            write_json(self.partial / "progress.json", state)
            counts.check(self.data.max_bad_share, self.report, source.name, at_end=False, remedies=REMEDIES)

    def _placed(self, number: int, good: list[Usable], rejected: RejectCounts) -> Iterator[Placed]:
        """Yields split, person, record, portrait and masks of each row; rows with a portrait that is too small or with
        unreadable masks are counted as rejected."""
        for _, raw, portrait in good:
            if portrait.square[2] < self.config.min_side:
                why = f"{raw.key}: its portrait has {portrait.square[2]} px, less than min_side"
                rejected.add(RejectedRecord("portrait_too_small", why))
            elif split := self._split(number, raw):
                # Rows are numbered in each source anew: the number of one is nobody of another source.
                alone = self.data.identity == "none" and number > 0
                try:
                    masked = self.masks.read(raw, portrait) if self.masks else None
                except RejectedRecord as reason:
                    rejected.add(reason)
                else:
                    yield split, (f"{split} {raw.person}" if alone else raw.person, raw, portrait), masked

    def _split(self, number: int, raw: RawRecord) -> str | None:
        """Returns the split of a row; None if it belongs to no split."""
        if (split := self.gives[number]) is not None:
            return split
        if self.data.columns.split:
            values = {self.data.train: SPLITS[0], self.data.validation: SPLITS[1], self.config.test or None: SPLITS[2]}
            return values.get(raw.split)
        who = np.array([text_hash(raw.person)], np.int64)
        return SPLITS[int(kept_for_validation(who, self.data.validation_share)[0])]

    def _finish(self, state: dict[str, Any], counts: RejectCounts) -> dict[str, Any]:
        final = self.partial / "final"
        if final.is_dir():
            shutil.rmtree(final)  # of an import that was killed here
        final.mkdir()
        written = {file["path"]: file for block in state["blocks"] for file in block["files"]}
        files, parts = [], {}
        homes: dict[int, str] = {}
        for split in SPLITS if self.config.test else SPLITS[:2]:
            people: set[int] = set()
            images = 0
            for path in self._kept(split, final):
                table = pq.read_table(path, columns=["identity", "person"]).to_pydict()
                identity = table["identity"]
                people.update(identity)
                for number, person in zip(identity, table["person"], strict=True):
                    if (home := homes.setdefault(number, split)) != split:
                        raise DataError(
                            f"{person!r} is in {home} and in {split}: a model would be measured on people that it was "
                            "trained on; give each person to one split, or other people other names, with another out="
                        )
                images += len(identity)
                whole = written[path.name]["rows"] == len(identity)
                digest = written[path.name]["sha256"] if whole else file_hash(path)
                files.append({"path": f"data/{path.name}", "rows": len(identity), "sha256": digest})
            if not images:
                raise EmptyDatasetError(
                    f"data.path={self.data.path} has no usable row for {split}: see {self.report}, and check "
                    "data.columns.split, data.validation_share and data.few_pictures; with another division choose "
                    "another out="
                )
            parts[split] = {"identities": len(people), "images": images}
        summary = {
            "request": state["request"] | {"few_pictures": self.data.few_pictures},
            "fitter": Path(self.config.fitter).name,
            "counts": parts,
            "files": files,
            "rejected": counts.counts,
        }
        write_text(self.out / "README.md", f"{card(summary)}\n")
        write_json(self.out / "dataset.json", summary)
        final.rename(self.out / "data")
        shutil.rmtree(self.partial)
        return summary

    def _kept(self, split: str, final: Path) -> list[Path]:
        """Moves the shards of a split to `final`, without persons of one picture; raises DataError if these must
        stay."""
        paths = sorted((self.partial / "data").glob(f"{split}-*.parquet"))
        names = [pq.read_table(path, columns=["person"])["person"].to_pylist() for path in paths]
        seen = Counter(name for shard in names for name in shard)
        single = {name for name, pictures in seen.items() if pictures < 2 and self.data.identity == "column"}
        if single and self.data.few_pictures == "error":
            raise DataError(
                f"{len(single)} persons of {split} have a single usable picture, {min(single)!r} for one: stage 2 "
                "takes another picture as the reference; leave them out by data.few_pictures=drop, which resumes "
                "here, or say by data.identity=none, with another out=, that every row is its own person (then train "
                "with same_picture=1)"
            )
        if single:
            print(f"{split}: {len(single):,} persons with a single picture are left out", flush=True)
        for path, shard in zip(paths, names, strict=True):
            keep = [name not in single for name in shard]
            if all(keep):
                _link(path, final / path.name)
            elif any(keep):
                write_shard(final / path.name, pq.read_table(path).filter(pa.array(keep)))
        return sorted(final.glob(f"{split}-*.parquet"))


def _link(path: Path, other: Path) -> None:
    """Links a file to another name, or copies it if the file system has no links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def import_photos(config: PhotosConfig) -> None:
    """Runs an import and prints its counts."""
    summary = PhotoImport(config).run()
    for split, part in summary["counts"].items():
        print(f"{split:>10}: {part['identities']:,} persons, {part['images']:,} pictures")
    print(f"data set: {config.out}")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run(import_photos, PhotosConfig, argv, interrupted="interrupted; the same command resumes")


if __name__ == "__main__":
    sys.exit(main())
