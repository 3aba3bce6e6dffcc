"""Identities as values: what the pipeline needs to know of a person, from one photo or several, to keep and to mix.

identity = pipeline.encode_identity(["a.jpg", "b.jpg"])
identity.save("anna.safetensors")
pipeline("a portrait in the rain", identity=Identity.load("anna.safetensors"))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from faceclip.errors import CheckpointError, ConfigError
from faceclip.face3d.frames import FaceFit
from faceclip.faces import Face, PreparedFace
from faceclip.faces.align import template
from faceclip.towers.face import FaceFeatures
from makeup_plugin.arguments import path_of
from makeup_plugin.saving.identity_files import REMEDY, read_identity_file, write_identity_file

# A photo counts as an outlier where its similarity to the others' mean is below this share of the median of all photos.
# On renders this finds a stranger among four photos in 93 of 100 cases, and warns wrongly in 2 of 100.
OUTLIER_SHARE = 0.4
# Weighted means of unit vectors below this length have no direction: the faces contradict each other.
_SHORTEST = 1e-3


@dataclass(frozen=True, kw_only=True)
class PhotoReport:
    """What one photo gave to an identity.

    weight: its share, all shares sum to 1. similarity: cosine of its embedding to the mean of the other photos'; None
    for a single photo. outlier: whether this is far below the similarities of the other photos, as of another person.
    size: (height, width) of the photo in px. landmarks: the face's five points (5, 2) in px.
    """

    weight: float
    similarity: float | None
    outlier: bool
    size: tuple[int, int]
    landmarks: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity:
    """One person, as `FaceMakeUpPipeline.encode_identity` gives it. All tensors are float32 on the CPU.

    Attributes:
        features: one row of the face encoder's patch tokens (1,P,W) and identity embedding (1,E), unnormalized.
        image_tokens: (1,T,V) of the identity channel's image tower; None where the pipeline has none.
        fit: one row of the head model's parameters in the frame of the photo's upper left square; None without a
            fitter. Pose, expression, camera and light are those of the photo with the largest weight.
        photo_size: (height, width) px of that photo.
        crops: the aligned crops (N,448,448,3) uint8 RGB, or (0,…) where the pictures were left out.
        photos: a report on each photo, none for a mixture.
        recognizer, image_tower: hashes of the networks that made features and image tokens.

    Raises ConfigError, which names the field, for other shapes and types, and for NaN and infinity.
    """

    features: FaceFeatures
    image_tokens: Tensor | None
    fit: FaceFit | None
    photo_size: tuple[int, int] | None
    crops: np.ndarray
    photos: tuple[PhotoReport, ...]
    recognizer: str
    image_tower: str | None

    def __post_init__(self) -> None:
        for name, value in self.tensors().items():
            rank = 3 if name.endswith(("tokens", "light")) else 2
            if not isinstance(value, Tensor) or value.ndim != rank or len(value) != 1 or 0 in value.shape:
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ConfigError(f"identity: {name} must be one row with {rank} dimensions, got {found}")
            if value.dtype != torch.float32 or value.device.type != "cpu":
                raise ConfigError(
                    f"identity: {name} must be float32 on the CPU, got {value.dtype} on {value.device}: identities hold"
                    " one precision; the pipeline casts them to its own"
                )
            if not bool(torch.isfinite(value).all()):
                raise ConfigError(f"identity: {name} holds NaN or infinity: encode the photos again")
        if self.fit is not None:
            for name, shape in (("pose", (1, 3)), ("camera", (1, 4)), ("light", (1, 9, 3))):
                if (found := tuple(getattr(self.fit, name).shape)) != shape:
                    raise ConfigError(f"identity: fit.{name} must be {shape}, got {found}")
        if self.crops.dtype != np.uint8 or self.crops.ndim != 4 or self.crops.shape[3] != 3:
            raise ConfigError(f"identity: crops must be uint8 (N,S,S,3), got {self.crops.dtype} {self.crops.shape}")
        if (self.fit is None) != (self.photo_size is None):
            raise ConfigError("identity: fit and photo_size go together: give both or neither")
        if (self.image_tokens is None) != (self.image_tower is None):
            raise ConfigError("identity: image_tokens and image_tower go together: give both or neither")

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same values. Crops and reports on photos do not count."""
        if not isinstance(other, Identity):
            return NotImplemented
        mine, others = self.tensors(), other.tensors()
        facts = [(one.photo_size, one.recognizer, one.image_tower) for one in (self, other)]
        same = facts[0] == facts[1] and mine.keys() == others.keys()
        return same and all(torch.equal(mine[name], others[name]) for name in mine)

    def __hash__(self) -> int:
        return hash((self.recognizer, *self.features.identity[0].tolist()))

    @property
    def embedding(self) -> Tensor:
        """The identity embedding (E,) of length one: cosines of two people's are their similarity."""
        return F.normalize(self.features.identity[0], dim=0)

    @property
    def outliers(self) -> list[int]:
        """Positions of the photos that seem to show another person."""
        return [index for index, photo in enumerate(self.photos) if photo.outlier]

    @property
    def face(self) -> PreparedFace | None:
        """The first crop as a face of its own picture, with the template's landmarks; None without crops."""
        if not len(self.crops):
            return None
        crop = self.crops[0]
        side = crop.shape[0]
        box = np.array([0, 0, side, side], np.float32)
        face = Face(box=box, landmarks=template(side), score=1.0)
        return PreparedFace(crop=crop, face=face, image=crop, name="identity")

    @property
    def points(self) -> tuple[np.ndarray, tuple[int, int]]:
        """The face's five points (5, 2) px in the photo with the largest weight, and (height, width) of that photo.

        Raises ConfigError for a mixture, which has no photo.
        """
        if not self.photos:
            raise ConfigError(
                "identity is a mixture, which has no photo whose five points can be drawn: give shading_map"
            )
        leader = max(self.photos, key=lambda photo: photo.weight)
        return np.array(leader.landmarks, np.float32), leader.size

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, those of a second face encoder and of the fit by dotted names."""
        found = _feature_tensors("features", self.features)
        if self.image_tokens is not None:
            found["image_tokens"] = self.image_tokens
        if self.fit is not None:
            found |= {f"fit.{name}": value for name, value in vars(self.fit).items()}
        return found

    def save(self, path: str | Path, *, crops: bool = True) -> None:
        """Write one safetensors file, whole or not at all. `crops=False` leaves the pictures out.

        The file identifies a person even without pictures: treat it like a photo. Raises DataError when the disk is
        full or not writable.
        """
        crops_kept = self.crops if crops else self.crops[:0]
        facts = {
            "photos": [asdict(photo) for photo in self.photos],
            "photo_size": self.photo_size,
            "recognizer": self.recognizer,
            "image_tower": self.image_tower,
        }
        tensors = self.tensors() | {"crops": torch.from_numpy(np.ascontiguousarray(crops_kept))}
        write_identity_file(path_of("path", path), tensors, facts)

    @classmethod
    def load(cls, path: str | Path) -> Identity:
        """Read what `save` wrote. Raises CheckpointError, which names file and field, for anything else."""
        tensors, facts = read_identity_file(path_of("path", path))
        try:
            identity = _identity_of(tensors, facts)
        except KeyError as error:
            raise CheckpointError(f"{path}: {error.args[0]} is missing; {REMEDY}") from error
        except (ConfigError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} does not hold an identity ({error}); {REMEDY}") from error
        if tensors:
            raise CheckpointError(f"{path}: {', '.join(sorted(tensors)[:3])} belong to no identity; {REMEDY}")
        return identity

    @staticmethod
    def mix(identities: Sequence[Identity], weights: Sequence[float] | None = None) -> Identity:
        """A person between several: embeddings are averaged on the sphere, everything else by weighted means.

        Pose, expression, camera and light are those of the identity with the largest weight, the first of equal ones.
        Weights need not sum to 1; the default is equal shares.

        Raises ConfigError for no identities, for weights that are negative, all zero or not as many, and for
        identities of other recognizers, image towers or head models than the first one.
        """
        identities = list(identities)
        for index, one in enumerate(identities):
            if not isinstance(one, Identity):
                raise ConfigError(f"identities[{index}] must be an Identity, got {type(one).__name__}")
        shares = check_weights(weights, len(identities), "identities")
        first = identities[0]
        for index, other in enumerate(identities[1:], start=1):
            _check_same_kind(first, other, f"identities[{index}]")
        fit, photo_size = None, None
        if all(one.fit is not None for one in identities):
            leader = shares.index(max(shares))
            fit = average_fit([one.fit for one in identities], shares, leader)
            photo_size = identities[leader].photo_size
        tokens = [one.image_tokens for one in identities]
        whole = all(one is not None for one in tokens)
        return Identity(
            features=average_features([one.features for one in identities], shares),
            image_tokens=average(tokens, shares) if whole else None,
            fit=fit,
            photo_size=photo_size,
            crops=first.crops[:0],
            photos=(),
            recognizer=first.recognizer,
            image_tower=first.image_tower if whole else None,
        )


def check_weights(weights: Sequence[float] | None, count: int, what: str) -> list[float]:
    """Shares that sum to 1. Raises ConfigError for none of `what`, and for weights that cannot be shares of them."""
    if not count:
        raise ConfigError(f"{what} is empty: give at least one")
    if weights is None:
        return [1 / count] * count
    try:
        values = [float(weight) for weight in weights]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"weights must be numbers, one for each of {what}, got {weights!r}") from error
    if len(values) != count:
        raise ConfigError(f"weights: {count} {what} need as many weights, got {len(values)}")
    if not all(math.isfinite(value) and value >= 0 for value in values) or not math.isfinite(sum(values)):
        raise ConfigError(f"weights must be finite and not negative, got {values}")
    if sum(values) <= 0:
        raise ConfigError("weights are all zero: give at least one that is larger")
    return [value / sum(values) for value in values]


def average(rows: Sequence[Any], shares: Sequence[float]) -> Tensor:
    """Weighted mean of tensors of one shape; of a single one, itself to the bit."""
    if len(rows) == 1:
        return rows[0]
    weights = torch.tensor(shares, dtype=torch.float32).view(-1, *[1] * (rows[0].ndim))
    return (torch.stack(list(rows)).float() * weights).sum(dim=0)


def average_direction(rows: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Embeddings (1,E) averaged on the sphere: the direction of the weighted mean of the unit vectors, with the
    weighted mean of the lengths. A single one is itself to the bit.

    Raises ConfigError where the directions cancel each other.
    """
    if len(rows) == 1:
        return rows[0]
    mean = average([F.normalize(row, dim=-1) for row in rows], shares)
    if float(mean.norm()) < _SHORTEST:
        raise ConfigError("the embeddings of these faces cancel each other: they have no mean; mix other ones")
    length = average([row.norm(dim=-1, keepdim=True) for row in rows], shares)
    return F.normalize(mean, dim=-1) * length


