"""Makes one pass over the rows of any data and writes the shards that stage 2 trains on. It resumes after a kill.

Each split has three kinds of shards, each in a folder with its own key: `frames` (usable rows: person, captions, place
of the face, shading map), `references` (face encoder and image tower) and `latents` (autoencoder). Shard i is a
function of source rows [i·K, (i+1)·K) alone. Workers decode and cut pictures, `data.batch_size` at a time; pictures are
not kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from faceclip.data.blocks import Block, SourceBlocks, check_writable, usable
from faceclip.data.cells import RejectedRecord
from faceclip.data.frames import Framing
from faceclip.data.mapping import DataConfig
from faceclip.data.photo_rows import fitter_hash, load_fitter
from faceclip.data.portrait_pool import Usable
from faceclip.data.record_shards import (
    check_same_rows,
    cut_strangers,
    first_outdated,
    known_landmarks,
    made_of,
    named_pictures,
    read_position,
)
from faceclip.data.recorded import record_fields
from faceclip.data.rejects import RejectCounts
from faceclip.data.sources import open_source
from faceclip.encoder import FaceCLIP
from faceclip.errors import DataError, EmptyDatasetError
from faceclip.faces.align import CROP_SIZE
from faceclip.storage.files import write_json
from faceclip.storage.hashes import module_hash, short_key
from faceclip.storage.ragged import pack
from faceclip.storage.shards import ShardFolder
from faceclip.towers.image import ImageTower
from faceclip.towers.placement import accelerator, lying_on
from makeup_plugin.latents import to_unit_scale
from train_generator.precision import read_references
from train_generator.streamed.maps import FIT_REACH, FIT_SIZE, frame_maps
from train_generator.towers.latents import load_vae, weights_hash
from train_generator.towers.vae import encode_mean

KINDS = ("frames", "references", "latents")
Fields = dict[str, NDArray]


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The frozen networks of stage 2.

    vae: folder of the autoencoder, whose latents are `factor` times smaller than pictures. fitter: see `PhotosConfig`.
    """

    encoder: FaceCLIP
    image_tower: ImageTower
    vae: Path
    factor: int
    fitter: str

    @cached_property
    def autoencoder(self) -> AutoencoderKL:
        return load_vae(self.vae)

    @torch.no_grad()
    def references(self, crops: Sequence[NDArray[np.uint8]]) -> Fields:
        """Returns identity (N, E) float32, tokens (N, P, W) and image_tokens (N, T, V) float16 of aligned faces (S, S,
        3)."""
        # Without any face, the towers run on a blank one, which gives the shapes of their rows.
        faces = np.stack(crops) if crops else np.zeros((1, CROP_SIZE, CROP_SIZE, 3), np.uint8)
        pixels = torch.from_numpy(faces).to(accelerator()).permute(0, 3, 1, 2).float() / 255
        fields = read_references(self.encoder, self.image_tower, pixels)
        return {name: values[: len(crops)] for name, values in fields.items()}

    @torch.no_grad()
    def latents(self, frames: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Returns scaled posterior means (C, h, w) of frames (H, W, 3); frames of the same shape are encoded
        together."""
        found: dict[int, NDArray[np.float32]] = {}
        for shape in sorted({frame.shape for frame in frames}):
            rows = [row for row, frame in enumerate(frames) if frame.shape == shape]
            means = encode_mean(self.autoencoder, np.stack([frames[row] for row in rows]))
            found |= dict(zip(rows, to_unit_scale(self.autoencoder, means).numpy().astype(np.float32), strict=True))
        return [found[row] for row in range(len(frames))]


class StreamBuilder:
    """Builds the shards of one split. Callers hold the cache's lock from here to the end of `build`.

    Raises DataError if the source, the split or a mapped column is missing.
    """

    def __init__(self, config: DataConfig, split: str, framing: Framing, networks: Networks, cache: Path) -> None:
        self.config, self.split, self.networks, self.cache = config, split, networks, cache
        self.blocks = SourceBlocks(
            replace(config, portrait=FIT_REACH),
            open_source(config, split, cache / "digests.json"),
            crop_size=CROP_SIZE,
            picture_size=FIT_SIZE,
            cache=cache,
            framing=framing,
        )
        self.source = self.blocks.source
        self.fitter = load_fitter(networks.fitter)
        facts = [*self.blocks.facts, config.limit, config.shard_rows, repr(framing), fitter_hash(self.fitter), FIT_SIZE]
        models = {
            "references": [module_hash(networks.encoder.face_encoder), module_hash(networks.image_tower)],
            "latents": [weights_hash(networks.vae)],
        }
        self.about: dict[str, dict[str, Any]] = {kind: {"models": models[kind]} for kind in models}
        look = short_key(repr(framing), fitter_hash(self.fitter), str(FIT_SIZE))
        self.about["frames"] = {"source": config.path, "split": split, "facts": list(map(str, facts)), "look": look}
        frames = short_key("stage 2 frames 1", *map(str, facts))
        self.keys = {kind: short_key(kind, frames, *models[kind]) for kind in models} | {"frames": frames}
        self.report = cache / f"{split}-stage2-report-{frames}.json"

    def build(self, *, writable: bool = True) -> dict[str, ShardFolder]:
        """Builds the missing shards, prints how many rows were rejected, and returns the folders by kind.

        writable: false if the cache can only be read. Raises TooManyBadRecordsError; DataError for a damaged shard, a
        source that changed meanwhile, or missing shards that cannot be written; and EmptyDatasetError if no row is
        usable.
        """
        folders = {
            kind: ShardFolder(self.cache / f"{self.split}-stage2-{kind}-{self.keys[kind]}", self.about[kind])
            for kind in KINDS
        }
        old = first_outdated(folders["frames"], self.blocks.reader, hashes=self.config.verify == "hashes")
        if old is not None:
            print(f"{self.split}: pictures changed; built again from row {old * self.config.shard_rows} on", flush=True)
            for folder in folders.values():
                folder.cut(old)
        cut_strangers(folders["frames"], folders["references"], folders["latents"])
        counts = RejectCounts()
        for entry in folders["frames"].entries:
            counts.merge(entry["rejected"])
        fresh = not all(folder.complete for folder in folders.values())
        if fresh:
            check_writable(writable, self.cache, f"{self.source.name}, split {self.split},")
            with ExitStack() as stack:
                towers = (self.networks.encoder.face_encoder, self.networks.image_tower)
                stack.enter_context(lying_on(accelerator(), *towers))
                pool = stack.enter_context(ThreadPoolExecutor(self.config.workers))
                self._build(folders, counts, pool)
        counts.check(self.config.max_bad_share, self.report, self.source.name, at_end=True)
        if fresh:
            counts.write(self.report, self.source.name)
            print(f"{self.split}: {counts}; report {self.report}", flush=True)
        if counts.rows == counts.bad:
            raise EmptyDatasetError(f"{self.source.name}, split {self.split}: no usable row; see {self.report}")
        return folders

    def _build(self, folders: Mapping[str, ShardFolder], counts: RejectCounts, pool: ThreadPoolExecutor) -> None:
        frames, references, latents = (folders[kind] for kind in KINDS)
        first = min(map(len, folders.values()))
        resume = self.cache / f"{self.split}-stage2-position-{self.keys['frames']}.json"
        for block in self.blocks.read(first, read_position(resume, first), f"{self.split} pictures"):
            self._block(block, frames, references, latents, counts, pool)
            if (position := self.source.position()) is not None:
                write_json(resume, {"block": block.number + 1, "position": position}, alone=True)
            block.done()
            counts.check(self.config.max_bad_share, self.report, self.source.name, at_end=False)
        if len({len(folder) for folder in folders.values()}) > 1:
            raise DataError(f"{self.source.name} ended early: the cache holds more rows; delete {frames.folder}")
        for folder in folders.values():
            folder.finish()
        resume.unlink(missing_ok=True)
        resume.with_name(f".{resume.name}.tmp").unlink(missing_ok=True)  # of a build killed while writing it

    def _block(
        self,
        block: Block,
        frames: ShardFolder,
        references: ShardFolder,
        latents: ShardFolder,
        counts: RejectCounts,
        pool: ThreadPoolExecutor,
    ) -> None:
        """Writes the missing shards of one block."""
        known = block.number < len(frames)
        if known:
            frames.verify(block.number)
        rejected = RejectCounts(rows=len(block.rows))
        rows = _Rows()
        seen: list[Fields] = []
        codes: list[NDArray[np.float32]] = []
        for part, drawn in self._parts(block, frames if known else None, rejected, pool):
            rows.add(part, drawn)
            if block.number >= len(references):
                seen.append(self.networks.references([portrait.crop for _, _, portrait in part]))
            if block.number >= len(latents):
                codes += self.networks.latents([portrait.frame.picture for _, _, portrait in part if portrait.frame])
        if known:
            check_same_rows(rows.good, frames.read(block.number), block, frames, self.source.name)
        else:
            counts.merge(rejected.to_dict())
            fields = rows.fields() | named_pictures(self.blocks, block)
            frames.append(fields, rows=len(rows.good), rejected=rejected.to_dict(), pictures=len(fields["bytes"]))
            cut_strangers(frames, references, latents)
        made = made_of(frames, block.number)
        if block.number >= len(references):
            joined = {name: np.concatenate([one[name] for one in seen]) for name in seen[0]}
            references.append(joined, **made)
        if block.number >= len(latents):
            latents.append(pack("latents", codes, np.float32), **made)

    def _parts(
        self, block: Block, known: ShardFolder | None, rejected: RejectCounts, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[Usable], list[NDArray[np.uint8]]]]:
        """Yields usable rows of a block, some at a time, with their maps; maps that are `known` are not drawn again."""
        landmarks = known_landmarks(known.read(block.number)) if known is not None else None
        for outcomes in block.parts(self.config.batch_size, landmarks):
            part = usable(outcomes, rejected)
            if known is not None:
                yield part, []
                continue
            drawn = frame_maps(self.fitter, [portrait for _, _, portrait in part], pool)
            for (_, raw, _), one in zip(part, drawn, strict=True):
                if one is None:
                    rejected.add(RejectedRecord("no_fit", f"{raw.key}: the head model cannot fit its face"))
            kept = [(row, one) for row, one in zip(part, drawn, strict=True) if one is not None]
            yield [row for row, _ in kept], [one for _, one in kept]


@dataclass
class _Rows:
    """Collects the usable rows of a block without their pixels."""

    good: list[Usable] = field(default_factory=list)
    points: list[NDArray[np.float32]] = field(default_factory=list)
    sizes: list[NDArray[np.float32]] = field(default_factory=list)
    maps: list[NDArray[np.uint8]] = field(default_factory=list)

    def add(self, part: Sequence[Usable], maps: Sequence[NDArray[np.uint8]]) -> None:
        nothing = np.empty((0, 0, 3), np.uint8)
        for number, raw, portrait in part:
            assert portrait.frame is not None
            self.points.append(portrait.frame.points(portrait.upright))
            self.sizes.append(portrait.frame.sizes)
            self.good.append((number, raw, replace(portrait, crop=nothing, picture=nothing, frame=None)))
        self.maps += maps

    def fields(self) -> Fields:
        return (
            record_fields(self.good)
            | {
                "landmarks_5": np.array(self.points, np.float32).reshape(-1, 5, 2),
                "sizes": np.array(self.sizes, np.float32).reshape(-1, 6),
            }
            | pack("shading", self.maps, np.uint8)
        )
