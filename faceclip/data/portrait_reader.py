"""Turns a row into the frozen towers' inputs: header check, decoding, five points, aligned crop, portrait."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.data.cells import RejectedRecord
from faceclip.data.frames import Frame, Framing, cut_frame, cut_window
from faceclip.data.image_store import ImageStore, is_file
from faceclip.data.mapping import DataConfig, RawRecord
from faceclip.data.row_files import find_file, hub_folders, read_address, read_file
from faceclip.errors import (
    BadLandmarksError,
    ConfigError,
    DataError,
    FaceError,
    ImageTooLargeError,
    NoFaceError,
    SeveralFacesError,
)
from faceclip.faces.align import (
    CROP_SIZE,
    MIN_CROP_SIDE,
    check_landmarks,
    crop_side,
    encoder_crop,
    similarity_transform,
    stand_up,
)
from faceclip.faces.detect import InsightFaceDetector, MTCNNDetector, select_faces
from faceclip.faces.images import load_image
from faceclip.faces.looks import (
    MAX_ASPECT,
    Attempt,
    Face,
    FaceDetector,
    detect_with_retries,
    look_reduced,
    moved,
    overlap,
)
from faceclip.faces.upright import detect_upright
from faceclip.storage.hashes import int64_hash

BOX_MARGIN = 0.5  # of the box's longer side, looked at around a given box
BOX_OVERLAP = 0.2  # least intersection over union of a found face with the given box
REASONS = {
    BadLandmarksError: "bad_landmarks",
    ImageTooLargeError: "image_too_large",
    NoFaceError: "no_face",
    SeveralFacesError: "several_faces",
}
"""Reasons by which rows are rejected, by the type of the error; any other `FaceError` is "unreadable_image"."""


@dataclass(frozen=True, kw_only=True)
class FoundPortrait:
    """A face that was found and cut.

    crop (S, S, 3): the aligned face. picture (P, P, 3): the `square` (left, top, side) around it in the whole picture,
    whose height and width are `whole`. landmarks (5, 2): pixels of the whole picture as it is stored. digest: 64 bits
    of the encoded picture's SHA-256. frame: cut by a `Framing`, if there is one.

    If the whole picture is stored on its side or upside down, then `square`, `whole` and `upright` (5, 2), which are
    the same five points, are in pixels of the picture turned so that the face is upright.
    """

    crop: NDArray[np.uint8]
    picture: NDArray[np.uint8]
    square: tuple[int, int, int]
    whole: tuple[int, int]
    landmarks: NDArray[np.float32]
    upright: NDArray[np.float32]
    digest: int
    frame: Frame | None = None


def build_detector(config: DataConfig) -> FaceDetector:
    """Returns the detector that `config.detector` names. Raises ConfigError for an unknown name."""
    name, _, pack = config.detector.partition(":")
    if config.detector == "mtcnn":
        return MTCNNDetector()
    if name == "insightface":
        return InsightFaceDetector(pack or "buffalo_l", accept_non_commercial=config.accept_non_commercial)
    raise ConfigError(f"data.detector={config.detector}: choose mtcnn or insightface:PACK")


class PortraitReader:
    """Prepares records of one source; safe to use from several threads.

    crop_size, picture_size: sides of the face crop and of the square picture in px. folder: of the data; relative paths
    start there or at `config.images`, and paths that leave these two are rejected. cache: folder of features, in which
    no pictures are searched even if it lies below `config.images`. hub: id of the hub data set whose files rows may
    name. framing: how a frame is cut from the whole picture, if one is wanted.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        folder: Path | None,
        crop_size: int,
        picture_size: int,
        cache: Path | None = None,
        hub: str = "",
        framing: Framing | None = None,
    ) -> None:
        self.config, self.crop_size, self.picture_size, self.framing = config, crop_size, picture_size, framing
        self.detector = build_detector(config)
        self.store = ImageStore(Path(config.images), cache) if config.images else None
        self.folder = Path(config.images) if config.images else folder
        self.hub = hub
        self.roots = [root for root in (self.folder, folder, *hub_folders(hub)) if root is not None]

    @property
    def finding(self) -> str:
        """All settings that determine usable rows and places of faces; part of cache keys."""
        c = self.config
        store = self.store.fingerprint() if self.store else ""
        small = (f"at {c.detect_px} px, " if c.detect_px else "") + ("" if c.turned else "upright 2, ")
        return (
            f"finding 4: {small}face {c.face}, detector {c.detector}, box {c.box_format} {c.box_units}, "
            f"cap {c.max_pixels}, pictures {store}"
        )

    @property
    def cutting(self) -> tuple[str, str]:
        """The settings beyond `finding` that determine the pixels of the crop and of the picture."""
        return f"crop 2: {self.crop_size} px", f"picture 1: {self.picture_size} px, reach {self.config.portrait}"

    def prepare(
        self, raw: RawRecord, source: bytes | str, scale: float, landmarks: NDArray[np.floating] | None = None
    ) -> FoundPortrait:
        """Returns the portrait of a record whose picture `locate` has found: checks the header, decodes, finds, cuts.

        landmarks (5, 2): if they are known, no face is detected. Raises RejectedRecord.
        """
        try:
            data = source if isinstance(source, bytes) else read_file(Path(source), raw.key)
            image = load_image(data, max_pixels=self.config.max_pixels, name=raw.key)
            points = landmarks if landmarks is not None else self._landmarks(image, raw, scale)
        except FaceError as error:
            raise RejectedRecord(REASONS.get(type(error), "unreadable_image"), str(error)) from error
        # As stored: crops cut again from stored points must be the same to the bit.
        points = np.asarray(points, np.float32).astype(np.float64)
        side = crop_side(points)
        if side < MIN_CROP_SIDE:
            raise RejectedRecord("face_too_small", f"{raw.key}: the aligned face is {side:.1f} pixels wide")
        stored = points.astype(np.float32)
        image, points = stand_up(image, points)
        square = square_around(image, points, self.config.portrait)
        frame = self._frame(image, points, raw.key) if self.framing else None
        return FoundPortrait(
            crop=encoder_crop(image, points, self.crop_size),
            picture=cut_square(image, square, self.picture_size),
            square=square,
            whole=(image.shape[0], image.shape[1]),
            landmarks=stored,
            upright=points.astype(np.float32),
            digest=int64_hash(data),
            frame=frame,
        )

    def _frame(self, image: NDArray[np.uint8], points: NDArray[np.floating], key: str) -> Frame:
        assert self.framing is not None
        frame = cut_frame(image, points, square_around(image, points, self.framing.reach), self.framing)
        if min(frame.window[2:]) < self.framing.min_side:
            why = f"{key}: its portrait has {min(frame.window[2:])} px, less than min_side"
            raise RejectedRecord("portrait_too_small", why)
        return frame

    def locate(self, raw: RawRecord) -> tuple[bytes | str, float]:
        """Returns the encoded bytes or the local path, and the factor from the record's pixels to the picture's.

        Raises RejectedRecord, and DataError for a box that cannot belong to its picture.
        """
        if raw.image is None:
            if self.store is None:
                raise RejectedRecord("no_image", f"{raw.key}: no picture in the row, and data.images is not set")
            source, scale = self.store.find(raw.url, raw.key)
            if math.isnan(scale) and not (raw.box is None and raw.landmarks is None):
                raise DataError(
                    f"{raw.key}: img2dataset cut its picture or gave it a border, so that boxes and landmarks of the "
                    f"original do not fit those below {self.store.root}: use resize_mode=keep_ratio or no there"
                )
            return source, scale
        if isinstance(raw.image, bytes):
            return raw.image, 1.0
        if isinstance(raw.image, Path):  # found by walking through a folder, so that nobody but its owner chose it
            if not is_file(raw.image):
                raise RejectedRecord("no_image", f"{raw.key}: {str(raw.image)!r} does not exist or is no regular file")
            return str(raw.image), 1.0
        if "://" in raw.image or "::" in raw.image:
            return read_address(raw.image, self.roots, self.hub, raw.key), 1.0
        return str(find_file(raw.image, self.folder, self.roots, raw.key)), 1.0

    def bytes_of(self, path: str) -> int:
        """Returns the size in bytes of the local file of a row's picture; −1 if it is missing or outside of the
        data."""
        try:
            return find_file(path, self.folder, self.roots, path).stat().st_size
        except (OSError, RejectedRecord):
            return -1

    def _landmarks(self, image: NDArray[np.uint8], raw: RawRecord, scale: float) -> NDArray[np.floating]:
        height, width = image.shape[:2]
        if raw.landmarks is not None:
            points = self._to_pixels(raw.landmarks, width, height, scale)
            check_landmarks(points, height, width, raw.key)
            return points
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise RejectedRecord("odd_shape", f"{raw.key}: {width}×{height} is no portrait")
        if raw.box is None:
            return self._find(image, raw.key)
        box = self._to_pixels(raw.box.reshape(2, 2), width, height, scale).reshape(4)
        if min(box[2], width) - max(box[0], 0) < 2 or min(box[3], height) - max(box[1], 0) < 2:
            raise RejectedRecord("bad_box", f"{raw.key}: box {box.round(1).tolist()} lies outside of {width}×{height}")
        return find_in_box(image, box, self._faces, raw.key).landmarks

    def _find(self, image: NDArray[np.uint8], key: str) -> NDArray[np.floating]:
        """Returns the five points (5, 2) of the wanted face; a larger picture is first searched at `detect_px`."""
        shape, limit = (image.shape[0], image.shape[1]), self.config.detect_px
        if limit and max(shape) > limit and (faces := look_reduced(image, limit, self._faces)):
            return select_faces(faces, self.config.face, shape, key)[0].landmarks
        return select_faces(self._faces(image), self.config.face, shape, key)[0].landmarks

    def _faces(self, image: NDArray[np.uint8], attempts: Sequence[Attempt] | None = None) -> list[Face]:
        look = detect_upright if self.config.turned else detect_with_retries
        return look(image, self.detector, attempts)

    def _to_pixels(self, points: NDArray[np.float64], width: int, height: int, scale: float) -> NDArray[np.float64]:
        if self.config.box_units == "relative":
            return points * [width, height] - 0.5
        return (points + 0.5) * scale - 0.5


