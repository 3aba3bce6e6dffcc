"""Trains the tiny image tower and both text towers together, by a contrastive loss on portraits and captions.

python -m train_encoder.towers.clip data=DIR [--preset tiny] [trainer.steps=…]
"""

import math
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from faceclip.data.arrays import UNKNOWN, FaceArrays, load_arrays
from faceclip.data.records import Caption
from faceclip.encoder import TEMPLATE
from faceclip.errors import DataError, EmptyDatasetError
from faceclip.faces.batches import to_unit
from faceclip.settings import setting
from faceclip.statistics import Estimate, identity_bootstrap
from faceclip.storage.loading import load_strictly
from faceclip.towers.image import ImageTower
from faceclip.towers.text import END, TextTower, tokenize, used_tokens
from faceclip.training import MapSource, StepContext, Task, TrainerConfig
from faceclip.training.towers.command import TowerConfig, run_tower
from faceclip.training.towers.crops import JitterConfig, jitter_image

DISTRACTORS = 100


@dataclass(kw_only=True)
class ImageSizes:
    """Sizes of the image tower."""

    image_size: int = setting(64, "px of the picture")
    patch_size: int = setting(8, "px")
    width: int = setting(192, "of the transformer")
    layers: int = setting(4, "blocks")
    heads: int = setting(6, "of the attention")


@dataclass(kw_only=True)
class TextSizes:
    """Sizes of one text tower."""

    width: int = setting(96, "of the transformer")
    layers: int = setting(3, "blocks")
    heads: int = setting(3, "of the attention")
    quick_gelu: bool = setting(True, "QuickGELU, as in OpenAI's towers")