def average_features(rows: Sequence[FaceFeatures], shares: Sequence[float]) -> FaceFeatures:
    """One row of features from several: patch tokens place by place, which alignment makes the same place of a face."""
    seconds = [row.second for row in rows if row.second is not None]
    return FaceFeatures(
        tokens=average([row.tokens for row in rows], shares),
        identity=average_direction([row.identity for row in rows], shares),
        second=average_features(seconds, shares) if seconds else None,
    )


def average_fit(rows: Sequence[Any], shares: Sequence[float], leader: int) -> Any:
    """The mean shape of the head, with pose, expression, camera and light of the row `leader`."""
    return replace(rows[leader], shape=average([row.shape for row in rows], shares))


def similarities(embeddings: Tensor, shares: Sequence[float]) -> list[float | None]:
    """Cosine of each embedding (N,E) to the weighted mean of the others; None for a single one."""
    units = F.normalize(embeddings, dim=-1)
    if len(units) == 1:
        return [None]
    weighted = units * torch.tensor(shares, dtype=units.dtype)[:, None]
    others = weighted.sum(dim=0, keepdim=True) - weighted
    alone = others.norm(dim=-1) < _SHORTEST  # all other weights are zero
    others[alone] = (units.sum(dim=0, keepdim=True) - units)[alone]
    return F.cosine_similarity(units, others, dim=-1).tolist()


