"""Measures the 3D fit on photographs, and on renders whose true parameters are known.

    python -m eval.photos.fit photos=FOLDER [people=100] [per_person=2] [renders=60] [out=FILE.json]

FOLDER has one folder of photos per person, or with identity=none photos that each show another person. Only figures are
written, nothing of the photos.
"""

import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from eval.photos.figures import area, by_people, pairs
from eval.photos.people import Photo, choose_photos, read_photos, single_photos
from eval.reports.report import show_figures
from faceclip.errors import ConfigError, EmptyDatasetError
from faceclip.face3d.light import sh_basis, shade
from faceclip.face3d.mesh_fitter import MeshFit, MeshFitter, skin_samples
from faceclip.face3d.model import default_head
from faceclip.faces import MTCNNDetector
from faceclip.faces.looks import detect_with_retries
from faceclip.people.framing import framed
from faceclip.people.render import PortraitRenderer
from faceclip.people.sample import sample_identity, sample_scene
from faceclip.settings import run, setting
from faceclip.statistics import Estimate, identity_bootstrap

LIMIT = 0.04  # of the distance between the outer eye corners: the residual of a good fit
NEAR = 4.0  # degrees between the angles of the fit and of the rigid pose
RENDER_SEED, RENDER_SIZE, RENDER_YAW = 77, 256, 45.0
ANGLES = ("yaw", "pitch", "roll")
REGIONS = (
    "on the face",
    "where both maps have a face",
    "over the whole picture",
    "on the face, with the true light",
    "where both maps have a face, with the true light",
)


@dataclass(kw_only=True)
class FitConfig:
    """Settings of the command."""

    photos: Path | None = setting(None, "folder with one folder of photos per person; null: renders only")
    people: int = setting(100, "people drawn from it", least=2)
    per_person: int = setting(2, "largest number of photos per person", least=2)
    identity: Literal["folder", "none"] = setting(
        "folder", "none: each photo in the folder itself shows another person"
    )
    seed: int = setting(0, "seed of the draw of people")
    renders: int = setting(60, "synthetic people that are rendered; 0: none", least=0)
    out: Path | None = setting(None, "file that gets the figures as JSON")

    def __post_init__(self) -> None:
        if self.photos is None and not self.renders:
            raise ConfigError("photos: name a folder, or renders: at least 1 is expected, got 0")


def photo_figures(photos: list[Photo], fitter: MeshFitter) -> dict[str, Estimate]:
    """Fits all photos and returns the figures. Raises EmptyDatasetError if no photo has a face."""
    seen = [photo for photo in photos if photo.face is not None]
    if not seen:
        raise EmptyDatasetError("no photo shows a face that the detector finds: give larger or upright faces")
    everybody = np.array([photo.person for photo in photos])
    found = np.array([photo.face is not None for photo in photos], np.float64)
    start = time.process_time()
    fits = fitter.measure([p.image for p in seen], np.stack([p.face.landmarks for p in seen if p.face is not None]))
    seconds = time.process_time() - start
    who = np.array([photo.person for photo in seen])
    kept = fits.usable
    rows = np.flatnonzero(kept)
    people = who[rows]
    residual = fits.residual.numpy()[rows]
    apart = (fits.fit.pose - fits.rigid_pose).abs().numpy()[rows]
    shape = fits.fit.shape.numpy()[rows]
    shape = shape - shape.mean(axis=0)
    shape /= np.linalg.norm(shape, axis=1, keepdims=True)
    fitted = np.array([_explained(photo.image, fits, row) for row, photo in enumerate(seen)])[rows]
    figures = {
        "face found": identity_bootstrap(found, everybody),
        "of these fitted": identity_bootstrap(kept, who),
        "residual, mean": identity_bootstrap(residual, people),
        "residual, 95th percentile": by_people(lambda r: float(np.quantile(residual[r], 0.95)), people),
        f"residual at most {LIMIT:.0%}": identity_bootstrap(residual <= LIMIT, people),
        "correlation of luminance and shading on skin, median": by_people(
            lambda r: float(np.median(fitted[r, 0])), people
        ),
        "the same by plain least squares of all harmonics, which no light exceeds": by_people(
            lambda r: float(np.median(fitted[r, 1])), people
        ),
    }
    if len(set(people.tolist())) < len(people):
        figures["area under ROC of shape"] = by_people(lambda r: area(*pairs(shape @ shape.T, people, r)), people)
    for column, angle in enumerate(ANGLES):
        near = (apart[:, column] <= NEAR).astype(np.float64)
        figures[f"{angle} within {NEAR:.0f}° of the rigid pose"] = identity_bootstrap(near, people)
    speed = len(seen) / max(seconds, 1e-6)
    figures["faces/s per core"] = Estimate(
        value=speed, low=speed, high=speed, count=len(seen), identities=len(set(who))
    )
    return figures


