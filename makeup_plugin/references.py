"""The reference side of a call: faces from photos, and shading maps from faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

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
from makeup_plugin.fit_edits import FitEdits
from makeup_plugin.identities import Identity
from makeup_plugin.known_faces import KnownFaces, picture_key
from makeup_plugin.placement import Placement, place_shading

ONE_FACE = ("largest", "center", "only")  # policies that choose one of several faces
Images = ImageSource | Sequence[ImageSource | None] | None


@dataclass(frozen=True, kw_only=True)
class References:
    """One entry per image to generate.

    faces: the face used, or None. crops: (N,3,448,448) in [0,1], or None where no entry has a face, or the people are
    given as identities. has_face: (N,). identities: who is given as a value, or None; empty where photos are given.
    """

    faces: list[PreparedFace | None]
    crops: Tensor | None
    has_face: Tensor
    identities: Sequence[Identity | None] = ()

    def __len__(self) -> int:
        return len(self.faces)

    def points(self, row: int) -> tuple[np.ndarray, tuple[int, int]] | None:
        """The five points (5, 2) px of a row's face, with (height, width) of its photo; None without a face."""
        if self.identities:
            identity = self.identities[row]
            return None if identity is None else identity.points
        face = self.faces[row]
        return None if face is None else (face.face.landmarks, (face.image.shape[0], face.image.shape[1]))