def outliers(values: Sequence[float | None]) -> list[bool]:
    """Which similarities are far below the median. Fewer than three photos cannot say which one is wrong."""
    known = [value for value in values if value is not None]
    if len(known) < 3:
        return [False] * len(values)
    limit = OUTLIER_SHARE * float(np.median(known))
    return [value is not None and value < limit for value in values]


def _feature_tensors(name: str, features: FaceFeatures) -> dict[str, Tensor]:
    found = {f"{name}.tokens": features.tokens, f"{name}.identity": features.identity}
    return found if features.second is None else found | _feature_tensors(f"{name}.second", features.second)


def _check_same_kind(first: Identity, other: Identity, name: str) -> None:
    if other.recognizer != first.recognizer:
        raise ConfigError(f"{name} was made by another recognizer than the first: encode both by one pipeline")
    if other.image_tower is not None and first.image_tower is not None and other.image_tower != first.image_tower:
        raise ConfigError(f"{name} was made by another image tower than the first: encode both by one pipeline")
    mine, others = first.tensors(), other.tensors()
    for key in mine.keys() & others.keys():
        if mine[key].shape != others[key].shape:
            raise ConfigError(
                f"{name}: {key} is {tuple(others[key].shape)} and that of the first {tuple(mine[key].shape)}: encode"
                " both by one pipeline"
            )