@dataclass(kw_only=True)
class ClipConfig(TowerConfig):
    """Settings of the command.

    The readout of attributes teaches each tower separately, so that few steps suffice, and ties the spaces together. A
    share of captions gets stage 1's template, and some words become unknown, so that the towers learn to read both.
    """

    out: str = setting("runs/towers/clip", "folder of the run", resume="free", path=True)
    image: ImageSizes = field(default_factory=ImageSizes)
    text_l: TextSizes = field(default_factory=TextSizes)
    text_g: TextSizes = field(default_factory=lambda: TextSizes(width=128, heads=4, quick_gelu=False))
    embed_dim: int = setting(128, "of the shared space")
    attributes: float = setting(0.5, "weight: attribute classes read from picture and caption by the same linear heads")
    template: float = setting(0.3, "share of captions that get stage 1's template in front")
    unknown: float = setting(0.05, "share of words replaced by a word outside the vocabulary")
    jitter: JitterConfig = field(default_factory=JitterConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


class CaptionedSource(MapSource):
    """A portrait with a random one of its captions.

    Fields: image (3, S, S) uint8; tokens (77,); classes (A,) of all attributes, `UNKNOWN` if the value is not known;
    named (A,), whether the caption states the attribute. Raises DataError for photos imported without captions=made.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        *,
        size: int,
        jitter: JitterConfig,
        template: float = 0.0,
        unknown: float = 0.0,
    ) -> None:
        self.arrays = _described_arrays(directory, split, size)
        self.jitter, self.template, self.unknown = jitter, template, unknown
        self.names = sorted(self.arrays.attributes)
        self.classes = np.stack([np.asarray(self.arrays.attributes[name]) for name in self.names], axis=1)
        self.captions = self.arrays.captions
        texts = sorted({caption.text for row in self.captions for caption in row})
        self._row = {text: number for number, text in enumerate(texts)}
        self._plain = tokenize(texts).numpy().astype(np.int32)
        self._templated = tokenize([TEMPLATE + text for text in texts]).numpy().astype(np.int32)
        self.vocabulary = np.union1d(self._plain, self._templated)
        self.unknown_id = int(np.setdiff1d(np.arange(1, len(self.vocabulary) + 2), self.vocabulary)[0])

    def __len__(self) -> int:
        return len(self.arrays)

    def named(self, caption: Caption) -> np.ndarray:
        """Returns which attributes (A,) a caption states."""
        return np.isin(self.names, caption.named)

    def tokens(self, caption: Caption, *, templated: bool = False) -> np.ndarray:
        """Returns the token ids (77,) of a caption of this source."""
        return (self._templated if templated else self._plain)[self._row[caption.text]].astype(np.int64)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns one training sample."""
        captions = self.captions[index]
        caption = captions[rng.integers(len(captions))]
        tokens = self.tokens(caption, templated=bool(rng.random() < self.template))
        words = np.arange(1, int(np.flatnonzero(tokens == END)[0]))
        tokens[words[rng.random(len(words)) < self.unknown]] = self.unknown_id
        image = jitter_image(np.asarray(self.arrays.images[index]), rng, self.jitter)
        return {
            "image": np.ascontiguousarray(image.transpose(2, 0, 1)),
            "tokens": tokens,
            "classes": self.classes[index],
            "named": self.named(caption),
        }


def caption_matches(named: Tensor, classes: Tensor) -> Tensor:
    """Returns whether caption i is true of image j, (B, B): the image has all values that the caption states.

    named (B, A): attributes that the captions state. classes (B, A): values of the images in the same order. A caption
    that states a value is not true of an image whose value is unknown, because made captions state what can be seen.
    """
    return ((classes[:, None] == classes[None]) | ~named[:, None]).all(dim=-1)


def masked_contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, matches: Tensor) -> Tensor:
    """Returns the symmetric InfoNCE loss (Radford et al. 2021, figure 3), leaving out other true pairs.

    images, texts (B, D) of any length; scale: of the cosines; matches (B, B): caption i is true of image j.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits = scale * F.normalize(texts.float(), dim=1) @ F.normalize(images.float(), dim=1).T
        own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(matches & ~own, float("-inf"))
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


class ClipTask(Task):
    """Trains an image tower and two text towers that share an embedding space. sizes: classes of each attribute."""

    def __init__(
        self, towers: nn.ModuleDict, sizes: list[int], directory: Path, *, embed_dim: int, attributes: float
    ) -> None:
        self.modules = nn.ModuleDict(dict(towers.items()))
        self.modules["scale"] = _LogScale()
        self.modules["heads"] = nn.Linear(embed_dim, sum(sizes))
        self.sizes, self.attributes, self.directory = sizes, attributes, directory

    def loss(self, batch: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the contrastive losses of L and G against the image tower, plus the attribute losses of all three."""
        images = self.modules["image_tower"](batch["image"].float() / 255).embedding
        tokens = used_tokens(batch["tokens"])
        matches = caption_matches(batch["named"], batch["classes"])
        scale = self.modules["scale"]()
        everything = torch.ones_like(batch["named"])
        parts = {"image_attributes": self.attribute_loss(images, batch["classes"], everything)}
        for name in ("text_tower_l", "text_tower_g"):
            texts = self.modules[name](tokens).embedding
            parts[name] = masked_contrastive_loss(images, texts, scale, matches)
            parts[f"{name}_attributes"] = self.attribute_loss(texts, batch["classes"], batch["named"])
        total = (parts["text_tower_l"] + parts["text_tower_g"]) / 2
        total = total + self.attributes * sum(part for name, part in parts.items() if name.endswith("attributes"))
        return total, {name: part.detach() for name, part in parts.items()} | {"logit_scale": scale.detach()}

    def attribute_loss(self, embeddings: Tensor, classes: Tensor, stated: Tensor) -> Tensor:
        """Returns the mean cross-entropy of the stated attributes, read from embeddings (B, D); unknown classes are
        left out. classes, stated (B, A)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = F.normalize(embeddings.float(), dim=1) * embeddings.shape[1] ** 0.5
            logits = self.modules["heads"](unit).split(self.sizes, dim=1)
            losses = torch.stack(
                [
                    F.cross_entropy(part, classes[:, i], reduction="none", ignore_index=UNKNOWN)
                    for i, part in enumerate(logits)
                ],
                dim=1,
            )
            stated = stated & (classes != UNKNOWN)
        return (losses * stated).sum() / stated.sum().clamp_min(1)

    def validate(self, step: int) -> dict[str, float]:
        """Returns the card's figures on the validation identities."""
        towers = {name: self.modules[name] for name in ("image_tower", "text_tower_l", "text_tower_g")}
        return {name: figure.value for name, figure in measure(towers, self.directory, "validation").items()}

    def export(self, directory: Path) -> None:
        """Saves each tower in a folder that `from_pretrained` reads."""
        for name in ("image_tower", "text_tower_l", "text_tower_g"):
            self.modules[name].save_pretrained(directory / name)


