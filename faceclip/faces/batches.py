"""Aligned faces of many pictures: where the labels say, or where the detector finds them."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from faceclip.errors import NoFaceError
from faceclip.faces.align import encoder_crop
from faceclip.faces.detect import MTCNNDetector, prepare_face
from faceclip.faces.looks import Face, FaceDetector, detect_with_retries
from faceclip.storage.shards import ShardedArray


@dataclass(frozen=True, kw_only=True)
class FacePoints:
    """Five points per picture (N, 5, 2), NaN where no face was found, and which were found (N,). widths: px of the
    detector's boxes (N,), NaN where none was found; None of faces that were not looked for."""

    landmarks: NDArray[np.float32]
    found: NDArray[np.bool_]
    widths: NDArray[np.float32] | None = None


def labelled_faces(landmarks: NDArray[np.float32]) -> FacePoints:
    """Returns the faces of renders, known exactly."""
    return FacePoints(landmarks=np.asarray(landmarks), found=np.ones(len(landmarks), dtype=bool))


def detected_faces(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8] | ShardedArray,
    detector: FaceDetector | None = None,
    *,
    label: str = "faces",
) -> FacePoints:
    """Returns the largest face that the detector finds in each picture (H, W, 3)."""
    detector = detector or MTCNNDetector()
    found: list[Face | None] = []
    for row in track(range(len(images)), description=label, transient=True):
        faces = detect_with_retries(np.asarray(images[row]), detector)
        found.append(max(faces, key=lambda face: face.area, default=None))
    return _points_of(found)


def upright_faces(
    photographs: Sequence[NDArray[np.uint8]], detector: FaceDetector | None = None, *, label: str = "faces"
) -> tuple[list[NDArray[np.uint8]], FacePoints]:
    """Returns the largest face of each photograph (H, W, 3), and the photographs turned by the quarters that make it
    stand upright: photographs may be stored on their side or upside down without saying so."""
    detector = detector or MTCNNDetector()
    images = list(photographs)
    found: list[Face | None] = [None] * len(images)
    for row in track(range(len(images)), description=label, transient=True):
        with suppress(NoFaceError):
            prepared = prepare_face(images[row], detector=detector)
            images[row], found[row] = prepared.image, prepared.face
    return images, _points_of(found)


def _points_of(faces: Sequence[Face | None]) -> FacePoints:
    """The five points of one face per picture; None where no face was found."""
    landmarks = np.full((len(faces), 5, 2), np.nan, dtype=np.float32)
    widths = np.full(len(faces), np.nan, dtype=np.float32)
    for row, face in enumerate(faces):
        if face is not None:
            landmarks[row], widths[row] = face.landmarks, face.box[2] - face.box[0]
    return FacePoints(landmarks=landmarks, found=np.array([face is not None for face in faces], bool), widths=widths)


def crop_batches(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8] | ShardedArray,
    faces: FacePoints,
    size: int,
    *,
    batch: int = 64,
) -> Iterable[tuple[NDArray[np.int64], Tensor]]:
    """Returns rows with a face and the crops (B, 3, size, size) in [0, 1] that an encoder sees, batch by batch."""
    rows = np.flatnonzero(faces.found)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        crops = [encoder_crop(np.asarray(images[row]), faces.landmarks[row], size) for row in part]
        yield part, to_unit(np.stack(crops))


def to_unit(images: NDArray[np.uint8]) -> Tensor:
    """Converts uint8 (B, H, W, 3) to (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(images, order="C")).permute(0, 3, 1, 2).float() / 255
