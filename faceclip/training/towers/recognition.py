"""Task and measures of both recognizers: ArcFace's loss, with geometry and traits as further targets.

ArcFace is an additive angular margin loss: Deng et al. 2019, "ArcFace", equation 3.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from faceclip.data.arrays import load_arrays
from faceclip.people.sample import sample_identity
from faceclip.settings import setting
from faceclip.statistics import Estimate, first_right_rank, identity_bootstrap
from faceclip.towers.face import FaceFeatures
from faceclip.training import StepContext, Task
from faceclip.training.towers.card import dataset_facts
from faceclip.training.towers.crops import CropSource, aligned_crops

CENTER_SIZE = 0.02  # deviation of the class centers at the start
LARGE_YAW = 40.0  # degrees; the hard half of the probes is reported by itself


@dataclass(kw_only=True)
class MarginConfig:
    """ArcFace's weight, margin and scale, and readouts from the embedding that help it.

    An untrained network learns little from distinguishing thousands of people; geometry and traits teach it first what
    to look at. An identity label says only "another person", while the shape coefficients say how the heads differ. The
    readout of landmarks helps networks with tokens: without it, a small transformer spends its first epochs learning
    where the parts of a face are.
    """

    arcface: float = setting(1.0, "weight after warmup and ramp")
    margin: float = setting(0.35, "radians, reached after warmup and ramp")
    scale: float = setting(32.0, "of the cosines")
    warmup: int = setting(300, "steps without it")
    ramp: int = setting(1500, "steps up to the full weight and margin")
    geometry: float = setting(0.5, "weight: the head's shape read linearly from the embedding")
    traits: float = setting(0.5, "weight: skin, colors and other traits of the person, read linearly")
    landmarks: float = setting(0.0, "weight: 68 landmarks read linearly from the mean patch token")


class IdentityTask(Task):
    """Trains `backbone` (crops in [0, 1] → embeddings or `FaceFeatures`) to distinguish the training identities.

    directory: the data set, whose validation split is measured.
    """

    def __init__(self, backbone: nn.Module, *, source: CropSource, margin: MarginConfig, directory: Path) -> None:
        self.margin = margin
        self.shape = standardized(np.asarray(source.arrays.shape, dtype=np.float32))
        self.traits = standardized(person_traits(directory, np.asarray(source.arrays.identity)))
        size = int(backbone.config.embedding_dim)
        self.modules = nn.ModuleDict({"backbone": backbone, "geometry": nn.Linear(size, self.shape.shape[1])})
        self.modules["traits"] = nn.Linear(size, self.traits.shape[1])
        self.modules["centers"] = nn.Embedding(source.classes, size)
        # Only the directions of centers count, and Adam moves each coordinate by about the rate. Centers of unit length
        # would keep their random directions for thousands of steps, and the network would have to memorize these.
        self.modules["centers"].weight.data.mul_(CENTER_SIZE)
        if margin.landmarks:
            self.modules["landmarks"] = nn.Linear(int(backbone.config.width), 2 * 68)
        self.validation = EvaluationSet(directory, "validation", size=source.size, people=100)

    def loss(self, batch: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of one batch of `CropSource`: ArcFace, geometry, traits and landmarks."""
        features = self.modules["backbone"](batch["crop"].float() / 255)
        embeddings = identity_of(features)
        config = self.margin
        rise = margin_at(context.step, warmup=config.warmup, ramp=config.ramp, margin=1.0)
        margin = rise * config.margin
        centers = self.modules["centers"].weight
        arc, accuracy = arcface_loss(embeddings, centers, batch["label"], margin=margin, scale=config.scale)
        # Scaled to the length of a standardized embedding, so that the readout is a plain regression.
        unit = F.normalize(embeddings.float(), dim=1) * embeddings.shape[1] ** 0.5
        row = batch["row"].cpu()  # the tables stay in host memory: a batch needs a few of their rows
        with torch.autocast(unit.device.type, enabled=False):
            geometry = F.mse_loss(self.modules["geometry"](unit), self.shape[row].to(unit.device))
            traits = F.mse_loss(self.modules["traits"](unit), self.traits[row].to(unit.device))
        total = rise * config.arcface * arc + config.geometry * geometry + config.traits * traits
        parts = {"arcface": arc, "geometry": geometry, "traits": traits, "accuracy": accuracy}
        if config.landmarks:
            points = self.modules["landmarks"](features.tokens.mean(dim=1)).float().unflatten(1, (68, 2))
            landmarks = F.l1_loss(points, batch["landmarks"])
            total = total + config.landmarks * landmarks
            parts["landmarks"] = landmarks
        return total, {name: part.detach() for name, part in parts.items()}

    def validate(self, step: int) -> dict[str, float]:
        """Returns rank-1 on the validation identities."""
        figures = self.validation.measure(self.modules["backbone"])
        return {name: figure.value for name, figure in figures.items()}

    def export(self, directory: Path) -> None:
        """Saves the recognizer without centers and readouts, which are needed only in training."""
        self.modules["backbone"].save_pretrained(directory)


def arcface_logits(cosine: Tensor, labels: Tensor, *, margin: float, scale: float) -> Tensor:
    """Returns logits (B, C): scale·cos(θ + margin) for the labelled class, scale·cos θ for the others. cosine (B, C).

    Past θ = π − margin the curve would turn upwards again; there it continues as cos θ − margin·sin margin,
    as in the authors' code: the loss stays monotonic in θ.
    """
    picked = cosine.gather(1, labels[:, None]).squeeze(1).clamp(-1 + 1e-6, 1 - 1e-6)
    sine = (1 - picked.square()).sqrt()
    shifted = picked * math.cos(margin) - sine * math.sin(margin)
    shifted = torch.where(picked > -math.cos(margin), shifted, picked - margin * math.sin(margin))
    return scale * cosine.scatter(1, labels[:, None], shifted[:, None].to(cosine.dtype))


