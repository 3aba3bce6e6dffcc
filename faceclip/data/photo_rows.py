"""Makes the rows of a data set of photos: square portraits with the 3D fit of their faces."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faceclip import weights
from faceclip.captions.captioner import Captioner, caption_of
from faceclip.captions.mentions import link_mentions
from faceclip.captions.photographs import WORN, Described, PhotoDescriber
from faceclip.captions.region_map import add_worn
from faceclip.data.mapping import RawRecord
from faceclip.data.masks import MASKS, Masked
from faceclip.data.placement import PLACEMENT, placement
from faceclip.data.portrait_reader import FoundPortrait
from faceclip.data.records import Caption, caption_to_dict
from faceclip.data.writing import encode_map, encode_photo, encode_png
from faceclip.face3d import dense_points
from faceclip.face3d.fitter import FaceFitter, shading_maps
from faceclip.face3d.frames import FaceFit
from faceclip.face3d.mesh_fitter import MIN_PRESENCE, MeshFitter
from faceclip.faces.dense import SHA256 as LANDMARKS
from faceclip.faces.dense import DenseFaces
from faceclip.storage.hashes import bytes_hash, file_hash, module_hash
from faceclip.storage.loading import load_strictly

MESH = "mesh"


class PhotoRows:
    """Makes rows (`records.features(labelled=False)`), and numbers persons and their pictures in the order of the rows.

    size: side of the portraits in px. describer: makes captions with regions and attributes; if None, the captions are
    those of the rows. both: keep the rows' captions too. kind: file type of the portraits, png, jpeg or webp.
    captioner: its replies are added to the captions.
    """

    def __init__(
        self,
        fitter: FaceFitter | MeshFitter,
        size: int,
        describer: PhotoDescriber | None = None,
        *,
        both: bool = False,
        kind: str = "png",
        captioner: Captioner | None = None,
    ) -> None:
        self.fitter, self.size, self.describer, self.both, self.kind = fitter, size, describer, both, kind
        self.captioner = captioner
        self.people: dict[str, int] = {}
        self.pictures: Counter[str] = Counter()

    def recall(self, persons: Sequence[str], identities: Sequence[int]) -> None:
        """Continues the numbering after the rows that an earlier run wrote."""
        self.people |= dict(zip(persons, identities, strict=True))
        self.pictures.update(persons)

    def make(
        self, portraits: Sequence[tuple[str, RawRecord, FoundPortrait]], masks: Sequence[Masked | None]
    ) -> list[dict[str, Any] | None]:
        """Makes the rows of some portraits, which come with the name of the person and any masks.

        A row is None if the head model cannot fit the face.
        """
        if not portraits:
            return []
        points = np.stack([points_in_square(portrait, self.size) for _, _, portrait in portraits])
        pictures = [portrait.picture for _, _, portrait in portraits]
        fit, fits, dense = fit_portraits(self.fitter, [portrait for _, _, portrait in portraits], self.size)
        described = None
        if self.describer is not None:
            dense = dense or self.describer.landmarker(pictures, points)
            fits = fits & (dense.presence >= MIN_PRESENCE)
            seeds = [portrait.digest % 2**63 for _, _, portrait in portraits]
            described = self.describer.describe(pictures, points, fit, seeds, dense=dense)
        replies = self._replies(pictures, fits)
        maps = shading_maps(fit, self.size)
        many = self.fitter.landmarks_68(fit, self.size)
        rows: list[dict[str, Any] | None] = []
        for row, (person, raw, portrait) in enumerate(portraits):
            if not fits[row]:
                rows.append(None)
                continue
            masked = masks[row]
            given = self._given(raw) if masked is None else list(masked.captions)
            made = [] if described is None else list(described[row].captions)
            if replies and (seen := caption_of(replies[row])):
                made.append(seen)
            fitted = {
                name: getattr(fit, name)[row].flatten().tolist() for name in ("shape", "expression", "camera", "light")
            }
            rows.append(
                fitted
                | {
                    "image": encode_photo(portrait.picture, self.kind),
                    "person": person,
                    "key": raw.key,
                    PLACEMENT: placement(portrait.whole, portrait.square),
                    "identity": self.people.setdefault(person, len(self.people)),
                    "index": self.pictures[person],
                    "pose": dict(zip(("yaw", "pitch", "roll"), fit.pose[row].tolist(), strict=True)),
                    "landmarks_5": points[row].tolist(),
                    "landmarks_68": many[row].tolist(),
                    "shading": encode_map(maps[row]),
                    "captions": [caption_to_dict(caption) for caption in (*made, *given)],
                }
                | ({} if described is None or dense is None else _labels(described[row], given, dense.points[row]))
                | ({"reply": replies[row]} if replies else {})
                | ({} if masked is None else {MASKS: encode_png(masked.planes)})
            )
            self.pictures[person] += 1
        return rows

    def _replies(self, pictures: Sequence[NDArray[np.uint8]], fits: NDArray[np.bool_]) -> list[str]:
        """Returns the captioner's reply to each portrait, "" for those left out; empty without a captioner."""
        if self.captioner is None:
            return []
        asked = iter(self.captioner.ask([picture for picture, held in zip(pictures, fits, strict=True) if held]))
        return [next(asked) if held else "" for held in fits]

    def _given(self, raw: RawRecord) -> list[Caption]:
        """Returns the row's own captions: unchanged without a describer; with one, if they are kept too, linked with
        the regions that they mention."""
        if self.describer is None:
            return [Caption(text=text, kind="free") for text in raw.captions]
        return [link_mentions(text) for text in raw.captions] if self.both else []


