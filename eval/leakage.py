"""Measures whether changeable attributes reveal the person. This checks the data, not a model.

python -m eval.leakage --data DIR --out runs/leakage

If hair, clothes, light or background identified people, recognition figures on the data would be worth little.
Two questions: do two portraits of one person agree in an attribute more often than portraits of two people, and can a
nearest-neighbor search find the person in pictures from which the face was cut out?
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.arguments import REPORT
from eval.reports.report import Report, write_json
from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.data.records import REGIONS
from faceclip.errors import EmptyDatasetError
from faceclip.settings import run, setting
from faceclip.statistics import Estimate, first_right_rank, identity_bootstrap, recall_at
from faceclip.training.checkpoints import make_folder

CHANGEABLE = ("background", "hair", "glasses", "beard", "hat", "clothes")
"""Regions that say nothing of who it is; everything else is cut out for the second question."""

GRID = 16
GREY = 127
ROWS = 512  # portraits compared with all others at a time


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Share of equal values among pairs of one person, among pairs of two people, and their difference."""

    same: Estimate
    different: float
    excess: Estimate


def attribute_agreement(
    values: NDArray[np.integer], identity: NDArray[np.integer], *, skip: NDArray[np.bool_] | None = None
) -> Agreement:
    """Returns the agreement of an attribute (N,) within people, against all pairs of two people.

    `skip`: portraits left out, such as the frontal ones, which have no glasses or hat by design. Independent
    attributes have an excess of 0.
    """
    kept = np.ones(len(values), dtype=bool) if skip is None else ~skip
    values, identity = np.asarray(values)[kept], np.asarray(identity)[kept]
    classes, value = np.unique(values, return_inverse=True)
    people, person = np.unique(identity, return_inverse=True)
    table = np.zeros((len(people), len(classes)))
    np.add.at(table, (person, value), 1)
    sizes = table.sum(axis=1)
    usable = sizes > 1
    within = (table * (table - 1)).sum(axis=1)[usable] / (sizes * (sizes - 1))[usable]
    total = table.sum(axis=0)
    pairs = sizes.sum() ** 2 - (sizes**2).sum()
    different = float((total**2 - (table**2).sum(axis=0)).sum() / pairs)
    return Agreement(
        same=identity_bootstrap(within, people[usable]),
        different=different,
        excess=identity_bootstrap(within - different, people[usable]),
    )


def cut(images: NDArray[np.uint8], regions: NDArray[np.uint8], names: tuple[str, ...]) -> NDArray[np.uint8]:
    """Returns pictures (N, S, S, 3) in which only the named regions are left, grey elsewhere."""
    keep = np.isin(regions, [REGIONS.index(name) for name in names])
    return np.where(keep[..., None], images, np.uint8(GREY))


def thumbnails(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns pictures as GRID × GRID area averages (N, 3·GRID²), centered over the set and of unit length."""
    small = np.stack([cv2.resize(image, (GRID, GRID), interpolation=cv2.INTER_AREA) for image in images])
    flat = small.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=0)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def nearest_person(features: NDArray[np.float32], identity: NDArray[np.integer]) -> tuple[Estimate, float]:
    """Returns the rank-1 of finding another portrait of the person by cosine, and the value of chance."""
    ranks, others = [], []
    for start in range(0, len(identity), ROWS):
        rows = np.arange(start, min(start + ROWS, len(identity)))
        own = rows[:, None] == np.arange(len(identity))
        same = (identity[rows][:, None] == identity) & ~own
        ranks.append(first_right_rank(features[rows] @ features.T, same, own))
        others.append(same.sum(axis=1))
    chance = float(np.concatenate(others).mean() / (len(identity) - 1))
    return identity_bootstrap(recall_at(np.concatenate(ranks), 1), identity), chance


def measure(arrays: FaceArrays) -> tuple[Mapping[str, Agreement], Mapping[str, tuple[Estimate, float]]]:
    """Answers both questions. Raises EmptyDatasetError without two people and several portraits of one."""
    identity = np.asarray(arrays.identity)
    counts = np.unique(identity, return_counts=True)[1]
    if len(counts) < 2 or counts.max() < 2:
        raise EmptyDatasetError("leakage needs two people and several portraits of one: give another --split or --data")
    frontal = np.asarray(arrays.index) == 0
    agreements = {
        name: attribute_agreement(values, identity, skip=frontal) for name, values in arrays.attributes.items()
    }
    images, regions = np.asarray(arrays.images), np.asarray(arrays.regions)
    face = tuple(name for name in REGIONS if name not in CHANGEABLE)
    searches = {
        "only what a person can change": nearest_person(thumbnails(cut(images, regions, CHANGEABLE)), identity),
        "only face, ears and neck": nearest_person(thumbnails(cut(images, regions, face)), identity),
        "whole portrait": nearest_person(thumbnails(images), identity),
    }
    return agreements, searches


def write_report(
    out: Path,
    arrays: FaceArrays,
    agreements: Mapping[str, Agreement],
    searches: Mapping[str, tuple[Estimate, float]],
) -> Path:
    """Writes results.json and report.html, of which the path is returned. Raises DataError when the disk is full."""
    report = Report("Leakage of identity", f"{len(np.unique(arrays.identity))} identities, {len(arrays):,} portraits.")
    report.section("Attributes")
    report.text(
        "Share of pairs with the same value. An excess of 0 means that the attribute is independent of the person. "
        "Frontal portraits are left out: they have no glasses and hat by design."
    )
    report.table(
        ["attribute", "one person", "two people", "excess"],
        [[name, value.same, value.different, value.excess] for name, value in agreements.items()],
    )
    report.section("Pictures without the face")
    report.text(
        f"Rank-1 of finding another portrait of the same person by nearest {GRID} × {GRID} px thumbnails in which only "
        "some regions are left. Cut-out faces leave their outline, so pose and head shape still show."
    )
    report.table(
        ["what is left", "rank-1", "chance"], [[name, value, chance] for name, (value, chance) in searches.items()]
    )
    content = {
        "agreement": {
            name: {"one person": v.same, "two people": v.different, "excess": v.excess}
            for name, v in agreements.items()
        },
        "nearest neighbor": {name: {"rank-1": value, "chance": chance} for name, (value, chance) in searches.items()},
    }
    write_json(out / "results.json", content)
    return report.write(out / "report.html")


@dataclass(kw_only=True)
class LeakageSettings:
    """The data, and the folder of the report."""

    data: Path = setting(help="data set folder")
    out: Path = setting(help="receives results.json and report.html")
    split: str = setting("test", "whose portraits")


def search(settings: LeakageSettings) -> None:
    """Measures, writes the report and prints the figures."""
    make_folder(settings.out, "--out ", REPORT)
    arrays = load_arrays(settings.data, settings.split, size=64)
    agreements, searches = measure(arrays)
    path = write_report(settings.out, arrays, agreements, searches)
    for name, (value, chance) in searches.items():
        print(f"{name:<32} rank-1 {value}  chance {chance:.3f}")
    print(f"report: {path}")


main = partial(run, search, LeakageSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())
