"""What is left of the identity of damaged and attacked references, for encoders and for retrieval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eval.benchmark.references import References
from eval.judges.panel import embed_faces
from eval.robustness.attacks import ATTACKS, attack_photos
from eval.robustness.damages import DAMAGES
from faceclip.errors import EmptyDatasetError
from faceclip.faces.batches import detected_faces, labelled_faces
from faceclip.statistics import Estimate, first_right_rank, identity_bootstrap

Recognizers = Mapping[str, tuple[Callable[[Tensor], Tensor], int]]
Pictures = list[NDArray[np.uint8]]
CLEAN = "undamaged"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A way to damage or attack a photo, and how strongly."""

    name: str
    strength: float


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Of the references under one condition, by one recognizer, with intervals over persons: the share with a face,
    the cosine to the undamaged photo where there is one (None without any), and rank-1 among the persons' other
    photos, where no face is a miss."""

    condition: Condition
    recognizer: str
    detection: Estimate
    cosine: Estimate | None
    rank_1: Estimate


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """One reference (H, W, 3) of each of N persons with its five points (N, 5, 2), and the other photos of all
    persons, which are the gallery, with the person's number of each."""

    images: Pictures
    landmarks: NDArray[np.float32]
    gallery: Pictures
    gallery_landmarks: NDArray[np.float32]
    gallery_person: NDArray[np.int64]


def subjects_of(references: References) -> Subjects:
    """Returns persons with a reference and another photo. Raises EmptyDatasetError for fewer than two."""
    photos = references.photos
    chosen = [row for row in references.chosen if references.others(row)]
    if len(chosen) < 2:
        raise EmptyDatasetError("robustness needs two persons with two photos whose faces are found: give more photos")
    others = [(number, other) for number, row in enumerate(chosen) for other in references.others(row)]
    return Subjects(
        images=[photos[row].image for row in chosen],
        landmarks=np.stack([photos[row].landmarks for row in chosen]),
        gallery=[photos[row].image for _, row in others],
        gallery_landmarks=np.stack([photos[row].landmarks for _, row in others]),
        gallery_person=np.array([number for number, _ in others]),
    )


def conditions(damages: Sequence[str], levels: Sequence[float]) -> list[Condition]:
    """Returns the undamaged photos, every strength of the named damages, and every attack at the levels."""
    found = [Condition(name=CLEAN, strength=0.0)]
    found += [Condition(name=name, strength=strength) for name in damages for strength in DAMAGES[name][1]]
    return found + [Condition(name=attack, strength=level) for attack in ATTACKS for level in levels]


def apply(
    condition: Condition, subjects: Subjects, target: tuple[Callable[[Tensor], Tensor], int], *, steps: int, seed: int
) -> Pictures:
    """Returns the references under a condition; target: the recognizer that attacks are made on."""
    pairs = zip(subjects.images, subjects.landmarks, strict=True)
    if condition.name == CLEAN:
        return list(subjects.images)
    if condition.name in DAMAGES:
        damage = DAMAGES[condition.name][0]
        return [damage(image, condition.strength, points) for image, points in pairs]
    kind = next(attack for attack in ATTACKS if attack == condition.name)
    embed, size = target
    return attack_photos(
        kind, subjects.images, subjects.landmarks, embed, size, levels=condition.strength, steps=steps, seed=seed
    )


class Yardstick:
    """Recognizers with the embeddings of the undamaged references and of the gallery."""

    def __init__(self, recognizers: Recognizers, subjects: Subjects) -> None:
        self.recognizers = recognizers
        self.person = subjects.gallery_person
        self.clean: dict[str, NDArray[np.float32]] = {}
        self.gallery: dict[str, NDArray[np.float32]] = {}
        for name, (embed, size) in recognizers.items():
            self.clean[name] = embed_faces(embed, size, subjects.images, labelled_faces(subjects.landmarks))
            self.gallery[name] = embed_faces(embed, size, subjects.gallery, labelled_faces(subjects.gallery_landmarks))

    def measure(self, condition: Condition, pictures: Sequence[NDArray[np.uint8]]) -> list[Kept]:
        """Measures the figures of pictures, one per person, whose faces are looked for anew."""
        faces = detected_faces(pictures, label=condition.name)
        people = np.arange(len(pictures))
        found = []
        for name, (embed, size) in self.recognizers.items():
            vectors, seen = embed_faces(embed, size, pictures, faces), faces.found
            cosine = (vectors * self.clean[name]).sum(axis=1)
            scores = vectors @ self.gallery[name].T
            rank = first_right_rank(scores, self.person == people[:, None])
            found.append(
                Kept(
                    condition=condition,
                    recognizer=name,
                    detection=identity_bootstrap(seen.astype(np.float64), people),
                    cosine=identity_bootstrap(cosine[seen], people[seen]) if seen.any() else None,
                    rank_1=identity_bootstrap((seen & (rank == 1)).astype(np.float64), people),
                )
            )
        return found