def _explained(image: NDArray[np.uint8], fits: MeshFit, row: int) -> tuple[float, float]:
    """Returns two correlations with the photo's luminance over the skin of one face.

    The first is that of the fit's shading, the second that of the harmonics that explain the luminance best on the
    fit's normals, which no light exceeds. Both are 0 if fewer than 50 pixels show skin; a constant gives 0, too.
    """
    fit = fits.fit.rows([row])
    luminance, normals, skin = skin_samples(image, fit, fits.dense.points[row])
    if skin.sum() < 50:
        return 0.0, 0.0
    value, basis = luminance[skin].astype(np.float64), sh_basis(normals[skin]).astype(np.float64)
    best = basis @ np.linalg.lstsq(basis, value, rcond=None)[0]
    return _correlation(value, shade(normals[skin], fit.light[0].numpy())[:, 0]), _correlation(value, best)


def _correlation(luminance: NDArray[np.floating], shading: NDArray[np.floating]) -> float:
    """Returns the correlation of two sets of values, and 0 if one of them is constant."""
    if min(shading.std(), luminance.std()) < 1e-6:
        return 0.0
    return float(np.corrcoef(luminance, shading)[0, 1])


def render_figures(count: int, fitter: MeshFitter) -> dict[str, Estimate]:
    """Returns the errors of the fit on renders, one of each of `count` people, by detected landmarks.

    Renders that are turned by more than 45° are left out.
    """
    head, renderer, detector = default_head(), PortraitRenderer(), MTCNNDetector()
    angles, errors, missed, people, shapes = [], [], [], [], []
    for number in range(count):
        identity = sample_identity(RENDER_SEED, number)
        scene = framed(identity, sample_scene(RENDER_SEED, number, 1), "head", head)
        if abs(scene.pose[0]) > RENDER_YAW:
            continue
        portrait = renderer.render(identity, scene, RENDER_SIZE)
        faces = detect_with_retries(portrait.image, detector)
        fits = fitter.measure([portrait.image], faces[0].landmarks[None]) if faces else None
        people.append(number)
        if fits is None or not fits.usable[0]:
            missed.append(1.0)
            angles.append(np.full(3, np.nan))
            errors.append([np.nan] * len(REGIONS))
            continue
        missed.append(0.0)
        angles.append(np.abs(fits.fit.pose[0].numpy() - scene.pose))
        shapes.append(np.corrcoef(fits.fit.shape[0].numpy(), identity.shape)[0, 1])
        lit = replace(fits.fit, light=torch.from_numpy(scene.light)[None])
        drawn, right = (fitter.shading(fit, RENDER_SIZE)[0].permute(1, 2, 0).numpy() for fit in (fits.fit, lit))
        truth = portrait.shading.astype(np.float32) / 255
        face = truth.max(axis=2) > 0
        squares, geometry = np.square(drawn - truth), np.square(right - truth)
        both = face & (drawn.max(axis=2) > 0)
        measured = (squares[face], squares[both], squares, geometry[face], geometry[both])
        errors.append([np.sqrt(values.mean()) for values in measured])
    off, wrong, who = np.stack(angles), np.array(errors), np.array(people)
    none = np.array(missed)
    fitted = none == 0
    figures = {"renders without a fit": identity_bootstrap(none, who)}
    for column, angle in enumerate(ANGLES):
        figures[f"renders, error of {angle} in degrees, mean"] = identity_bootstrap(off[fitted, column], who[fitted])
    figures["renders, correlation of the shape's coefficients with the true ones, mean"] = identity_bootstrap(
        np.array(shapes), who[fitted]
    )
    mean = off[fitted].mean(axis=1)
    figures["renders, error of the three angles in degrees, mean"] = identity_bootstrap(mean, who[fitted])
    for column, where in enumerate(REGIONS):
        error = wrong[fitted, column]
        figures[f"renders, RMSE of the shading map {where}"] = identity_bootstrap(error, who[fitted])
    return figures


def measure(config: FitConfig) -> None:
    """Measures with one thread, prints the figures, and writes the files that `config` names."""
    torch.set_num_threads(1)
    fitter = MeshFitter()
    figures: dict[str, Estimate] = {}
    if config.photos is not None:
        chosen = (
            single_photos(config.photos, config.people, config.seed)
            if config.identity == "none"
            else choose_photos(config.photos, config.people, config.per_person, config.seed)
        )
        figures |= photo_figures(list(read_photos(chosen)), fitter)
    if config.renders:
        figures |= render_figures(config.renders, fitter)
    show_figures(figures, config.out)


main = partial(run, measure, FitConfig)

if __name__ == "__main__":
    sys.exit(main())
