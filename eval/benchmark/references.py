"""Photos of people as references: folders of photographs, data sets of renders, renders made for the purpose."""

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faceclip.data.arrays import load_arrays
from faceclip.errors import DataError, EmptyDatasetError, NoFaceError
from faceclip.faces import load_image
from faceclip.faces.batches import upright_faces
from faceclip.people.sample import sample_identity
from faceclip.storage.hashes import bytes_hash
from faceclip.storage.regular import read_regular

SKIN = (0.45, 0.7)  # luminance of a rendered skin between dark, medium and light
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo of a person with the five points (5, 2) px of the face.

    key: unique and fit for file names. width: of the face's box in px. pose, light: known of renders only. shows: what
    is known to be seen, by attribute. groups: labels of the person, as given by the user or known of renders.
    """

    key: str
    person: str
    image: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    width: float
    pose: NDArray[np.float32] | None = None  # (3,) degrees
    light: NDArray[np.float32] | None = None  # (27,)
    shows: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class References:
    """All photos, the rows of those that methods get as references, and what was left out for want of a face."""

    photos: tuple[Photo, ...]
    chosen: tuple[int, ...]
    without_face: tuple[str, ...]
    rendered: bool

    @property
    def content_hash(self) -> str:
        """SHA-256 of keys, pictures and choice."""
        parts = [part for photo in self.photos for part in (photo.key.encode(), np.ascontiguousarray(photo.image))]
        return bytes_hash(*parts, repr(self.chosen).encode())

    def others(self, row: int) -> list[int]:
        """Returns rows of the other photos of the same person."""
        person = self.photos[row].person
        return [other for other, photo in enumerate(self.photos) if photo.person == person and other != row]

    @cached_property
    def held(self) -> dict[str, int]:
        """Person → row of the photo that is neither reference nor compared with: it stands for a picture in the rows of
        real photos. Persons with a reference and two more photos have one."""
        found: dict[str, int] = {}
        for row in self.chosen:
            others = self.others(row)
            if len(others) > 1:
                found[self.photos[row].person] = others[-1]
        return found


def photo_files(folder: Path, *, by_person: bool, people: int | None = None) -> list[tuple[str, Path]]:
    """Returns (person, file) of DIR/PERSON/FILE, or of DIR/FILE, where every file is a person of its own, of at most
    `people`.

    Raises DataError for a folder that is missing or has none, and for persons whose names cannot be told apart.
    """
    if not folder.is_dir():
        raise DataError(f"references.folder: {folder} is not a folder; name the folder of the photos")
    pattern = "*/*" if by_person else "*"
    files = [path for path in sorted(folder.glob(pattern)) if path.suffix.lower() in ENDINGS and path.is_file()]
    found = [(path.parent.name if by_person else path.stem, path) for path in files]
    if not found:
        layout = "PERSON/PHOTO.jpg" if by_person else "PHOTO.jpg"
        raise EmptyDatasetError(f"references.folder: {folder} has no photo in the layout {layout} (references.kind)")
    names: dict[str, str] = {}
    for person, path in found:
        other = names.setdefault(safe(person).casefold(), person if by_person else path.name)
        if other != (person if by_person else path.name):
            raise DataError(
                f"{folder}: two people of one name, {other} and {path.name if not by_person else person}: rename one"
            )
    kept = set(list(dict.fromkeys(person for person, _ in found))[:people])
    return [(person, path) for person, path in found if person in kept]


def read_photos(
    files: Sequence[tuple[str, Path]], *, each: int, groups: Mapping[str, Mapping[str, str]] | None = None
) -> References:
    """Reads references of photographs with at most `each` photos of a person: the first with a face of each person is
    the reference, the others are the person's other photos.

    Raises DataError for unreadable files, NoFaceError where no photo has a face.
    """
    by_person: dict[str, list[Path]] = defaultdict(list)
    for person, path in files:
        by_person[person].append(path)
    taken = [(person, path) for person, paths in by_person.items() for path in paths[:each]]
    images, faces = upright_faces([load_image(path) for _, path in taken], label="faces of the references")
    photos: list[Photo] = []
    chosen: list[int] = []
    without: list[str] = []
    seen: set[str] = set()
    for row, (person, path) in enumerate(taken):
        if not faces.found[row] or faces.widths is None:
            without.append(path.name)
            continue
        if person not in seen:
            chosen.append(len(photos))
            seen.add(person)
        photos.append(
            Photo(
                key=safe(path.stem if path.stem.startswith(person) else f"{person}_{path.stem}"),
                person=person,
                image=images[row],
                landmarks=faces.landmarks[row],
                width=float(faces.widths[row]),
                groups=dict((groups or {}).get(person, {})),
            )
        )
    if not photos:
        raise NoFaceError(f"references: none of {len(taken)} photos shows a face that the detector finds; give others")
    _check_keys(photos)
    return References(photos=tuple(photos), chosen=tuple(chosen), without_face=tuple(without), rendered=False)


def read_renders(folder: Path, split: str, *, people: int | None, each: int, size: int | None) -> References:
    """Reads references of a data set of renders: each person's first portrait that is not the frontal one, cut by its
    labels; the frontal portrait and the next ones are the person's other photos."""
    arrays = load_arrays(folder, split, size=size)
    identity = np.asarray(arrays.identity)
    photos: list[Photo] = []
    chosen: list[int] = []
    seen_values = arrays.seen_values
    groups = render_groups(folder, [int(person) for person in np.unique(identity)[:people]])
    for person in np.unique(identity)[:people]:
        rows = np.flatnonzero(identity == person)
        order = [*rows[np.asarray(arrays.index)[rows] != 0], *rows[np.asarray(arrays.index)[rows] == 0]][:each]
        chosen.append(len(photos))
        for row in order:
            points = np.array(arrays.landmarks_5[row], np.float32)
            outline = np.asarray(arrays.landmarks_68[row])
            photos.append(
                Photo(
                    key=f"{person:06d}_{int(arrays.index[row]):03d}",
                    person=f"{person:06d}",
                    image=np.array(arrays.images[row]),
                    landmarks=points,
                    width=float(np.ptp(outline[:, 0])),
                    pose=np.array(arrays.pose[row]),
                    light=np.array(arrays.light[row]),
                    shows={name: str(values[row]) for name, values in seen_values.items() if values[row]},
                    groups=groups.get(int(person), {}),
                )
            )
    return References(photos=tuple(photos), chosen=tuple(chosen), without_face=(), rendered=True)


