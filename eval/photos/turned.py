"""Measures recognition of photographs in slices: by pose, size of the face, and direction of the light.

    python -m eval.photos.turned photos=FOLDER [recognizers='["dlib"]'] [people=300] [per_person=6] [out=DIR]

FOLDER has one folder of photos per person. The most frontal photo of each person is the gallery, and all others are
probes. Pose and light are those of the 3D fit to dense landmarks (extra `photos`), which does not know identities.
Only figures are written, nothing of the photos.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from eval.arguments import REPORT
from eval.photos.people import Photo, choose_photos, read_photos
from eval.photos.recognition import RecognitionConfig, embed, scores_of, ways
from eval.reports.report import Cell, Report, write_json
from eval.slices import PITCH_EDGES, SIZE_EDGES, TOO_FEW, YAW_EDGES, Sliced, bins, light_side, sliced, to_json
from faceclip.errors import EmptyDatasetError
from faceclip.face3d.mesh_fitter import MeshFitter
from faceclip.settings import run, setting
from faceclip.towers.dlib import DlibFaceEncoder
from faceclip.towers.pretrained import load_tower
from faceclip.training.checkpoints import make_folder

FALSE_RATE = 1e-3


@dataclass(kw_only=True)
class TurnedConfig(RecognitionConfig):
    """Settings of the command; it draws more photos per person than `eval.photos.recognition`."""

    recognizers: list[str] = setting(factory=lambda: ["dlib"], help="towers, by name or place")
    people: int = setting(300, "people drawn from it", least=2)
    per_person: int = setting(6, "largest number of photos per person", least=2)
    out: Path | None = setting(None, "folder that receives results.json and report.html")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Results of P probes.

    rows: their numbers among the photos. person: theirs. score: of the gallery photo of their person. first: 1 if that
    score is the highest, else 0. accepted: 1 if it is above the threshold that one of a thousand strangers passes, else
    0; NaN if fewer than a thousand strangers were compared.
    """

    rows: NDArray[np.int64]
    person: NDArray[np.int64]
    score: NDArray[np.float64]
    first: NDArray[np.float64]
    accepted: NDArray[np.float64]


def gallery_rows(people: NDArray[np.integer], yaw: NDArray[np.floating]) -> NDArray[np.int64]:
    """Returns the row of the most frontal photo of each person who has at least two photos.

    people (N,). yaw (N,): degrees; photos of unknown yaw (NaN) are chosen last. Raises EmptyDatasetError if fewer than
    two people have two photos.
    """
    turned = np.abs(np.nan_to_num(yaw, nan=180.0))
    rows = [np.flatnonzero(people == person) for person in np.unique(people)]
    found = [own[turned[own].argmin()] for own in rows if len(own) > 1]
    if len(found) < 2:
        raise EmptyDatasetError("photos: slices need two people with two photos whose faces are found")
    return np.array(found)


def ask(scores: NDArray[np.floating], people: NDArray[np.integer], gallery: NDArray[np.int64]) -> Asked:
    """Compares every other photo of the gallery's people with the gallery; a tie with a stranger is a miss.

    scores (N, N), people (N,), gallery (G,): row numbers.
    """
    probes = np.setdiff1d(np.flatnonzero(np.isin(people, people[gallery])), gallery)
    table = np.asarray(scores, np.float64)[np.ix_(probes, gallery)]
    own = people[probes][:, None] == people[gallery][None]
    right, wrong = np.where(own, table, -np.inf).max(axis=1), np.where(own, -np.inf, table)
    strangers = wrong[~own]
    enough = len(strangers) * FALSE_RATE >= 1
    accepted = (right > np.quantile(strangers, 1 - FALSE_RATE)).astype(np.float64)
    return Asked(
        rows=probes,
        person=np.asarray(people, np.int64)[probes],
        score=right,
        first=(right > wrong.max(axis=1)).astype(np.float64),
        accepted=accepted if enough else np.full(len(right), np.nan),
    )


