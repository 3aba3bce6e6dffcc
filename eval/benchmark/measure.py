"""Measurements of a method's pictures: a value per picture and metric, and figures of the whole set.

Columns are named `metric`, or `metric [recognizer]` where each recognizer has its own. A value is NaN where the metric
has none for that picture; the registry says which cases count as 0 instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval.arms.looks import fitted_light
from eval.benchmark.drawing import Gallery
from eval.benchmark.methods import fit
from eval.benchmark.panel import Panel
from eval.benchmark.suite import Suite
from eval.judges.panel import Sight, embed_faces, look
from eval.metrics.distances import (
    angle_difference,
    cosine,
    frechet_distance,
    gaussian_mmd,
    kernel_inception_distance,
)
from eval.metrics.identity import copy_paste_angle, copy_paste_chord, gallery_place, similarity
from eval.metrics.physics import AXES, expression_changed, landmark_difference, light_errors
from eval.metrics.pictures import attribute_count, pairwise_mean, perceptual_distance, text_similarity
from eval.metrics.registry import METRICS
from eval.metrics.vlm import vlm_scores
from eval.prompt import prompt_scores
from faceclip.faces.align import encoder_crop
from faceclip.faces.batches import FacePoints, detected_faces, to_unit
from faceclip.statistics import recall_at
from faceclip.training.towers.labels import JUDGED

FACE_SIDE = 112  # px of the faces that LPIPS compares
Values = dict[str, NDArray[np.float64]]


def column(metric: str, recognizer: str) -> str:
    """Returns the name of a metric's column by one recognizer."""
    return f"{metric} [{recognizer}]"


def metric_of(name: str) -> str:
    """Returns the metric of a column."""
    return name.partition(" [")[0]


def recognizer_of(name: str) -> str:
    """Returns the recognizer of a column, "" where the metric needs none."""
    return name.partition(" [")[2].removesuffix("]")