def render_groups(folder: Path, people: Sequence[int]) -> dict[int, dict[str, str]]:
    """Returns skin tone and age lines of rendered persons, by the data set's seed; empty for other data sets."""
    facts = folder / "dataset.json"
    seed = json.loads(facts.read_bytes()).get("seed") if facts.is_file() else None
    if not isinstance(seed, int):
        return {}
    found = {}
    for person in people:
        identity = sample_identity(seed, person)
        luminance = float(np.asarray(identity.skin_tone) @ (0.2126, 0.7152, 0.0722))
        tone = "dark" if luminance < SKIN[0] else "medium" if luminance < SKIN[1] else "light"
        lines = "none" if identity.age_lines == 0 else "some" if identity.age_lines < 0.5 else "many"
        found[person] = {"skin tone": tone, "age lines": lines}
    return found


def read_groups(path: Path) -> dict[str, dict[str, str]]:
    """Reads person → labels from a CSV file whose first column is `person`. Raises DataError naming line and column."""
    try:
        text = read_regular(path).decode("utf-8")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"references.groups: {path} cannot be read as CSV ({error})") from error
    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        person = row.pop("person", None)
        if not person or None in row or None in row.values():
            raise DataError(f"{path}, line {number}: every line needs a person and a value of every column")
        if person in found:
            raise DataError(f"{path}, line {number}: two people of one name, {person}: keep one line")
        found[person] = {str(name): str(value) for name, value in row.items()}
    return found


def safe(text: str) -> str:
    """Returns a text as part of a file name: letters, digits, dots, dashes and underscores."""
    return _UNSAFE.sub("_", text).strip("._")[:80] or "unnamed"


def _check_keys(photos: Sequence[Photo]) -> None:
    keys: dict[str, str] = {}
    for photo in photos:
        if photo.key.casefold() in keys:
            raise DataError(
                f"references: {photo.person} and {keys[photo.key.casefold()]} have photos {photo.key}: rename one"
            )
        keys[photo.key.casefold()] = photo.person