def labels_of(photos: list[Photo], fitter: MeshFitter) -> tuple[dict[str, NDArray[np.str_]], NDArray[np.floating]]:
    """Returns the label of each photo (N,) by kind of slice, and the yaw (N,) in degrees, NaN if the fit is not
    usable."""
    fits = fitter.measure([p.image for p in photos], np.stack([p.face.landmarks for p in photos if p.face is not None]))
    pose = np.where(fits.usable[:, None], fits.fit.pose.numpy(), np.nan)
    share = np.array([(p.face.box[2] - p.face.box[0]) / p.image.shape[1] for p in photos if p.face is not None])
    light = np.where(fits.usable, light_side(fits.fit.light.numpy()), "unknown")
    labels = {
        "yaw": bins(pose[:, 0], YAW_EDGES, "°"),
        "pitch": bins(pose[:, 1], PITCH_EDGES, "°"),
        "face width, share of the picture": bins(share, SIZE_EDGES),
        "light from": light,
    }
    return labels, pose[:, 0]


def slice_figures(asked: Asked, labels: dict[str, NDArray[np.str_]]) -> dict[str, dict[str, Sliced]]:
    """Returns the sliced figures, by figure and kind of slice. labels: as `labels_of` returns them."""
    figures = {
        "rank-1": asked.first,
        f"true accepts at {FALSE_RATE:g} false": asked.accepted,
        "likeness to the person": asked.score,
    }
    return {
        name: {kind: sliced(values, asked.person, of[asked.rows]) for kind, of in labels.items()}
        for name, values in figures.items()
    }


def measure(config: TurnedConfig) -> None:
    """Measures with one thread, prints the figures, and writes the files that `config` names."""
    torch.set_num_threads(1)
    if config.out is not None:
        make_folder(config.out, "out=", REPORT)
    fitter = MeshFitter()
    encoders = {name: load_tower(name, "face") for name in config.recognizers}
    photos = list(read_photos(choose_photos(config.photos, config.people, config.per_person, config.seed)))
    seen = [photo for photo in photos if photo.face is not None]
    people = np.array([photo.person for photo in seen])
    if len(np.unique(people)) < 2:
        raise EmptyDatasetError(f"photos={config.photos}: the detector finds faces of fewer than two people")
    labels, yaw = labels_of(seen, fitter)
    gallery = gallery_rows(people, yaw)
    found: dict[str, dict[str, dict[str, Sliced]]] = {}
    for name, encoder in encoders.items():
        for way, (crop, network) in ways(name, encoder).items():
            vectors, _ = embed(seen, crop, network)
            scores = scores_of(vectors, euclidean=isinstance(encoder, DlibFaceEncoder))
            found[way] = slice_figures(ask(scores, people, gallery), labels)
    data = {
        "photos": len(photos),
        "without a face": len(photos) - len(seen),
        "people": len(gallery),
        "pose not known": int(np.isnan(yaw).sum()),
        "seed": config.seed,
    }
    for way, figures in found.items():
        for figure, kinds in figures.items():
            for kind, part in kinds.items():
                print(f"{way}: {figure} by {kind}: {_line(part)}")
    if config.out is not None:
        content = {way: {name: to_json(kinds) for name, kinds in figures.items()} for way, figures in found.items()}
        write_json(config.out / "results.json", {"data": data, "slices": content})
        print(f"report: {_report(data, found).write(config.out / 'report.html')}")


def _line(part: Sliced) -> str:
    groups = [f"{item.label} ({item.count}) {item.estimate or TOO_FEW}" for item in part.slices]
    gap = [f"largest gap {part.gap.high} − {part.gap.low}: {part.gap.difference}"] if part.gap else []
    return "; ".join(groups + gap)


def _report(data: dict[str, int], found: dict[str, dict[str, dict[str, Sliced]]]) -> Report:
    report = Report("Recognition by slices", f"{data['people']:,} people, {data['photos']:,} photos.")
    report.text(
        f"The most frontal photo of each person is the gallery. {data['without a face']:,} photos without a face are "
        f"left out; the pose of {data['pose not known']:,} is not known. Intervals are 95 % over persons; the groups "
        "of a gap were picked as its extremes."
    )
    for way, figures in found.items():
        report.section(way)
        for figure, kinds in figures.items():
            rows: list[list[Cell]] = []
            for kind, part in kinds.items():
                for item in part.slices:
                    rows.append([kind, item.label, item.count, item.people, item.estimate or TOO_FEW])
                if part.gap:
                    rows.append([kind, f"{part.gap.high} − {part.gap.low}", None, None, part.gap.difference])
            report.table(["slice", "group", "photos", "people", figure], rows, caption=figure)
    return report


main = partial(run, measure, TurnedConfig)

if __name__ == "__main__":
    sys.exit(main())