def _identity_of(tensors: dict[str, Tensor], facts: dict[str, Any]) -> Identity:
    """The identity of a file, whose tensors are taken out of `tensors`. Raises KeyError for what is missing."""
    size, tower = facts["photo_size"], facts["image_tower"]
    names = [field.name for field in fields(FaceFit)]
    return Identity(
        features=_features_of(tensors, "features"),
        image_tokens=tensors.pop("image_tokens", None),
        fit=None if size is None else FaceFit(**{name: tensors.pop(f"fit.{name}") for name in names}),
        photo_size=None if size is None else _size_of(size),
        crops=tensors.pop("crops").numpy(),
        photos=tuple(_report_of(photo) for photo in facts["photos"]),
        recognizer=_hash_of(facts["recognizer"]),
        image_tower=None if tower is None else _hash_of(tower),
    )


def _features_of(tensors: dict[str, Tensor], name: str) -> FaceFeatures:
    second = _features_of(tensors, f"{name}.second") if f"{name}.second.tokens" in tensors else None
    return FaceFeatures(tokens=tensors.pop(f"{name}.tokens"), identity=tensors.pop(f"{name}.identity"), second=second)


def _report_of(facts: dict[str, Any]) -> PhotoReport:
    similarity = facts["similarity"]
    return PhotoReport(
        weight=_finite(facts["weight"]),
        similarity=None if similarity is None else _finite(similarity),
        outlier=bool(facts["outlier"]),
        size=_size_of(facts["size"]),
        landmarks=tuple((_finite(x), _finite(y)) for x, y in facts["landmarks"]),
    )


def _finite(value: Any) -> float:
    if not math.isfinite(found := float(value)):
        raise ValueError(f"{value!r} is no finite number")
    return found


def _size_of(value: Any) -> tuple[int, int]:
    height, width = value
    if not all(isinstance(side, int) and 0 < side < 2**31 for side in (height, width)):
        raise ValueError(f"photo size {value!r} is not a height and a width in px")
    return height, width


def _hash_of(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"a hash is {value!r}, not a text")
    return value