def _labels(described: Described, given: Sequence[Caption], points: NDArray[np.float32]) -> dict[str, Any]:
    """Returns the columns of the attributes read from a photo, and of those that its given captions state."""
    worn = frozenset(phrase.region for caption in given for phrase in caption.phrases) & frozenset(WORN)
    return {
        "regions": encode_png(add_worn(described.regions, points, worn)),
        "attributes": described.attributes,
        "confidence": described.confidence,
        "landmarks_478": points[:, :2].tolist(),
    }


def fit_portraits(
    fitter: FaceFitter | MeshFitter, portraits: Sequence[FoundPortrait], size: int
) -> tuple[FaceFit, NDArray[np.bool_], DenseFaces | None]:
    """Fits the square pictures of portraits, `size` px.

    Returns the fits, which of them are usable (N,), and the dense points if the fitter finds any.
    """
    pictures = [portrait.picture for portrait in portraits]
    points = np.stack([points_in_square(portrait, size) for portrait in portraits])
    if isinstance(fitter, MeshFitter):
        found = fitter.measure(pictures, points)
        return found.fit, found.usable, found.dense
    return fitter.fit(pictures, points), np.ones(len(pictures), bool), None


def load_fitter(name: str) -> FaceFitter | MeshFitter:
    """Loads the fitter: "mesh", or a `FaceFitter` by its folder or shipped name.

    Raises CheckpointError for another folder or name, MissingExtraError for "mesh" without the extra `photos`.
    """
    if name == MESH:
        return MeshFitter()
    path = Path(name) if Path(name).is_dir() else weights.path(name)
    return load_strictly(FaceFitter.from_pretrained, FaceFitter, path).eval()


def fitter_hash(fitter: FaceFitter | MeshFitter) -> str:
    """Returns a SHA-256 that changes with the files that determine the fitter's results."""
    if isinstance(fitter, MeshFitter):
        return bytes_hash(LANDMARKS.encode(), file_hash(dense_points.ASSET).encode())
    return module_hash(fitter)


def points_in_square(portrait: FoundPortrait, size: int) -> NDArray[np.float32]:
    """Returns the portrait's landmarks (5, 2) in px of the square picture."""
    left, top, side = portrait.square
    return ((portrait.upright - [left, top] + 0.5) * (size / side) - 0.5).astype(np.float32)
