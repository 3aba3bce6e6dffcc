"""Scores generated pictures: identity by two recognizers, pose, light, and the attributes that the prompt names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.arms.looks import agreement, fitted_light, light_error
from eval.arms.plan import Job
from eval.judges.panel import Judges, embed_faces, look
from eval.metrics.distances import angle_difference, frechet_distance
from eval.prompt import prompt_scores
from faceclip.data.arrays import FaceArrays
from faceclip.faces.batches import FacePoints, detected_faces
from faceclip.statistics import Estimate, first_right_rank, identity_bootstrap, paired_difference
from faceclip.training.towers.labels import JUDGED


@dataclass(frozen=True, kw_only=True)
class References:
    """Embeddings of a split's portraits and of the gallery (a frontal portrait per person), by recognizer, and the
    judge's features of the portraits."""

    portraits: Mapping[str, NDArray[np.float32]]  # (rows of the split, D), unit length
    gallery: Mapping[str, NDArray[np.float32]]  # (people, D)
    gallery_identity: NDArray[np.int64]  # (people,)
    features: NDArray[np.float32]  # (rows of the split, D)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of the N pictures of one arm, as arrays (N,). An undetected face has similarity 0 and is not recognized.

    frechet: distance of all pictures to the portraits of the split, by the judge's features.
    """

    identity: NDArray[np.int64]
    found: NDArray[np.bool_]
    similarity: Mapping[str, NDArray[np.float64]]
    raw_similarity: Mapping[str, NDArray[np.float64]]  # of undetected faces too, cut by the judge's landmarks
    recognized: Mapping[str, NDArray[np.float64]]
    pose_error: NDArray[np.float64]  # mean of yaw, pitch and roll, degrees
    yaw_error: NDArray[np.float64]
    light_error: NDArray[np.float64]  # from the reference's light; NaN if the pipeline has no fitter
    agreed: NDArray[np.float64]  # 1 if judge and detector find the same five points
    prompt: Mapping[str, NDArray[np.float64]]  # by attribute and "all": 1, 0, or NaN if the prompt does not name it
    judged: Mapping[str, Sequence[str]]
    frechet: float


def embed_references(judges: Judges, arrays: FaceArrays) -> References:
    """Embeds a split's portraits, at the size of the generated pictures, cut by their true landmarks."""
    faces = FacePoints(landmarks=np.asarray(arrays.landmarks_5), found=np.ones(len(arrays), dtype=bool))
    frontal = np.flatnonzero(arrays.index == 0)
    portraits = {
        name: embed_faces(embed, size, arrays.images, faces) for name, (embed, size) in judges.embedders().items()
    }
    return References(
        portraits=portraits,
        gallery={name: vectors[frontal] for name, vectors in portraits.items()},
        gallery_identity=np.asarray(arrays.identity[frontal]),
        features=look(judges.judge, arrays.images).features,
    )


def judge_pictures(
    judges: Judges, images: NDArray[np.uint8], jobs: Sequence[Job], arrays: FaceArrays, references: References
) -> Scores:
    """Scores pictures (N, S, S, 3), uint8, against the references and prompts of their jobs.

    Every picture counts: pose and attributes need no detected face, and a person whose face is not detected has
    similarity 0 and counts as not recognized.
    """
    rows = np.array([job.reference for job in jobs])
    identity = np.asarray(arrays.identity)[rows]
    sight = look(judges.judge, images)
    faces = detected_faces(images, label="finding generated faces")
    found = faces.found
    points = FacePoints(landmarks=sight.landmarks, found=np.ones(len(images), dtype=bool))
    similarity, raw, recognized = {}, {}, {}
    for name, (embed, size) in judges.embedders().items():
        vectors = embed_faces(embed, size, images, points)
        raw[name] = (vectors * references.portraits[name][rows]).sum(axis=1).astype(np.float64)
        similarity[name] = np.where(found, raw[name], 0.0)
        scores = vectors @ references.gallery[name].T
        own = references.gallery_identity[None] == identity[:, None]
        recognized[name] = (found & (first_right_rank(scores, own) == 1)).astype(np.float64)
    assert faces.widths is not None  # a detector found them
    light = np.full(len(rows), np.nan)
    if judges.fitter is not None:
        light = light_error(fitted_light(judges.fitter, images, sight.landmarks), np.asarray(arrays.light)[rows])
    errors = angle_difference(sight.pose, np.asarray(arrays.pose)[rows])
    return Scores(
        identity=identity,
        found=found,
        similarity=similarity,
        raw_similarity=raw,
        recognized=recognized,
        pose_error=errors.mean(axis=1),
        yaw_error=errors[:, 0],
        light_error=light,
        agreed=agreement(sight.landmarks, faces.landmarks, faces.widths),
        prompt=prompt_scores([job.names for job in jobs], sight.values),
        judged=sight.values,
        frechet=frechet_distance(sight.features, references.features),
    )


def summarize(scores: Scores) -> dict[str, Estimate]:
    """Returns the mean of every figure with its interval over identities. NaN values are left out."""

    def mean(values: NDArray) -> Estimate:
        known = ~np.isnan(values)
        return identity_bootstrap(values[known], scores.identity[known])

    figures = {"faces found": mean(scores.found.astype(np.float64))}
    for name in scores.similarity:
        figures[f"similarity, {name}"] = mean(scores.similarity[name])
        figures[f"similarity without detection, {name}"] = mean(scores.raw_similarity[name])
        figures[f"recognized, {name}"] = mean(scores.recognized[name])
    figures["pose error (°)"] = mean(scores.pose_error)
    figures["yaw error (°)"] = mean(scores.yaw_error)
    figures["light error"] = mean(scores.light_error)
    figures["judge and detector agree"] = mean(scores.agreed)
    for name in ("all", *JUDGED):
        figures[f"prompt accuracy, {name}"] = mean(scores.prompt[name])
    return figures


def compare(first: Scores, second: Scores) -> dict[str, Estimate]:
    """Returns the paired differences `first` − `second` over the same jobs; NaN for an attribute that no prompt
    names."""
    result = {
        f"similarity, {name}": paired_difference(first.similarity[name], second.similarity[name], first.identity)
        for name in first.similarity
    }
    for name in ("all", *JUDGED):
        known = ~np.isnan(first.prompt[name])
        result[f"prompt accuracy, {name}"] = paired_difference(
            first.prompt[name][known], second.prompt[name][known], first.identity[known]
        )
    result["pose error (°)"] = paired_difference(first.pose_error, second.pose_error, first.identity)
    # The error is less than half if this whole interval is negative.
    result["pose error − half the other's (°)"] = paired_difference(
        first.pose_error, second.pose_error / 2, first.identity
    )
    return result
