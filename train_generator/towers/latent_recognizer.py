"""Trains the latent recognizer, which reads the person's face embedding and the attributes from a portrait's noisy
latents.

python -m train_generator.towers.latent_recognizer data=DIR vae=DIR recognizer=DIR [--preset tiny]

Stage 2 uses it for losses on identity and named attributes, at every noise level and without decoding.
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.data.blocks import kept_rows
from faceclip.data.records import VOCABULARIES
from faceclip.errors import ConfigError
from faceclip.settings import check_bounds, setting
from faceclip.statistics import Estimate, identity_bootstrap
from faceclip.storage.hashes import module_hash
from faceclip.storage.shards import ShardedArray
from faceclip.towers.face import FaceViT
from faceclip.training import MapSource, StepContext, Task
from faceclip.training.towers.labels import JUDGED
from faceclip.training.towers.measures import rank1_hits
from makeup_plugin.diffusion import NoiseSchedule
from makeup_plugin.latent_recognizer import LatentReading, LatentRecognizer
from makeup_plugin.losses import IGNORED, attribute_loss
from makeup_plugin.saving.shipped import shipped_pipeline
from train_generator.reference_features import aligned_faces
from train_generator.towers.attributes import attribute_classes
from train_generator.towers.base import make_scheduler
from train_generator.towers.command import TowerConfig, run_tower
from train_generator.towers.frozen import recognizer_at
from train_generator.towers.latents import cached_latents, weights_hash

LEVELS = (0, 200, 400, 600)  # timesteps of the measurement


@dataclass(kw_only=True)
class NetConfig:
    """Sizes of `LatentRecognizer`."""

    widths: list[int] = setting(factory=lambda: [64, 96, 128], help="channels of the stages")
    depth: int = setting(2, "blocks of a stage")


@dataclass(kw_only=True)
class LatentRecognizerConfig(TowerConfig):
    """Settings of the command. Raises ConfigError for an unknown attribute and for a negative weight."""

    out: str = setting("runs/towers/latent_recognizer", "folder of the run", resume="free", path=True)
    vae: str = setting("", "autoencoder; '': the shipped one", resume="free", path=True)
    recognizer: str = setting("", "recognizer; '': the shipped one", resume="free", path=True)
    low_noise: float = setting(
        1.5, "timesteps are T · u ** low_noise, u uniform; above 1 they lean to low noise, where a face is visible"
    )
    attributes: list[str] = setting(factory=lambda: list(JUDGED), help="attributes that it reads beside the identity")
    attribute_weight: float = setting(0.3, "weight of the attributes' loss", least=0)
    model: NetConfig = field(default_factory=NetConfig)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.attributes) - set(VOCABULARIES)):
            raise ConfigError(f"attributes: {unknown} unknown; the vocabularies are {sorted(VOCABULARIES)}")
        check_bounds(self)


class IdentitySource(MapSource):
    """Latents (C, s, s) of a portrait, the unit mean embedding (E,) of its person, and the classes (A,) of its
    attributes, sorted by name."""

    def __init__(
        self,
        arrays: FaceArrays,
        latents: NDArray[np.float32] | ShardedArray,
        persons: NDArray[np.float32],
        classes: NDArray[np.int64],
    ) -> None:
        self.arrays, self.latents, self.persons, self.classes = arrays, latents, persons, classes

    def __len__(self) -> int:
        return len(self.latents)

    def get_batch(self, indices: list[int], rngs: list[np.random.Generator]) -> dict[str, Tensor]:
        rows = np.asarray(indices)
        parts: dict[str, NDArray | ShardedArray] = {
            "latents": self.latents,
            "person": self.persons,
            "classes": self.classes,
        }
        return {name: torch.from_numpy(part[rows]) for name, part in parts.items()}


def portrait_embeddings(arrays: FaceArrays, recognizer: FaceViT, cache: Path, name: str) -> NDArray[np.float32]:
    """Returns the recognizer's embeddings (N, E) of portraits, cut by true landmarks; cached."""
    size = recognizer.config.image_size

    def build(start: int, stop: int) -> dict[str, NDArray]:
        with torch.inference_mode():
            return {"identity": recognizer(aligned_faces(arrays, range(start, stop), size)).identity.numpy()}

    facts = {
        "data": arrays.content_hash,
        "model": module_hash(recognizer),
        "preprocessing": f"landmarks, {size} px",
    }
    return kept_rows(cache, f"{name}-identity", facts, len(arrays), build)["identity"][:]