def prepare_references(
    images: Images,
    *,
    count: int | None = None,
    landmarks: Sequence[ArrayLike | None] | ArrayLike | None = None,
    policy: str = "largest",
    detector: FaceDetector | None = None,
    what: str = "image",
    known: KnownFaces | None = None,
) -> References:
    """Find and align the face of each image.

    Args:
        images: one image (path, PIL image, array (H,W,3)) or a list. An entry None has no person.
        count: number of images that are needed. One image serves all of them.
        landmarks: (5,2) px per image in the order of `faceclip.faces`, in place of a detection.
        policy: which face to use where there are several.
        detector: finds the faces.
        what: the caller's name for the argument `images`, used in messages.
        known: remembers the faces of pictures, so that the same picture needs no detection and no crop again.

    Raises:
        ConfigError: a number of images or landmarks that does not fit.
        FaceError: an image that gives no face. The message names the argument and the image's position.
    """
    if policy not in ONE_FACE:
        raise ConfigError(f"face_policy must be one of {', '.join(ONE_FACE)}, got {policy!r}")
    sources = as_list(images, what)
    if count is not None and len(sources) not in (1, count):
        raise ConfigError(f"{what}: {len(sources)} images do not fit {count} prompts: give 1 or {count}")
    points = _landmark_list(landmarks, len(sources))
    faces = [
        None if source is None else _prepare(source, given, f"{what} {index}", policy, detector, known)
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
    return [cast("ImageSource | None", images)]


def identity_references(identities: Sequence[Identity | None]) -> References:
    """The same of people who are given as values."""
    faces = [None if identity is None else identity.face for identity in identities]
    has_face = torch.tensor([identity is not None for identity in identities])
    return References(faces=faces, crops=None, has_face=has_face, identities=tuple(identities))


def fitted_shading(
    fitter: Any,
    references: References,
    others: References | None,
    *,
    height: int,
    width: int,
    placement: Placement = "center",
    known: KnownFaces | None = None,
    edits: FitEdits | None = None,
) -> Tensor:
    """Shading maps (N,3,height,width) in [0,1], black where there is no face.

    The shape is that of the reference person. Pose, expression, camera and light are those of `others` where given, and
    else of the references. `placement`: where the face goes, as for `place_shading`. known: remembers fits. edits:
    what changes in every fit.
    """
    maps = torch.zeros(len(references), 3, height, width)
    fits = _fits(fitter, references if others is None else others, known)
    shapes = fits if others is None else _fits(fitter, references, known)
    for row, found in enumerate(fits):
        if found is None:
            continue
        fit, size = found
        if (person := shapes[row]) is not None and others is not None:
            fit = replace(fit, shape=person[0].shape.to(fit.shape))
        if edits is not None:
            fit = edits.apply(fit)
        maps[row] = place_shading(fitter, fit, size, placement, height=height, width=width)
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


def resized(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """A picture (H,W) or (H,W,3) at another size, as diffusers resizes it; itself where it has that size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def _prepare(
    source: ImageSource,
    landmarks: ArrayLike | None,
    place: str,
    policy: str,
    detector: FaceDetector | None,
    known: KnownFaces | None,
) -> PreparedFace:
    name = f"{place} ({describe_source(source)})"
    points = None if landmarks is None else _check_points(landmarks, name)
    pixels = load_image(source, name=name)
    if known is None:
        return _prepared(pixels, points, name, policy, detector)
    where = policy.encode() if points is None else points.tobytes()
    found = known.recall(
        "face", picture_key(pixels, where), lambda: _without_picture(_prepared(pixels, points, name, policy, detector))
    )
    # Copies: who changes a result must not change what is remembered.
    face = replace(found.face, box=found.face.box.copy(), landmarks=found.face.landmarks.copy())
    upright = np.ascontiguousarray(np.rot90(pixels, found.turn // 90)) if found.turn else pixels
    return replace(found, crop=found.crop.copy(), face=face, image=upright, name=name)


def _prepared(
    pixels: NDArray[np.uint8], points: NDArray[np.float32] | None, name: str, policy: str, detector: FaceDetector | None
) -> PreparedFace:
    if points is None:
        return prepare_face(pixels, policy=cast(Any, policy), detector=detector, name=name)
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


def _without_picture(prepared: PreparedFace) -> PreparedFace:
    """The face alone: a memory of faces does not hold whole pictures."""
    return replace(prepared, image=prepared.crop)


def _check_points(landmarks: ArrayLike, name: str) -> NDArray[np.float32]:
    points = _as_numbers(landmarks)
    if points is None or points.shape != (5, 2) or not np.isfinite(points).all():
        found = "no numbers or lists of unequal length" if points is None else f"shape {points.shape}"
        raise BadLandmarksError(f"landmarks of {name} must be five finite points (5, 2) px, got {found}")
    return points


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


def _fits(fitter: Any, references: References, known: KnownFaces | None) -> list[tuple[Any, tuple[int, int]] | None]:
    """For every row the fit, in the frame of the photo's upper left square, with (height, width) of the photo."""
    if references.identities:
        return [None if one is None else fit_of(one) for one in references.identities]
    rows = [row for row, face in enumerate(references.faces) if face is not None]
    found: list[tuple[Any, tuple[int, int]] | None] = [None] * len(references)
    if not rows:
        return found
    faces = [face for face in references.faces if face is not None]
    fit = fit_faces(fitter, faces, known)
    for index, (row, face) in enumerate(zip(rows, faces, strict=True)):
        found[row] = fit.rows(slice(index, index + 1)), face.image.shape[:2]
    return found


def fit_faces(fitter: Any, faces: Sequence[PreparedFace], known: KnownFaces | None = None) -> Any:
    """Fits of faces, in the frames of their photos' upper left squares, from memory where these were fitted before."""

    def fit() -> Any:
        landmarks = np.stack([face.face.landmarks for face in faces])
        return fitter.fit([face.image for face in faces], landmarks, framed=False)

    if known is None:
        return fit()
    key = tuple(picture_key(face.image, np.ascontiguousarray(face.face.landmarks)) for face in faces)
    return known.recall("fit", key, fit, by=fitter)


def fit_of(identity: Identity) -> tuple[Any, tuple[int, int]]:
    """The fit of an identity with (height, width) of its photo. Raises ConfigError where it has none."""
    if identity.fit is None or identity.photo_size is None:
        raise ConfigError(
            "identity has no fitted head, which the shading channel draws: encode it by a pipeline with a face_fitter,"
            " give shading_map, or set shading_scale=0"
        )
    return identity.fit, identity.photo_size


def _resized(pixels: Tensor, height: int, width: int) -> Tensor:
    if pixels.shape[1:] == (height, width):
        return pixels
    return F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)