@dataclass(frozen=True, kw_only=True)
class SetFigure:
    """A figure of all pictures together; deviation over subsets where it has one. n: pictures, m: references."""

    value: float
    n: int
    m: int
    deviation: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """values: column → (N,) in the order of the jobs; sets: column → figure; notes: what must be said with them."""

    values: Values
    sets: Mapping[str, SetFigure]
    notes: tuple[str, ...] = ()
    replies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Views:
    """Features of a list of pictures by each network; each is computed once and only when it is asked for."""

    def __init__(
        self, panel: Panel, images: NDArray[np.uint8] | list[NDArray[np.uint8]], faces: FacePoints | None = None
    ):
        self.panel, self.images = panel, images
        self._faces = faces
        self._kept: dict[tuple[str, str], Any] = {}

    @cached_property
    def faces(self) -> FacePoints:
        return self._faces if self._faces is not None else detected_faces(self.images, label="faces of the pictures")

    @cached_property
    def sight(self) -> Sight:
        return look(self.panel.get("judge"), np.stack([np.asarray(image) for image in self.images]))

    @cached_property
    def light(self) -> NDArray[np.float64]:
        return fitted_light(self.panel.get("fitter"), np.stack(list(self.images)), self.sight.landmarks)

    def identity(self, recognizer: str, *, exchanged: bool = False) -> NDArray[np.float32]:
        """Returns embeddings (N, D), zero rows without a face; `exchanged`: red and blue."""
        embed, size = self.panel.recognizers[recognizer]
        way = (lambda crops: embed(crops.flip(1))) if exchanged else embed
        key = f"identity{exchanged}", recognizer
        return self._once(key, lambda: embed_faces(way, size, self.images, self.faces))

    def features(self, role: str, way: str = "pictures") -> NDArray[np.float32]:
        """Returns features (N, D) of a role's network by one of its methods."""
        return self._once((role, way), lambda: getattr(self.panel.get(role), way)(list(self.images)))

    def face_crops(self) -> torch.Tensor:
        """Returns aligned faces (N, 3, FACE_SIDE, FACE_SIDE) in [0, 1]; black without a face."""
        crops = np.zeros((len(self.images), FACE_SIDE, FACE_SIDE, 3), np.uint8)
        for row in np.flatnonzero(self.faces.found):
            crops[row] = encoder_crop(np.asarray(self.images[row]), self.faces.landmarks[row], FACE_SIDE)
        return to_unit(crops)

    def _once(self, key: tuple[str, str], make: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def reference_views(suite: Suite, panel: Panel) -> Views:
    """Returns views of all photos of the suite, cut where their points are."""
    photos = suite.references.photos
    faces = FacePoints(
        landmarks=np.stack([photo.landmarks for photo in photos]),
        found=np.ones(len(photos), dtype=bool),
        widths=np.array([photo.width for photo in photos], np.float32),
    )
    return Views(panel, [photo.image for photo in photos], faces)


def measure(
    suite: Suite, panel: Panel, references: Views, gallery: Gallery, plain: Views | None, plain_drawn: NDArray | None
) -> tuple[Measured, Views]:
    """Measures all metrics of one method. plain: views of the pictures drawn without identity, None where no method
    draws them; plain_drawn (N,): which of them there are."""
    views = Views(panel, gallery.images)
    wanted = set(suite.settings.metrics or METRICS)
    rows = np.array([job.reference for job in suite.jobs])
    applies, drawn = gallery.applies, gallery.drawn
    values: Values = {"detection@1": (views.faces.found & drawn).astype(np.float64)}
    for name in panel.recognizers:
        values |= _identity_values(suite, references, views, name, rows, drawn, plain, plain_drawn)
    values |= _text_values(suite, panel, views)
    values |= _picture_values(suite, panel, references, views, rows, plain, plain_drawn)
    values |= _physics_values(suite, panel, references, views, rows)
    values["cost/seconds@1"] = np.array([record.seconds for record in gallery.records])
    values["cost/memory@1"] = np.array([record.memory_mib for record in gallery.records])
    replies: dict[str, tuple[str, ...]] = {}
    notes = []
    if (vlm := panel.get("vlm")) is not None:
        for question in ("authenticity@1", "prompt@1"):
            texts = [suite.prompts[job.prompt].text for job in suite.jobs]
            scored = vlm_scores(vlm.ask, list(gallery.images), texts, question=question)
            values[f"vlm/{question}"], replies[question] = scored.scores, scored.replies
            notes.append(f"{scored.unparsable} replies to {question} could not be parsed")
    counted = {"facesim/all@1", "detection@1", "gallery/rank1@1", "gallery/map@1"}
    for name, found in values.items():
        known = applies if metric_of(name) in counted else drawn
        values[name] = np.where(known, found, np.nan)
    sets = _set_figures(suite, panel, references, views, drawn)
    notes += [
        f"{name} is of {figure.n:,} pictures: below 2,000 it is mostly bias; read kid@1"
        for name, figure in sets.items()
        if name.startswith("fid") and figure.n < 2000
    ]
    keep = {name: value for name, value in values.items() if metric_of(name) in wanted}
    kept_sets = {name: figure for name, figure in sets.items() if metric_of(name) in wanted}
    return Measured(values=keep, sets=kept_sets, notes=tuple(notes), replies=replies), views


def _identity_values(
    suite: Suite,
    references: Views,
    views: Views,
    name: str,
    rows: NDArray[np.int64],
    drawn: NDArray[np.bool_],
    plain: Views | None,
    plain_drawn: NDArray | None,
) -> Values:
    known = references.identity(name)
    faces, found = views.identity(name), views.faces.found & drawn
    to_reference = similarity(faces, known[rows], found)
    exchanged = similarity(views.identity(name, exchanged=True), references.identity(name, exchanged=True)[rows], found)
    values = {
        "facesim/all@1": to_reference.all,
        "facesim/detected@1": to_reference.detected,
        "facesim/facemakeup@v1": exchanged.detected,
    }
    others = [suite.references.others(row) for row in rows]
    has = np.array([bool(other) for other in others])
    target = known[[other[0] if other else row for other, row in zip(others, rows, strict=True)]]
    both = found & has
    values["sim_ref@1"] = np.where(both, to_reference.detected, np.nan)
    values["sim_gt@1"] = similarity(faces, target, both).detected
    for way, formula in (("angle", copy_paste_angle), ("chord", copy_paste_chord)):
        values[f"copy_paste/{way}@1"] = np.where(both, formula(faces, known[rows], target), np.nan)
    people = {person: n for n, person in enumerate(dict.fromkeys(photo.person for photo in suite.references.photos))}
    person = np.array([people[photo.person] for photo in suite.references.photos])
    # References leave the gallery: a copy of one must not find its own person. So do the held photos, which are the
    # pictures of real rows.
    out = np.zeros(len(person), dtype=bool)
    out[[*suite.references.chosen, *suite.references.held.values()]] = True
    excluded = np.broadcast_to(out, (len(rows), len(out)))
    place = gallery_place(faces, person[rows], found, known, person, excluded)
    values["gallery/rank1@1"] = np.where(has, recall_at(place.rank, 1), np.nan)
    values["gallery/map@1"] = np.where(has, place.precision, np.nan)
    if plain is not None and plain_drawn is not None:
        there = plain.faces.found & plain_drawn
        values["facesim/prior@1"] = np.where(
            plain_drawn, similarity(plain.identity(name), known[rows], there).all, np.nan
        )
    return {column(metric, name): value for metric, value in values.items()}


def _text_values(suite: Suite, panel: Panel, views: Views) -> Values:
    values: Values = {}
    prompts = [prompt.text for prompt in suite.prompts]
    which = [job.prompt for job in suite.jobs]
    for role, name in (("clip_l14", "l14"), ("clip_b16", "b16"), ("shipped_clip", "shipped")):
        if (model := panel.get(role)) is not None:
            values[f"clip_t/{name}@1"] = text_similarity(views.features(role), model.texts(prompts)[which])
    if (judge := panel.get("judge")) is not None:
        names = [suite.prompts[number].names for number in which]
        values["prompt/judge@1"] = prompt_scores(names, views.sight.values)["all"]
        values["attr_count/judge@1"] = attribute_count(_sureness(judge, views))
    return values


@torch.no_grad()
def _sureness(judge: Any, views: Views) -> NDArray[np.float64]:
    """Returns the probability (N, A) of each attribute's most likely value."""
    parts = []
    for start in range(0, len(views.images), 64):
        seen = judge(to_unit(np.stack(list(views.images[start : start + 64]))).to(judge.device))
        parts.append(torch.stack([seen.attributes[k].softmax(1).amax(1) for k in JUDGED], dim=1).cpu().numpy())
    return np.concatenate(parts)


def _picture_values(
    suite: Suite,
    panel: Panel,
    references: Views,
    views: Views,
    rows: NDArray[np.int64],
    plain: Views | None,
    plain_drawn: NDArray | None,
) -> Values:
    values: Values = {}
    compared = (
        ("clip_i/ref@1", "clip_l14", "pictures"),
        ("clip_i/ref@facemakeup-v1", "clip_b16", "pooled"),
        ("dino/ref@v1-s16", "dino_s16", "pictures"),
    )
    for name, role, way in compared:
        if panel.get(role) is not None:
            values[name] = cosine(views.features(role, way), references.features(role, way)[rows])
    for name, role in (("clip_i/noid@1", "clip_l14"), ("dino/noid@v2-b14", "dino_v2")):
        if panel.get(role) is not None and plain is not None and plain_drawn is not None:
            found = cosine(views.features(role), plain.features(role))
            values[name] = np.where(plain_drawn, found, np.nan)
    if panel.get("dreamsim") is not None:
        own = views.features("dreamsim")
        values["dreamsim/ref@1"] = 1 - cosine(own, references.features("dreamsim")[rows])
        if plain is not None and plain_drawn is not None:
            apart = 1 - cosine(own, plain.features("dreamsim"))
            values["dreamsim/noid@1"] = np.where(plain_drawn, apart, np.nan)
    if (lpips := panel.get("lpips")) is not None:
        photos = np.stack([fit(image, suite.settings.size) for image in references.images])
        values["lpips/whole@1"] = _lpips(lpips, to_unit(np.asarray(views.images)), to_unit(photos)[rows])
        faces = _lpips(lpips, views.face_crops(), references.face_crops()[rows])
        values["lpips/face@1"] = np.where(views.faces.found, faces, np.nan)
    groups = [(job.reference, job.prompt) for job in suite.jobs]
    if suite.settings.pictures > 1:
        if lpips is not None:
            pictures = to_unit(np.asarray(views.images))
            values["diversity/lpips@1"] = pairwise_mean(
                groups, lambda a, b: float(_lpips(lpips, pictures[[a]], pictures[[b]])[0])
            )
        if panel.get("judge") is not None:
            unit = views.sight.features / np.maximum(np.linalg.norm(views.sight.features, axis=1, keepdims=True), 1e-9)
            values["diversity/judge@1"] = pairwise_mean(groups, lambda a, b: float(1 - unit[a] @ unit[b]))
    return values


def _lpips(model: Any, first: torch.Tensor, second: torch.Tensor) -> NDArray[np.float64]:
    pairs = zip(first.split(16), second.split(16), strict=True)
    return np.concatenate([perceptual_distance(model.maps(a), model.maps(b), model.weights) for a, b in pairs])


def _physics_values(suite: Suite, panel: Panel, references: Views, views: Views, rows: NDArray[np.int64]) -> Values:
    found, known = views.faces, references.faces
    points = landmark_difference(np.nan_to_num(found.landmarks), known.landmarks[rows])
    values: Values = {"landmarks@1": np.where(found.found, points, np.nan)}
    if panel.get("judge") is None:
        return values
    photos = suite.references.photos
    pose = np.stack(
        [photo.pose if photo.pose is not None else references.sight.pose[n] for n, photo in enumerate(photos)]
    )
    errors = angle_difference(views.sight.pose, pose[rows])
    values |= {f"pose_rmse/{axis}@1": errors[:, number] for number, axis in enumerate(AXES)}
    expression = [photo.shows.get("expression") or "" for photo in photos]
    if not all(expression):
        expression = list(references.sight.values["expression"])
    values["expression@1"] = expression_changed(views.sight.values["expression"], [expression[row] for row in rows])
    if panel.get("fitter") is not None:
        light = np.stack([photo.light if photo.light is not None else np.full(27, np.nan) for photo in photos])
        values["light_rmse@1"] = light_errors(views.light, light[rows])
        values["light_rmse/gain_free@1"] = light_errors(views.light, light[rows], gain_free=True)
    return values


def _set_figures(
    suite: Suite, panel: Panel, references: Views, views: Views, drawn: NDArray[np.bool_]
) -> dict[str, SetFigure]:
    """Returns distances of all pictures that were drawn to all photos of the suite."""
    sets: dict[str, SetFigure] = {}
    n, m = int(drawn.sum()), len(references.images)

    def add(suffix: str, first: NDArray, second: NDArray) -> None:
        first = first[drawn]
        sets[f"fid{suffix}@1"] = SetFigure(value=frechet_distance(first, second), n=n, m=m)
        kernel = kernel_inception_distance(first, second) if min(n, m) > 1 else None
        if kernel is not None:
            sets[f"kid{suffix}@1"] = SetFigure(value=kernel.mean, deviation=kernel.deviation, n=n, m=m)

    if panel.get("inception") is not None:
        add("", views.features("inception"), references.features("inception"))
    if panel.get("judge") is not None:
        add("/judge", views.sight.features, references.sight.features)
    if panel.get("clip_336") is not None and n:
        value = gaussian_mmd(views.features("clip_336")[drawn], references.features("clip_336"))
        sets["cmmd@1"] = SetFigure(value=value, n=n, m=m)
    return sets
