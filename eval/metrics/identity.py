"""Identity of drawn faces: similarities of embeddings, copying of the reference, the place in a gallery of real people.

Embeddings are rows of unit length or any other length; `found` says where there is a face. A picture without a face is
never dropped silently: it counts as 0, or the share of such pictures stands beside the mean.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faceclip.statistics import average_precision, first_right_rank

SMALLEST_ANGLE = 1e-6  # between two photos of one person, below which copying is not defined


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Cosine per picture (N,) in two readings: 0 where no face was found, and NaN there."""

    all: NDArray[np.float64]
    detected: NDArray[np.float64]


def similarity(faces: NDArray[np.floating], others: NDArray[np.floating], found: NDArray[np.bool_]) -> Similarity:
    """Returns the cosine of embeddings (N, D) with those of reference photos (N, D); `found` (N,): both have a face."""
    cosines = np.where(found, _cosines(faces, others), np.nan)
    return Similarity(all=np.where(found, cosines, 0.0), detected=cosines)


def copy_paste_angle(
    drawn: NDArray[np.floating], reference: NDArray[np.floating], target: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Returns how much nearer to the reference photo than to another photo of the person a picture is (N,), by angles:
    (θ(drawn, target) − θ(drawn, reference)) / θ(reference, target) in [−1, 1].

    1: it is the reference. −1: it is the other photo. 0 where the two photos are the same (WithAnyone, MultiID-Bench).
    """
    between = _angles(reference, target)
    difference = _angles(drawn, target) - _angles(drawn, reference)
    return np.where(between < SMALLEST_ANGLE, 0.0, difference / np.maximum(between, SMALLEST_ANGLE))


def copy_paste_chord(
    drawn: NDArray[np.floating], reference: NDArray[np.floating], target: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Returns the same by chords of the unit sphere, mapped to [0, 1]: ½ (1 + (d(drawn, target) − d(drawn, reference))
    / d(reference, target)), d = √(2 − 2 cos) (ViStoryBench). ½ where the two photos are the same."""

    def chord(first: NDArray, second: NDArray) -> NDArray[np.float64]:
        return np.sqrt(np.maximum(2 - 2 * np.clip(_cosines(first, second), -1, 1), SMALLEST_ANGLE))

    between = chord(reference, target)
    degenerate = between <= np.sqrt(SMALLEST_ANGLE)
    return np.where(degenerate, 0.5, 0.5 * (1 + (chord(drawn, target) - chord(drawn, reference)) / between))


@dataclass(frozen=True, kw_only=True)
class GalleryPlace:
    """Per picture (N,): rank from 1 of the first photo of the person in the gallery (`faceclip.statistics.NEVER` where
    no face was found), and average precision over all photos of the person."""

    rank: NDArray[np.int64]
    precision: NDArray[np.float64]


def gallery_place(
    faces: NDArray[np.floating],
    person: NDArray[np.integer],
    found: NDArray[np.bool_],
    gallery: NDArray[np.floating],
    gallery_person: NDArray[np.integer],
    excluded: NDArray[np.bool_] | None = None,
) -> GalleryPlace:
    """Returns where pictures (N, D) of `person` (N,) find that person among real photos (G, D) of `gallery_person`
    (G,).

    excluded (N, G): photos out of the gallery, such as the reference that a picture was made from. Ties count against
    the picture.
    """
    unit = [_unit(side) for side in (faces, gallery)]
    scores = np.where(np.asarray(found)[:, None], unit[0] @ unit[1].T, -np.inf)
    right = np.asarray(person)[:, None] == np.asarray(gallery_person)[None]
    return GalleryPlace(
        rank=first_right_rank(scores, right, excluded), precision=average_precision(scores, right, excluded)
    )


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _cosines(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    return (_unit(first) * _unit(second)).sum(axis=1)


def _angles(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.arccos(np.clip(_cosines(first, second), -1, 1))
