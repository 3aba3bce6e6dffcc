"""The reference side of a call: faces from photos, and shading maps from faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from faceclip.errors import BadLandmarksError, ConfigError
from faceclip.faces import Face, FaceDetector, PreparedFace, align_face, load_image, prepare_face
from faceclip.faces.align import MIN_CROP_SIDE, check_landmarks, crop_side
from faceclip.faces.images import ImageSource, describe_source

Images = ImageSource | Sequence[ImageSource | None] | None


@dataclass(frozen=True, kw_only=True)
class References:
    """One entry per image to generate.

    faces: the face used, or None. crops: (N,3,448,448) in [0,1], or None where no entry has a face. has_face: (N,).
    """

    faces: list[PreparedFace | None]
    crops: Tensor | None
    has_face: Tensor

    def __len__(self) -> int:
        return len(self.faces)


def prepare_references(
    images: Images,
    *,
    count: int | None = None,
    landmarks: Sequence[ArrayLike | None] | ArrayLike | None = None,
    policy: str = "largest",
    detector: FaceDetector | None = None,
    what: str = "image",
) -> References:
    """Find and align the face of each image.

    Args:
        images: one image (path, PIL image, array (H,W,3)) or a list. An entry None has no person.
        count: number of images that are needed. One image serves all of them.
        landmarks: (5,2) px per image in the order of `faceclip.faces`, in place of a detection.
        policy: which face to use where there are several.
        detector: finds the faces.
        what: the caller's name for the argument `images`, used in messages.

    Raises:
        ConfigError: a number of images or landmarks that does not fit.
        FaceError: an image that gives no face. The message names the argument and the image's position.
    """
    sources = as_list(images, what)
    if count is not None and len(sources) not in (1, count):
        raise ConfigError(f"{what}: {len(sources)} images do not fit {count} prompts: give 1 or {count}")
    points = _landmark_list(landmarks, len(sources))
    faces = [
        None if source is None else _prepare(source, given, f"{what} {index}", policy, detector)
        for index, (source, given) in enumerate(zip(sources, points, strict=True))
    ]
    if count is not None and len(faces) == 1:
        faces = faces * count
    has_face = torch.tensor([face is not None for face in faces])
    crops = None
    if bool(has_face.any()):
        size = next(face.crop.shape[0] for face in faces if face is not None)
        crops = torch.zeros(len(faces), 3, size, size)
        for row, face in enumerate(faces):
            if face is not None:
                crops[row] = torch.from_numpy(face.crop).permute(2, 0, 1) / 255
    return References(faces=faces, crops=crops, has_face=has_face)


def as_list(images: Images, what: str = "image") -> list[ImageSource | None]:
    """One image or several as a list. An array with four dimensions holds several.

    Raises ConfigError, which names the argument `what`, for an empty list.
    """
    if isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4):
        if not len(images):
            raise ConfigError(f"{what} is an empty list: give at least one image, or None for text alone")
        return list(images)
    return [images]


def fitted_shading(
    fitter: Any, references: References, others: References | None, *, height: int, width: int
) -> Tensor:
    """Shading maps (N,3,height,width) in [0,1], black where there is no face.

    The shape is that of the reference person. Pose, expression, camera and light are those of `others` where given, and
    else of the references.
    """
    count = len(references)
    maps = torch.zeros(count, 3, height, width)
    sources = others if others is not None else references
    rows = [row for row, face in enumerate(sources.faces) if face is not None]
    if not rows:
        return maps
    fit = _fit(fitter, [sources.faces[row] for row in rows])
    people = [row for row in rows if references.faces[row] is not None]
    if others is not None and people:
        shape = fit.shape.clone()
        index = torch.tensor([rows.index(row) for row in people])
        shape[index] = _fit(fitter, [references.faces[row] for row in people]).shape.to(shape)
        fit = replace(fit, shape=shape)
    side = min(height, width)
    # The renderer draws square portraits. A longer picture gets the portrait in its middle.
    top, left = (height - side) // 2, (width - side) // 2
    maps[rows, :, top : top + side, left : left + side] = fitter.shading(fit, side).float().cpu()
    return maps


def given_shading(images: Images, count: int, *, height: int, width: int) -> Tensor:
    """Shading maps that the caller gives, as (count,3,height,width) in [0,1]. Entries None are black.

    Raises ConfigError for another number of maps than 1 and `count`, and UnreadableImageError for a bad one.
    """
    sources = as_list(images, "shading_map")
    if len(sources) not in (1, count):
        raise ConfigError(f"shading_map: {len(sources)} maps do not fit {count} images: give 1 or {count}")
    maps = [torch.zeros(3, height, width)] * len(sources)
    for index, source in enumerate(sources):
        if source is not None:
            pixels = load_image(source, name=f"shading_map {index} ({describe_source(source)})")
            maps[index] = _resized(torch.from_numpy(pixels).permute(2, 0, 1) / 255, height, width)
    return torch.stack(maps * count if len(maps) == 1 else maps)


def shading_pictures(maps: Tensor | None, keep: Tensor | None, count: int) -> list[Image.Image | None]:
    """Maps as PIL images. An entry is None where the image has no map."""
    if maps is None:
        return [None] * count
    arrays = (maps.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    kept = [True] * count if keep is None else (keep > 0).tolist()
    return [Image.fromarray(array) if there else None for array, there in zip(arrays, kept, strict=True)]


def _prepare(
    source: ImageSource, landmarks: ArrayLike | None, place: str, policy: str, detector: FaceDetector | None
) -> PreparedFace:
    name = f"{place} ({describe_source(source)})"
    if landmarks is None:
        return prepare_face(source, policy=policy, detector=detector, name=name)
    points = _as_numbers(landmarks)
    if points is None or points.shape != (5, 2) or not np.isfinite(points).all():
        found = "no numbers or lists of unequal length" if points is None else f"shape {points.shape}"
        raise BadLandmarksError(f"landmarks of {name} must be five finite points (5, 2) px, got {found}")
    pixels = load_image(source, name=name)
    height, width = pixels.shape[:2]
    check_landmarks(points, height, width, name)
    if (side := crop_side(points)) < MIN_CROP_SIDE:
        raise BadLandmarksError(
            f"{name}: the face between these landmarks is {side:.1f} px wide, less than {MIN_CROP_SIDE:g}: give"
            " landmarks in px, not as shares of the image"
        )
    box = np.concatenate([points.min(axis=0), points.max(axis=0)])
    face = Face(box=box, landmarks=points, score=1.0)
    return PreparedFace(crop=align_face(pixels, points), face=face, image=pixels, name=name)


def _landmark_list(landmarks: Any, count: int) -> list[Any]:
    if landmarks is None:
        return [None] * count
    if isinstance(landmarks, list | tuple) and not landmarks:
        raise ConfigError("landmarks is an empty list: give five points (5, 2) px per image, or None to detect them")
    array = _as_numbers(landmarks)
    if array is not None and array.ndim in (2, 3):
        landmarks = [array] if array.ndim == 2 else list(array)
    elif not isinstance(landmarks, list | tuple):
        raise ConfigError(f"landmarks must be (5, 2) px per image, or a list of such arrays, got {landmarks!r}")
    if len(landmarks) != count:
        raise ConfigError(f"landmarks: {count} images need {count} sets of five points, got {len(landmarks)}")
    return list(landmarks)


def _as_numbers(values: Any) -> NDArray[np.float32] | None:
    """An array, or None for values that are not numbers or have no rectangular shape (as with entries None)."""
    try:
        return np.ascontiguousarray(np.asarray(values, dtype=np.float32))
    except (TypeError, ValueError):
        return None


def _fit(fitter: Any, faces: list[PreparedFace]) -> Any:
    return fitter.fit([face.image for face in faces], np.stack([face.face.landmarks for face in faces]))


def _resized(pixels: Tensor, height: int, width: int) -> Tensor:
    if pixels.shape[1:] == (height, width):
        return pixels
    return F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)
