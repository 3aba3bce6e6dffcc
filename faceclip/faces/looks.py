"""Looking for faces in a picture as it lies: what a detector gives, and repeated attempts for small and cut faces."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from faceclip.faces.align import quarter_turn

MAX_ASPECT = 8  # longer strips are not searched: they hold no portrait, and all of their looks are large
MAX_LOOK_PIXELS = 20_000_000  # with borders: a photo of 12 megapixels at its own size; MTCNN takes 70 bytes for each


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face in pixels of the picture: box x1, y1, x2, y2 (4,), landmarks (5, 2), score in [0, 1].

    The landmarks keep their order in a picture that lies on its side or upside down: the first is the eye on the left
    of the picture once it stands upright.
    """

    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    score: float

    @property
    def turn(self) -> int:
        """Degrees by which the picture is to be turned counterclockwise for an upright face: 0, 90, 180 or 270."""
        return quarter_turn(self.landmarks) * 90

    @property
    def area(self) -> float:
        return float(max(self.box[2] - self.box[0], 0) * max(self.box[3] - self.box[1], 0))


class FaceDetector(Protocol):
    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Finds all faces of an RGB picture (H, W, 3), best score first."""
        ...


class CoarseDetector(Protocol):
    def detect(self, image: NDArray[np.uint8], coarse: int | None = None) -> list[Face]:
        """Finds all faces, or quickly those of at least `coarse` px."""
        ...


@dataclass(frozen=True, kw_only=True)
class Coarsely:
    """A detector that looks quickly, and for faces of at least `smallest` px."""

    detector: CoarseDetector
    smallest: int

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        return self.detector.detect(image, self.smallest)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt on a picture: it is resized by `scale`, then gets a border of `padding` × the longer side."""

    scale: float = 1.0
    padding: float = 0.0


def attempts_for(height: int, width: int, *, long_side: int = 1280, short_side: int = 256) -> list[Attempt]:
    """Returns the order of attempts: as it is (large pictures shrunk first), enlarged if small, padded, other scales.

    A padded look finds faces that fill or leave the frame; a larger one finds the faces of small pictures,
    whose key points are then exact to a fraction of a pixel. No look has more than `MAX_LOOK_PIXELS`, which matters
    for strips (short sides enlarged, borders by the long side) and for pictures of more than 13 megapixels.
    """
    shrink = min(1.0, long_side / max(height, width))
    enlarge = max(1.0, short_side / min(height, width))
    base = enlarge if enlarge > 1 else shrink
    looks = ((base, 0.0), (base, 0.25), (base * 0.5, 0.5), (base * 2 if enlarge > 1 else 1.0, 0.1))
    return [
        Attempt(scale=min(scale, _largest_scale(height, width, padding)), padding=padding) for scale, padding in looks
    ]


def _largest_scale(height: int, width: int, padding: float) -> float:
    borders = 2 * padding * max(height, width)
    return math.sqrt(MAX_LOOK_PIXELS / ((height + borders) * (width + borders)))


def detect_with_retries(
    image: NDArray[np.uint8], detector: FaceDetector, attempts: Sequence[Attempt] | None = None
) -> list[Face]:
    """Returns faces of the first attempt that finds any, in pixels of the given picture; empty if none does, and for
    strips beyond `MAX_ASPECT`."""
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        return []
    for attempt in attempts if attempts is not None else attempts_for(height, width):
        faces = _look(image, detector, attempt)
        if faces:
            return faces
    return []


def look_reduced(
    image: NDArray[np.uint8], side: int, look: Callable[[NDArray[np.uint8], Sequence[Attempt]], list[Face]]
) -> list[Face]:
    """Faces, in pixels of the given picture, that `look` finds in the picture reduced to a longer side of `side` px.

    look: `detect_with_retries`, `detect_upright` or the like of one detector; it gets one attempt, on the picture as it
    is, since its usual first attempt would enlarge it again.
    """
    height, width = image.shape[:2]
    zoom = side / max(height, width)
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    back = np.array([width / size[0], height / size[1]])
    found = look(cv2.resize(image, size, interpolation=cv2.INTER_AREA), [Attempt()])
    return [moved(face, lambda points: (points + 0.5) * back - 0.5) for face in found]


def moved(face: Face, place: Callable[[NDArray[np.floating]], NDArray[np.floating]]) -> Face:
    """Returns the face in another picture, where `place` gives the place of points (N, 2)."""
    box, landmarks = place(face.box.reshape(2, 2)).reshape(4), place(face.landmarks)
    return Face(box=box.astype(np.float32), landmarks=landmarks.astype(np.float32), score=face.score)


def _look(image: NDArray[np.uint8], detector: FaceDetector, attempt: Attempt) -> list[Face]:
    height, width = image.shape[:2]
    size = (max(1, round(width * attempt.scale)), max(1, round(height * attempt.scale)))
    view = image
    if size != (width, height):
        shrinks = attempt.scale < 1
        view = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    margin = math.ceil(max(size) * attempt.padding)
    if margin:
        # Replicated borders: a hard black edge itself looks like a face boundary to the proposal network.
        view = cv2.copyMakeBorder(view, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
    ratio = np.array([size[0] / width, size[1] / height])
    # Pixel centers at integers: (x + .5) is what scales.
    return [moved(face, lambda points: (points - margin + 0.5) / ratio - 0.5) for face in detector.detect(view)]


def overlap(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Returns the intersection over union of two boxes (4,)."""
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (first, second)]
    return shared / (sum(areas) - shared)
