"""Measures whether pictures are copies, by the nearest training portrait of each, and shows these on a sheet.

    python -m eval.arms.neighbors --images DIR --data DIR --out DIR [--count 100] [--size 128]

The distance is between features of the judge, which sees the whole picture. Held-out portraits are measured in the same
way: pictures that are nearer to training portraits than these would be copies.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eval.arguments import load_model
from eval.judges.networks import Judge
from eval.judges.panel import look
from eval.reports.report import show_figures
from eval.reports.sheet import save_sheet
from faceclip import weights
from faceclip.data.arrays import load_arrays
from faceclip.errors import DataError
from faceclip.settings import run, setting
from faceclip.statistics import Estimate, identity_bootstrap
from faceclip.training.checkpoints import make_folder


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The nearest training portrait of each of N pictures: its row (N,) and distance (N,), 1 − cosine of features."""

    row: NDArray[np.int64]
    distance: NDArray[np.float64]


def nearest(pictures: NDArray[np.floating], portraits: NDArray[np.floating]) -> Nearest:
    """Finds the portrait nearest to each picture by the cosine of features, from which the portraits' mean is
    subtracted.

    pictures (N, D), portraits (M, D).
    """
    mean = portraits.mean(axis=0)

    def unit(features: NDArray[np.floating]) -> NDArray[np.float64]:
        moved = np.asarray(features, np.float64) - mean
        return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)

    scores = unit(pictures) @ unit(portraits).T
    row = scores.argmax(axis=1)
    return Nearest(row=row, distance=1 - scores[np.arange(len(row)), row])


def read_pictures(folder: Path, count: int, size: int) -> NDArray[np.uint8]:
    """Reads the first `count` PNG pictures of a folder by name, scaled to (N, size, size, 3), uint8.

    Raises DataError if there are fewer than two, or if one cannot be read.
    """
    found = []
    for path in sorted(folder.glob("*.png"))[:count]:
        try:
            with Image.open(path) as image:
                found.append(cv2.resize(np.array(image.convert("RGB")), (size, size), interpolation=cv2.INTER_AREA))
        except (OSError, SyntaxError) as error:
            raise DataError(f"--images: {path} is not a readable picture ({error})") from error
    if len(found) < 2:
        raise DataError(f"--images {folder}: {len(found)} PNG pictures, at least two are needed")
    return np.stack(found)


def measure(
    pictures: NDArray[np.uint8], judge: Judge, data: Path, *, size: int
) -> tuple[Nearest, NDArray[np.uint8], dict[str, Estimate]]:
    """Finds the training portraits nearest to pictures (N, S, S, 3), and compares their distances with those of real
    portraits of test people.

    Returns the nearest rows and distances, these portraits (N, S, S, 3), and figures: the mean distance, and the share
    of distances below the 5 % quantile of real portraits, which reveals single copies.
    """
    training, test = load_arrays(data, "train", size=size), load_arrays(data, "test", size=size)
    features = look(judge, training.images).features
    found = nearest(look(judge, pictures).features, features)
    rows = np.linspace(0, len(test) - 1, min(len(pictures), len(test))).astype(int)
    real = nearest(look(judge, np.asarray(test.images)[rows]).features, features)
    pairs = {"pictures": (found.distance, np.arange(len(pictures))), "real": (real.distance, test.identity[rows])}
    figures = {}
    for name, (distance, people) in pairs.items():
        figures[f"distance to the nearest training portrait, {name}"] = identity_bootstrap(distance, people)
        low = np.quantile(real.distance, 0.05)
        near = (distance < low).astype(np.float64)
        figures[f"nearer than 95 % of real portraits, {name}"] = identity_bootstrap(near, people)
    return found, np.asarray(training.images)[found.row], figures


@dataclass(kw_only=True)
class NeighborSettings:
    """Settings of the command."""

    images: Path = setting(help="folder of generated PNG pictures")
    data: Path = setting(help="data set that the generator was trained on")
    out: Path = setting(help="folder of neighbors.png and neighbors.json")
    count: int = setting(100, "largest number of pictures", least=2)
    size: int = setting(128, "side in px at which pictures are compared")
    judge: Path | None = setting(None, "judge to use in place of the shipped one")


def compare(settings: NeighborSettings) -> None:
    """Measures the distances, writes the sheet and the figures, and prints the figures."""
    judge = load_model(Judge, settings.judge or weights.path("tiny/judge", package="eval"), "--judge")
    pictures = read_pictures(settings.images, settings.count, settings.size)
    found, portraits, figures = measure(pictures, judge, settings.data, size=settings.size)
    make_folder(settings.out, "--out ", ("neighbors.json", "neighbors.png"))
    order = np.argsort(found.distance)  # the likeliest copies come first
    columns = 10
    grid: list[list[NDArray[np.uint8] | None]] = []
    for start in range(0, len(order), columns):
        rows = order[start : start + columns]
        blank: list[NDArray[np.uint8] | None] = [None] * (columns - len(rows))
        grid += [[*pictures[rows], *blank], [*portraits[rows], *blank]]
    labels = ["pictures", "nearest training portraits"] * (len(grid) // 2)
    save_sheet(settings.out / "neighbors.png", grid, [""] * columns, row_labels=labels)
    show_figures(figures, settings.out / "neighbors.json")


main = partial(run, compare, NeighborSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())