def person_means(embeddings: NDArray[np.float32], identity: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns for every row the unit mean (N, E) of its identity's unit embeddings."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    people, row = np.unique(identity, return_inverse=True)
    sums = np.zeros((len(people), unit.shape[1]), np.float32)
    np.add.at(sums, row, unit)
    return (sums / np.linalg.norm(sums, axis=1, keepdims=True))[row]


class LatentRecognizerTask(Task):
    """Minimizes 1 − cosine to the person, and the cross-entropy of the attributes, at all noise levels."""

    def __init__(self, model: LatentRecognizer, config: LatentRecognizerConfig, validation: IdentitySource) -> None:
        self.modules = nn.ModuleDict({"model": model})
        self.config, self.validation = config, validation
        self.schedule = NoiseSchedule.from_scheduler(make_scheduler())

    def facts(self) -> dict[str, str]:
        """Returns hashes of the frozen parts; a run resumes only with equal ones."""
        vae, recognizer = parts_of(self.config)
        return {"vae": weights_hash(vae)[:16], "recognizer": module_hash(recognizer)[:16]}

    def loss(self, batch: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        latents = batch["latents"]
        generator, device = context.generator, latents.device
        share = torch.rand(len(latents), generator=generator, device=device)
        timesteps = (len(self.schedule) * share**self.config.low_noise).long()
        noise = torch.randn(latents.shape, generator=generator, device=device)
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        found = self.modules["model"](noisy, timesteps)
        distance = 1 - F.cosine_similarity(found.identity, batch["person"]).mean()
        attributes = attribute_loss(list(found.attributes.values()), batch["classes"])
        parts = {"distance": distance.detach(), "attributes": attributes.detach()}
        return distance + self.config.attribute_weight * attributes, parts

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Returns cosine to the person and accuracy of the attributes on validation portraits, at fixed noise."""
        rows = list(range(min(512, len(self.validation))))
        batch = self.validation.get_batch(rows, [])
        generator = torch.Generator().manual_seed(0)
        found = {}
        for level in LEVELS:
            seen = read_noisy(self.modules["model"], batch["latents"], level, generator)
            found[f"cosine_{level}"] = float(F.cosine_similarity(seen.identity, batch["person"]).mean())
            right = [hits[known].mean() for hits, known in attribute_hits(seen, batch["classes"].numpy()).values()]
            found[f"attributes_{level}"] = float(np.mean(right))
        return found

    def export(self, directory: Path) -> None:
        self.modules["model"].save_pretrained(directory)


@torch.no_grad()
def read_noisy(model: LatentRecognizer, latents: Tensor, level: int, generator: torch.Generator) -> LatentReading:
    """Adds noise of timestep `level` to clean latents (N, C, s, s) and reads them; the result has no features."""
    schedule, device = NoiseSchedule.from_scheduler(make_scheduler()), next(model.parameters()).device
    found = []
    for part in latents.split(64):
        timesteps = torch.full((len(part),), level)
        noisy = schedule.add_noise(part, torch.randn(part.shape, generator=generator), timesteps)
        found.append(model(noisy.to(device), timesteps.to(device)))
    return LatentReading(
        identity=torch.cat([one.identity for one in found]).cpu(),
        attributes={name: torch.cat([one.attributes[name] for one in found]).cpu() for name in found[0].attributes},
        features=[],
    )


def attribute_hits(
    seen: LatentReading, classes: NDArray[np.int64]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Returns, by attribute, whether the likeliest class is the true one (N,), and whether the true one is known
    (N,)."""
    return {
        name: ((logits.argmax(dim=1).numpy() == column).astype(np.float64), column != IGNORED)
        for (name, logits), column in zip(seen.attributes.items(), classes.T, strict=True)
    }


def parts_of(config: LatentRecognizerConfig) -> tuple[Path, FaceViT]:
    """Returns the frozen autoencoder's folder and the recognizer."""
    vae = Path(config.vae) if config.vae else shipped_pipeline("tiny") / "vae"
    return vae, recognizer_at(config.recognizer)


def load_source(config: LatentRecognizerConfig, split: str) -> IdentitySource:
    """Loads the latents and persons of a split."""
    vae, recognizer = parts_of(config)
    arrays, large = load_arrays(config.data, split, size=config.size), load_arrays(config.data, split)
    embeddings = portrait_embeddings(large, recognizer, Path(config.data) / ".features", split)
    persons = person_means(embeddings, np.asarray(arrays.identity))
    classes = attribute_classes(arrays, sorted(config.attributes))
    return IdentitySource(arrays, cached_latents(vae, arrays), persons, classes)


def build(config: LatentRecognizerConfig) -> tuple[LatentRecognizerTask, IdentitySource]:
    """Returns task and source of a configuration."""
    source, validation = load_source(config, "train"), load_source(config, "validation")
    channels, side = source.latents.shape[1:3]
    vocabularies = {name: list(source.arrays.vocabularies[name]) for name in config.attributes}
    embedding = source.persons.shape[1]
    model = LatentRecognizer(channels, side, config.model.widths, config.model.depth, embedding, vocabularies)
    return LatentRecognizerTask(model, config, validation), source


def measure(path: Path, config: LatentRecognizerConfig) -> dict[str, Estimate]:
    """Measures rank-1 of noisy latents among the people of the test split (the gallery is each frontal portrait without
    noise), the cosine to the person's mean embedding, and the accuracy of the attributes."""
    source = load_source(config, "test")
    arrays = source.arrays
    model = LatentRecognizer.from_pretrained(path).eval()
    latents, identity = torch.from_numpy(np.array(source.latents)), np.asarray(arrays.identity)
    index, frontal = np.asarray(arrays.index), np.asarray(arrays.index) == 0
    clean = read_noisy(model, latents, 0, torch.Generator().manual_seed(0)).identity.numpy()
    figures = {}
    for level in LEVELS:
        seen = read_noisy(model, latents, level, torch.Generator().manual_seed(1))
        cosine = F.cosine_similarity(seen.identity, torch.from_numpy(source.persons)).numpy()
        hits, probes = rank1_hits(np.where(frontal[:, None], clean, seen.identity.numpy()), identity, index)
        figures[f"rank-1 at timestep {level}"] = identity_bootstrap(hits, identity[probes])
        figures[f"cosine at timestep {level}"] = identity_bootstrap(cosine, identity)
        for name, (right, known) in attribute_hits(seen, source.classes).items():
            figures[f"{name} read at timestep {level}"] = identity_bootstrap(right[known], identity[known])
    return figures


main = partial(
    run_tower,
    LatentRecognizerConfig,
    name="latent_recognizer",
    build=build,
    measure=measure,
    title="Tiny latent recognizer",
    summary=(
        "Reads noisy latents of the tiny autoencoder and gives the embedding that the tiny face recognizer gives "
        "the person, and the attributes of the picture, for losses of stage 2. It looks at no generated picture "
        "when results are measured."
    ),
)

if __name__ == "__main__":
    sys.exit(main())
