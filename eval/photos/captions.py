"""Measures the captions of photographs: the share of each attribute, agreement with the mirrored photo, and speed.

    python -m eval.photos.captions photos=FOLDER [people=150] [per_person=2] [out=FILE.json] [sheet=FILE.png]

FOLDER has one folder of photos per person. `sheet` shows photos with their attributes, to be checked by eye; no other
file contains anything of the photos.
"""

import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from eval.photos.people import choose_photos, read_photos
from eval.reports.report import show_figures
from faceclip.captions.photographs import LEAST, Described, PhotoDescriber
from faceclip.data.portrait_reader import cut_square, square_around
from faceclip.data.records import PHOTO_VOCABULARIES
from faceclip.errors import EmptyDatasetError
from faceclip.face3d.mesh_fitter import MeshFitter
from faceclip.settings import run, setting
from faceclip.statistics import Estimate, identity_bootstrap

SIDE, REACH = 256, 1.7  # side of a portrait in px, and divided by that of the aligned crop, as the import cuts them
CELL, COLUMNS = 200, 8
MIRRORED = {"left": "right", "right": "left"}
_SWAPPED = [1, 0, 2, 4, 3]  # the five points of a mirrored face


@dataclass(kw_only=True)
class CaptionsConfig:
    """Settings of the command."""

    photos: Path = setting(help="folder with one folder of photos per person")
    people: int = setting(150, "people drawn from it", least=2)
    per_person: int = setting(2, "largest number of photos per person", least=1)
    seed: int = setting(0, "seed of the draw of people")
    least_confidence: float = setting(
        LEAST, "smallest confidence of an attribute that a caption names", least=0.5, below=1
    )
    out: Path | None = setting(None, "file that gets the figures as JSON")
    sheet: Path | None = setting(None, "file of a sheet of the first photo of each person, for the eye")


@dataclass(frozen=True, kw_only=True)
class Read:
    """One measured portrait.

    person: number of the person. picture (SIDE, SIDE, 3). mirrored: attributes read from the mirror image, with left
    and right swapped back. seconds: processor time of fit and description.
    """

    person: int
    picture: NDArray[np.uint8]
    described: Described
    mirrored: dict[str, str]
    seconds: float


def mirror(attributes: dict[str, str]) -> dict[str, str]:
    """Returns the attributes with left and right swapped, as they are in the mirror image."""
    return {name: MIRRORED.get(value, value) for name, value in attributes.items()}


def figures_of(read: list[Read]) -> dict[str, Estimate]:
    """Returns all figures, with intervals over people. Raises EmptyDatasetError if there are no portraits."""
    if not read:
        raise EmptyDatasetError("no photo has a face that the head model fits: give larger or upright faces")
    people = np.array([one.person for one in read])
    figures: dict[str, Estimate] = {}
    for name, values in PHOTO_VOCABULARIES.items():
        for value in values:
            said = np.array([one.described.attributes[name] == value for one in read], np.float64)
            if said.any():
                figures[f"{name}={value}"] = identity_bootstrap(said, people)
    for name in PHOTO_VOCABULARIES:
        both = [(one.described.attributes[name], one.mirrored[name]) for one in read]
        sure = [number for number, pair in enumerate(both) if all(pair)]
        if sure:
            same = np.array([both[number][0] == both[number][1] for number in sure], np.float64)
            figures[f"{name}, same in the mirror where both are said"] = identity_bootstrap(same, people[sure])
    longest = [max((len(c.phrases) for c in one.described.captions), default=0) for one in read]
    phrases = np.array(longest, np.float64)
    figures["phrases of the longest caption, mean"] = identity_bootstrap(phrases, people)
    figures["something is said"] = identity_bootstrap(phrases > 0, people)
    speed = len(read) / sum(one.seconds for one in read)
    figures["portraits/s per core, fit included"] = Estimate(
        value=speed, low=speed, high=speed, count=len(read), identities=len(set(people.tolist()))
    )
    return figures


def read_all(config: CaptionsConfig) -> list[Read]:
    """Cuts portraits of the folder's people as the import does, and describes each and its mirror image.

    Photos without a face, or whose face the head model does not fit, are left out.
    """
    fitter = MeshFitter()
    describer = PhotoDescriber(fitter.landmarker, least=config.least_confidence)
    found = []
    chosen = choose_photos(config.photos, config.people, config.per_person, config.seed)
    for number, photo in enumerate(read_photos(chosen)):
        if photo.face is None:
            continue
        left, top, side = square_around(photo.image, photo.face.landmarks, REACH)
        picture = cut_square(photo.image, (left, top, side), SIDE)
        five = ((photo.face.landmarks - [left, top] + 0.5) * (SIDE / side) - 0.5).astype(np.float32)
        start = time.process_time()
        described = _describe(describer, fitter, picture, five, number)
        seconds = time.process_time() - start
        turned = np.stack([SIDE - 1 - five[:, 0], five[:, 1]], axis=1)[_SWAPPED]
        mirrored = _describe(describer, fitter, picture[:, ::-1].copy(), turned, number)
        if described is not None and mirrored is not None:
            found.append(
                Read(
                    person=photo.person,
                    picture=picture,
                    described=described,
                    mirrored=mirror(mirrored.attributes),
                    seconds=seconds,
                )
            )
    return found


def _describe(
    describer: PhotoDescriber, fitter: MeshFitter, picture: NDArray[np.uint8], five: NDArray[np.float32], seed: int
) -> Described | None:
    """Describes a portrait (SIDE, SIDE, 3) with five points (5, 2) px; None if the head model does not fit."""
    fit = fitter.measure([picture], five[None])
    if not fit.usable[0]:
        return None
    return describer.describe([picture], five[None], fit.fit, [seed], dense=fit.dense)[0]


def draw_sheet(read: list[Read], path: Path) -> None:
    """Draws the first portrait of each person with its attributes and saves the sheet to `path`."""
    first = {one.person: one for one in reversed(read)}
    cells = [_cell(number, first[person]) for number, person in enumerate(sorted(first))]
    blank = np.full_like(cells[0], 255)
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    sheet = np.vstack([np.hstack(row + [blank] * (COLUMNS - len(row))) for row in rows])
    Image.fromarray(sheet).save(path)


def _cell(number: int, one: Read) -> NDArray[np.uint8]:
    lines = [f"#{number}"]
    for word in (f"{name}={value}" for name, value in one.described.attributes.items() if value):
        if len(lines[-1]) + len(word) > 44:
            lines.append("")
        lines[-1] += f" {word}"
    text = np.full((100, CELL + 60, 3), 255, np.uint8)
    for row, line in enumerate(lines[:7]):
        cv2.putText(text, line, (2, 12 + 14 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.34, (0, 0, 0), 1)
    picture = np.full((CELL, CELL + 60, 3), 255, np.uint8)
    picture[:, 30 : CELL + 30] = cv2.resize(one.picture, (CELL, CELL), interpolation=cv2.INTER_AREA)
    return np.vstack([picture, text])


def measure(config: CaptionsConfig) -> None:
    """Measures with one thread, prints the figures, and writes the files that `config` names."""
    torch.set_num_threads(1)
    read = read_all(config)
    show_figures(figures_of(read), config.out)
    if config.sheet is not None:
        draw_sheet(read, config.sheet)


main = partial(run, measure, CaptionsConfig)

if __name__ == "__main__":
    sys.exit(main())
