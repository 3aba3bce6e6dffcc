"""Reads photographs of people, one folder per person, and finds the face in the middle of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from faceclip.errors import DataError, EmptyDatasetError, FaceError, NoFaceError
from faceclip.faces import Face, MTCNNDetector, load_image, prepare_face

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One photograph.

    person: number of the person. name: PERSON/FILE. image (H, W, 3): uint8 RGB. face: None if none was found, and then
    `fault` says why.
    """

    person: int
    name: str
    image: NDArray[np.uint8]
    face: Face | None
    fault: str = ""


def choose_photos(folder: Path, people: int, photos: int, seed: int) -> list[tuple[int, Path]]:
    """Draws `people` people by `seed`, and returns number of the person and file of their first `photos` photos by
    name.

    Raises DataError if the folder is missing, and EmptyDatasetError if no person has two photos.
    """
    if not folder.is_dir():
        raise DataError(f"photos={folder} is no folder: give one with a folder of photos for each person")
    found = {
        place.name: files
        for place in sorted(folder.iterdir())
        if place.is_dir()
        and len(files := sorted(file for file in place.iterdir() if file.suffix.lower() in ENDINGS)) > 1
    }
    if not found:
        raise EmptyDatasetError(f"photos={folder} has no folder with two photos or more: one folder per person is read")
    names = sorted(found)
    drawn = np.random.default_rng(seed).permutation(len(names))[:people]
    return [(number, file) for number, row in enumerate(drawn) for file in found[names[row]][:photos]]


def single_photos(folder: Path, people: int, seed: int) -> list[tuple[int, Path]]:
    """Draws at most `people` photos that lie in the folder itself by `seed`; each counts as another person.

    Returns pairs of number and file. Raises DataError if the folder is missing, and EmptyDatasetError if it has no
    photos.
    """
    if not folder.is_dir():
        raise DataError(f"photos={folder} is no folder: give one with photos in it")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)
    if not files:
        raise EmptyDatasetError(
            f"photos={folder} has no photos in it: with identity=none they lie in the folder itself"
        )
    drawn = np.random.default_rng(seed).permutation(len(files))[:people]
    return [(number, files[row]) for number, row in enumerate(drawn)]


def read_photos(chosen: list[tuple[int, Path]]) -> Iterator[Photo]:
    """Reads the photos one after another, finds the face in the middle of each, and turns the photo upright.

    A photo that cannot be read, or has no face, is yielded with `face=None`.
    """
    detector = MTCNNDetector()
    for person, file in track(chosen, description="photos", transient=True):
        name = f"{file.parent.name}/{file.name}"
        try:
            image = load_image(file, name=name)
        except FaceError as error:
            yield Photo(person=person, name=name, image=np.zeros((1, 1, 3), np.uint8), face=None, fault=str(error))
            continue
        try:
            prepared = prepare_face(image, policy="center", detector=detector, name=name)
        except NoFaceError:
            yield Photo(person=person, name=name, image=image, face=None, fault=_cause(image))
            continue
        yield Photo(person=person, name=name, image=prepared.image, face=prepared.face)


def _cause(image: NDArray[np.uint8]) -> str:
    """Guesses from the picture (H, W, 3) why the detector found no face."""
    grey = image.astype(np.float32).mean(axis=2)
    if min(image.shape[:2]) < 40:
        return "too small"
    if grey.mean() < 40:
        return "dark"
    if grey.std() < 20:
        return "without contrast"
    return "turned, covered or other"
