"""Makes one pass over the rows of any data and writes the shards that stage 2 trains on. It resumes after a kill.

Each split has three kinds of shards, each in a folder with its own key: `frames` (usable rows: person, captions, place
of the face, shading map), `references` (face encoder and image tower) and `latents` (autoencoder). Shard i is a
function of source rows [i·K, (i+1)·K) alone. Workers decode and cut pictures, `data.batch_size` at a time; pictures are
not kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from faceclip.data.blocks import Block, SourceBlocks, usable
from faceclip.data.cells import RejectedRecord
from faceclip.data.frames import Framing
from faceclip.data.mapping import DataConfig
from faceclip.data.photo_rows import fitter_hash, load_fitter
from faceclip.data.portrait_pool import Usable
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
from faceclip.encoder import FaceCLIP
from faceclip.faces.align import CROP_SIZE
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


class StreamBuilder(SplitBuilder):
    """Builds the shards of one split. Raises DataError if the source, the split or a mapped column is missing."""

    def __init__(self, config: DataConfig, split: str, framing: Framing, networks: Networks, cache: Path) -> None:
        blocks = SourceBlocks(
            replace(config, portrait=FIT_REACH),
            open_source(config, split, cache / "digests.json"),
            crop_size=CROP_SIZE,
            picture_size=FIT_SIZE,
            cache=cache,
            framing=framing,
        )
        self.networks, self.fitter = networks, load_fitter(networks.fitter)
        fitting = repr(framing), fitter_hash(self.fitter), str(FIT_SIZE)
        facts = [str(fact) for fact in (*blocks.facts, config.limit, config.shard_rows, *fitting)]
        models = {
            "references": [module_hash(networks.encoder.face_encoder), module_hash(networks.image_tower)],
            "latents": [weights_hash(networks.vae)],
        }
        frames = {"source": config.path, "split": split, "facts": facts, "look": short_key(*fitting)}
        about: dict[str, dict[str, Any]] = {"frames": frames}
        about |= {kind: {"models": found} for kind, found in models.items()}
        keys = {"frames": short_key("stage 2 frames 1", *facts)}
        keys |= {kind: short_key(kind, keys["frames"], *found) for kind, found in models.items()}
        super().__init__(blocks, split, cache, stem=f"{split}-stage2", keys=keys, about=about)

    def fill(self, folders: Mapping[str, ShardFolder]) -> None:
        parts = frames, references, latents = list(folders.values())
        counts = self.counts(frames)
        towers = (self.networks.encoder.face_encoder, self.networks.image_tower)
        with lying_on(accelerator(), *towers), ThreadPoolExecutor(self.config.workers) as pool:
            for block in self.missing_blocks(parts, counts):
                self._block(block, frames, references, latents, counts, pool)

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