class _LogScale(nn.Module):
    """A trained logit scale exp(s), at most 100 as in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self) -> Tensor:
        return self.value.float().exp().clamp_max(100)


def fullest_caption(captions: list[Caption]) -> Caption:
    """Returns the caption that states the most attributes, the first one among equals."""
    return max(captions, key=lambda caption: len(caption.named))


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The queries of `measure`, a function of a split's labels alone.

    portraits (T,): the rows of the gallery. captions: the fullest caption of each. matches (T, T): caption i is true of
    portrait j. distractors: number of wrong partners that each query is compared with.
    """

    portraits: NDArray[np.int64]
    captions: list[Caption]
    matches: NDArray[np.bool_]
    distractors: int

    def rows(self, matches: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Returns the rows of `matches` (its transpose for image queries) that have enough wrong partners."""
        return np.flatnonzero((~matches).sum(axis=1) >= self.distractors)


def find_questions(arrays: FaceArrays, where: str) -> Questions:
    """Finds the queries of a split: each portrait's fullest caption, and each portrait.

    Portraits without a caption that states an attribute are left out. The number of distractors is the lower median of
    the numbers of wrong partners above 0, at most `DISTRACTORS`; a portrait or caption with fewer of them stays in the
    gallery but asks no query. Raises EmptyDatasetError, whose message begins with `where`, if no query is left.
    """
    names = sorted(arrays.attributes)
    captions = [fullest_caption(row) for row in arrays.captions]
    telling = np.flatnonzero([bool(caption.named) for caption in captions])
    if not len(telling):
        raise EmptyDatasetError(f"{where} has no caption that states an attribute")
    captions = [captions[row] for row in telling]
    matches = np.ones((len(telling), len(telling)), dtype=bool)
    for name in names:
        classes = np.asarray(arrays.attributes[name])[telling]
        states = np.array([name in caption.named for caption in captions])
        matches &= (classes[:, None] == classes[None]) | ~states[:, None]
    if matches.all():
        raise EmptyDatasetError(f"{where} has only captions that are true of all its portraits")
    wrong = [(~matches).sum(axis=axis) for axis in (0, 1)]
    medians = [int(np.percentile(counts[counts > 0], 50, method="lower")) for counts in wrong]
    distractors = min(DISTRACTORS, *medians)
    return Questions(portraits=telling, captions=captions, matches=matches, distractors=distractors)


@torch.inference_mode()
def measure(towers: dict[str, nn.Module], directory: Path, split: str, *, batch: int = 64) -> dict[str, Estimate]:
    """Measures recall@1 among random distractors in both directions, for both text towers.

    The figures' names give the number of distractors, 100 or fewer in a small split. Figures named …_unambiguous draw
    no distractor that matches the query; the others do, so that a perfect model cannot reach 1. Raises
    EmptyDatasetError as `find_questions` does.
    """
    image_tower = towers["image_tower"]
    arrays = _described_arrays(directory, split, image_tower.config.image_size)
    asked = find_questions(arrays, f"{directory}: the {split} split")
    for tower in towers.values():
        tower.eval()
    device = next(image_tower.parameters()).device
    chunks = [slice(start, start + batch) for start in range(0, len(arrays), batch)]
    images = torch.cat([image_tower(to_unit(arrays.images[chunk]).to(device)).embedding for chunk in chunks])
    images = F.normalize(images.float(), dim=1)
    images = images[asked.portraits]
    tokens = tokenize([caption.text for caption in asked.captions])
    figures = {}
    identity = np.asarray(arrays.identity)[asked.portraits]
    for letter in ("l", "g"):
        tower = towers[f"text_tower_{letter}"]
        parts = [tower(used_tokens(chunk).to(device)).embedding for chunk in tokens.split(batch)]
        texts = F.normalize(torch.cat(parts).float(), dim=1)
        scores = (texts @ images.T).cpu().numpy()
        for direction, table, true in (
            ("text_to_image", scores, asked.matches),
            ("image_to_text", scores.T, asked.matches.T),
        ):
            name, rows = f"{direction}_{letter}_recall1_of_{asked.distractors}", asked.rows(true)
            for ending, ambiguous in (("_unambiguous", true), ("", np.zeros_like(true))):
                hits = recall_among(table, ambiguous, distractors=asked.distractors, rows=rows)
                figures[name + ending] = identity_bootstrap(hits, identity[rows])
    return figures


def recall_among(
    scores: NDArray[np.floating],
    ambiguous: NDArray[np.bool_],
    *,
    distractors: int,
    rows: NDArray[np.int64] | None = None,
) -> NDArray[np.bool_]:
    """Returns whether row i's own column i beats `distractors` random other columns of `scores` (N, N).

    Ties are misses. Columns marked in `ambiguous` (N, N) are never drawn as distractors of that row. rows (Q,): the
    queries, in the order of the result (Q,); None: all rows. Raises ValueError if a row has too few other columns.
    """
    rng = np.random.default_rng(0)
    rows = np.arange(len(scores)) if rows is None else rows
    hits = np.zeros(len(rows), dtype=bool)
    for place, row in enumerate(rows):
        line, allowed = scores[row], ~ambiguous[row]
        allowed[row] = False
        others = np.flatnonzero(allowed)
        if len(others) < distractors:
            raise ValueError(f"query {row} has {len(others)} usable distractors, fewer than {distractors}")
        hits[place] = line[row] > line[rng.choice(others, size=distractors, replace=False)].max()
    return hits


def _described_arrays(directory: Path, split: str, size: int) -> FaceArrays:
    """Loads portraits with attributes. Raises DataError for photos that were imported without captions=made."""
    arrays = load_arrays(directory, split, size=size, labelled=False)
    if not arrays.attributes:
        raise DataError(f"{directory} holds photos without attributes: import them with captions=made")
    return arrays


def build(config: ClipConfig) -> tuple[ClipTask, CaptionedSource]:
    """Returns task and source of a configuration. The vocabulary is that of the training captions.

    Raises EmptyDatasetError if the data would leave nothing to measure at the end.
    """
    for split in ("validation", "test"):
        arrays = _described_arrays(Path(config.data), split, config.image.image_size)
        find_questions(arrays, f"{config.data}: the {split} split")
    source = CaptionedSource(
        Path(config.data),
        "train",
        size=config.image.image_size,
        jitter=config.jitter,
        template=config.template,
        unknown=config.unknown,
    )
    vocabulary = source.vocabulary.tolist()
    towers = nn.ModuleDict({"image_tower": ImageTower(**vars(config.image), embed_dim=config.embed_dim)})
    for name, sizes in (("text_tower_l", config.text_l), ("text_tower_g", config.text_g)):
        towers[name] = TextTower(**vars(sizes), embed_dim=config.embed_dim, vocabulary=vocabulary)
    sizes = [len(source.arrays.vocabularies[name]) for name in source.names]
    task = ClipTask(towers, sizes, Path(config.data), embed_dim=config.embed_dim, attributes=config.attributes)
    return task, source


def load_towers(path: Path) -> dict[str, nn.Module]:
    """The three exported towers."""
    kinds = {"image_tower": ImageTower, "text_tower_l": TextTower, "text_tower_g": TextTower}
    return {name: load_strictly(kind.from_pretrained, kind, path / name) for name, kind in kinds.items()}


main = partial(
    run_tower,
    ClipConfig,
    package="train_encoder.towers",
    name="clip",
    build=build,
    measure=lambda path, config: measure(load_towers(path), Path(config.data), "test"),
    parts=("image_tower", "text_tower_l", "text_tower_g"),
    title="Tiny CLIP towers (image 64 px, text L-like and G-like)",
    summary=(
        "An image tower and two text towers of open_clip's own classes with one shared 128-d embedding, trained "
        "together on portraits and their captions. The text towers know the words of those captions; "
        "every other word shares one embedding."
    ),
)

if __name__ == "__main__":
    sys.exit(main())