def arcface_loss(
    embeddings: Tensor, centers: Tensor, labels: Tensor, *, margin: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy of `arcface_logits` and the accuracy of the batch without margin.

    embeddings (B, E) and class centers (C, E) of any length, labels (B,) int64. Computed in fp32 whatever the
    autocast: cosines near 1 need more than bf16's 8 bits.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        cosine = F.normalize(embeddings.float(), dim=1) @ F.normalize(centers.float(), dim=1).T
        logits = arcface_logits(cosine, labels, margin=margin, scale=scale)
        accuracy = (cosine.detach().argmax(dim=1) == labels).float().mean()
        return F.cross_entropy(logits, labels), accuracy


def margin_at(step: int, *, warmup: int, ramp: int, margin: float) -> float:
    """Returns the margin at a step: 0 for `warmup` steps, then rising linearly to `margin` in `ramp` steps."""
    if step < warmup:
        return 0.0
    return margin * min(1.0, (step - warmup) / max(1, ramp))


def person_traits(directory: Path, identity: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the traits (N, 13) of each row's synthetic person, apart from geometry, from the data set's seed.

    They are skin, lip and eye color, freckles, age lines, and thickness and arch of the brows.
    """
    seed = int(dataset_facts(directory)["seed"])
    people, row = np.unique(identity, return_inverse=True)
    table = []
    for index in people:
        person = sample_identity(seed, int(index))
        scalars = [person.freckles, person.age_lines, person.brow_thickness, person.brow_arch]
        table.append(np.concatenate([person.skin_tone, person.lip_tone, person.eye_color, scalars]))
    return np.array(table, dtype=np.float32)[row]


def standardized(values: NDArray[np.float32]) -> Tensor:
    """Returns the values (N, D) with columns of mean 0 and standard deviation 1."""
    return torch.from_numpy((values - values.mean(axis=0)) / values.std(axis=0).clip(1e-6))


def identity_of(output: FaceFeatures | Tensor) -> Tensor:
    """Returns the embedding (B, E) from a recognizer's output."""
    return output.identity if isinstance(output, FaceFeatures) else output


def rank1_hits(
    embeddings: NDArray[np.floating], identities: NDArray, indices: NDArray
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Measures closed-set identification by cosine: the gallery has image 0 of every identity, all others are probes.

    embeddings (N, E) of any length, identities (N,), indices (N,): number of the image among those of its identity.
    Returns whether each probe is identified (P,), and the probes' rows (P,). A tie with another identity is a miss.
    Raises ValueError if a probe's identity has no gallery image.
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    gallery, probes = np.flatnonzero(indices == 0), np.flatnonzero(indices != 0)
    scores = unit[probes] @ unit[gallery].T
    own = identities[probes][:, None] == identities[gallery][None]
    if not own.any(axis=1).all():
        raise ValueError("some probe identities have no gallery image (index 0)")
    return first_right_rank(scores, own) == 1, probes


class EvaluationSet:
    """The crops of one split, cut once by true landmarks.

    portrait: side in px to which portraits are resized before (None: as stored). people: the first so many; None: all.
    """

    def __init__(
        self, directory: Path, split: str, *, size: int, portrait: int | None = None, people: int | None = None
    ) -> None:
        arrays = load_arrays(directory, split, size=portrait)
        self.identity = np.asarray(arrays.identity)
        kept = slice(None)
        if people is not None and people < len(first := np.unique(self.identity, return_index=True)[1]):
            kept = slice(0, np.sort(first)[people])
        self.identity = self.identity[kept]
        self.yaw = np.asarray(arrays.pose)[kept, 0]
        self.index = np.asarray(arrays.index)[kept]
        self.crops = aligned_crops(arrays, size, count=len(self.identity))

    def measure(self, module: nn.Module) -> dict[str, Estimate]:
        """Returns rank-1 over all probes and over those at large yaw; the gallery has each person's frontal image."""
        hits, probes = rank1_hits(embed_crops(module, self.crops), self.identity, self.index)
        people = self.identity[probes]
        large = np.abs(self.yaw[probes]) > LARGE_YAW
        figures = {"rank1": identity_bootstrap(hits, people)}
        if large.any():
            figures["rank1_large_yaw"] = identity_bootstrap(hits[large], people[large])
        return figures


def measure_identity(module: nn.Module, directory: Path, *, size: int) -> dict[str, Estimate]:
    """Returns rank-1 on the test split, from full portraits and from portraits reduced to 64 px."""
    figures = EvaluationSet(directory, "test", size=size).measure(module)
    small = EvaluationSet(directory, "test", size=size, portrait=64).measure(module)
    return figures | {f"{name}_64px": figure for name, figure in small.items()}


@torch.inference_mode()
def embed_crops(module: nn.Module, crops: NDArray[np.uint8], *, batch: int = 64) -> NDArray[np.float32]:
    """Returns fp32 embeddings (N, E) of uint8 crops (N, S, S, 3); `module` runs in evaluation mode meanwhile."""
    training, device = module.training, next(module.parameters()).device
    module.eval()
    rows = []
    for start in range(0, len(crops), batch):
        images = torch.from_numpy(crops[start : start + batch]).to(device).permute(0, 3, 1, 2).float() / 255
        rows.append(identity_of(module(images)).float().cpu().numpy())
    module.train(training)
    return np.concatenate(rows)