def find_in_box(
    image: NDArray[np.uint8], box: NDArray[np.floating], look: Callable[[NDArray[np.uint8]], list[Face]], name: str
) -> Face:
    """Detects faces around `box` (4,), x1, y1, x2, y2 in pixels, and returns the one that overlaps most with it.

    Raises NoFaceError.
    """
    height, width = image.shape[:2]
    margin = BOX_MARGIN * max(box[2] - box[0], box[3] - box[1])
    left, top = np.maximum(np.floor(box[:2] - margin), 0).astype(int)
    right, bottom = np.minimum(np.ceil(box[2:] + margin + 1), [width, height]).astype(int)
    shift = np.array([left, top], np.float32)
    found = look(np.ascontiguousarray(image[top:bottom, left:right]))
    faces = [moved(face, lambda points: points + shift) for face in found]
    best = max(faces, key=lambda face: overlap(face.box, box), default=None)
    if best is None or overlap(best.box, box) < BOX_OVERLAP:
        raise NoFaceError(f"{name}: {len(faces)} faces near the given box, none of which overlaps with it")
    return best


def square_around(image: NDArray[np.uint8], landmarks: NDArray[np.floating], reach: float) -> tuple[int, int, int]:
    """Returns left, top and side of an upright square around the face, moved inside the picture if necessary.

    Its side is `reach` × the side of the aligned face crop, and at most the picture's shorter side; reach 0 takes the
    center square.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    if reach:
        landmarks = np.asarray(landmarks, np.float64)
        inverse = cv2.invertAffineTransform(similarity_transform(torch.as_tensor(landmarks), CROP_SIZE).numpy())
        middle = inverse @ [(CROP_SIZE - 1) / 2, (CROP_SIZE - 1) / 2, 1]
        side = min(side, max(1, round(reach * crop_side(landmarks))))
    left, top = np.clip(np.round(middle - (side - 1) / 2), 0, [width - side, height - side]).astype(int).tolist()
    return left, top, side


def cut_square(image: NDArray[np.uint8], square: tuple[int, int, int], size: int) -> NDArray[np.uint8]:
    """Cuts a square (left, top, side) of the picture and scales it to (size, size, 3)."""
    left, top, side = square
    return cut_window(image, (left, top, side, side), (size, size))
