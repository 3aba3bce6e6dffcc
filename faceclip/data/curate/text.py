"""Measures text in pictures by rapidocr's PP-OCR networks (extra `curate`)."""

import math
import re
from collections import Counter
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from faceclip.data.curate.measures import Figures, Measure, Picture
from faceclip.errors import MissingExtraError

SIDE = 480  # px, longer side at which text is searched
# A look at a picture of this area comes first, which takes less than a third of the time of a search, and the search
# sees only the surroundings of what looks like text there.
GLANCE = 256 * 256  # px
TRACE = 0.1  # mean probability of text around a pixel of that look from which it is searched; text that is read has 1
_AROUND = (5, 3)  # px of the look, width and height of that mean
_MARGIN = (48, 20)  # px at `SIDE` that are searched left and right, above and below: a line may be seen in part
_STEP = 32  # px, what the sides of a search must be multiples of
_MOST = 0.6  # share of the picture from which it is searched as a whole
Part = tuple[int, int, int, int]  # left, top, right, bottom in px
LEAST = 2  # shortest text, in characters
REPEATED = 3  # a text that occurs this many times in a picture counts as a tiled watermark
# What agencies and photographers write over pictures.
_MARKS = re.compile(
    r"©|\(c\)|copyright|all rights|www\.|\.com\b|\.net\b|\.org\b|https?:|watermark|preview|sample|proof"
    r"|stock|getty|alamy|dreamstime|depositphotos|123rf|adobe|photo\s?by|photography",
    re.IGNORECASE,
)


def text(picture: Picture) -> Figures:
    """Measures readable text.

    text_share: share of the picture that boxes of text cover. text_boxes: their number. watermark: the largest
    confidence (0 to 1) of a text that reads like a watermark (an address, an agency, ©, or a repeated text), or 0.
    """
    view = _view(picture.pixels, SIDE)
    covered = np.zeros(view.shape[:2], np.uint8)
    read = [
        # A single large character is usually a face or another round thing that was misread.
        found
        for found in _search(view, _traces(picture.pixels, view) if covered.size > 1.5 * GLANCE else [_whole(view)])
        if len(_plain(found[1])) >= LEAST
    ]
    for box, _, _ in read:
        cv2.fillPoly(covered, [np.round(box).astype(np.int32)], 1)
    texts = [(words, score) for _, words, score in read]
    return {"text_share": float(covered.mean()), "text_boxes": len(read), "watermark": watermark_likeness(texts)}


def watermark_likeness(texts: list[tuple[str, float]]) -> float:
    """Returns the largest confidence (0 to 1) among the `texts` that read like a watermark, or 0 if none does.

    texts: pairs of text and confidence.
    """
    times = Counter(_plain(words) for words, _ in texts)
    marked = [
        float(score)
        for words, score in texts
        if _MARKS.search(words) or (len(_plain(words)) > 2 and times[_plain(words)] >= REPEATED)
    ]
    return max(marked, default=0.0)


def _search(view: NDArray[np.uint8], parts: list[Part]) -> list[tuple[NDArray[np.float32], str, float]]:
    """Returns what is read in parts of a picture: the corners (4, 2) px of each text, the text, and its confidence."""
    read = []
    for left, top, right, bottom in parts:
        found = _reader()(np.ascontiguousarray(view[top:bottom, left:right]), use_det=True, use_cls=False, use_rec=True)
        texts = zip(() if found.boxes is None else found.boxes, found.txts or (), found.scores or (), strict=True)
        # Where the part ends within the picture, texts that reach its end go on outside.
        ends = np.array([[left > 0, top > 0], [right < view.shape[1], bottom < view.shape[0]]])
        low, high = np.where(ends, [[left + 2, top + 2], [right - 2, bottom - 2]], [[-np.inf] * 2, [np.inf] * 2])
        for box, words, score in texts:
            corners = np.asarray(box, np.float32) + np.array([left, top], np.float32)
            if (corners < low).any() or (corners > high).any():
                return _search(view, [_whole(view)])
            read.append((corners, words, float(score)))
    return read


def _traces(pixels: NDArray[np.uint8], view: NDArray[np.uint8]) -> list[Part]:
    """Returns the parts of `view`, the picture as it is searched, that hold a trace of text."""
    height, width = view.shape[:2]
    zoom = math.sqrt(GLANCE / (height * width))
    size = (max(1, round(width * zoom / _STEP)) * _STEP, max(1, round(height * zoom / _STEP)) * _STEP)
    small = np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)[:, :, ::-1])
    seen = cv2.blur(_probabilities(small), _AROUND) > TRACE
    back = np.array([width / seen.shape[1], height / seen.shape[0]] * 2)
    _, _, boxes, _ = cv2.connectedComponentsWithStats(seen.astype(np.uint8))
    parts = []
    for x, y, across, down, _ in boxes[1:].tolist():
        left, top, right, bottom = np.array([x, y, x + across, y + down]) * back
        wide, high = _MARGIN
        parts.append(_grown((left - wide, top - high, right + wide, bottom + high), width, height))
    parts = _apart(parts, width, height)
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in parts)
    return [_whole(view)] if area > _MOST * width * height else parts


def _whole(view: NDArray[np.uint8]) -> Part:
    return 0, 0, view.shape[1], view.shape[0]


def _grown(box: tuple[float, float, float, float], width: int, height: int) -> Part:
    """The part of a picture around a box whose sides are multiples of `_STEP` where the picture has that many."""
    ends = []
    for low, high, most in ((box[0], box[2], width), (box[1], box[3], height)):
        low, high = max(low, 0), min(high, most)
        side = min(math.ceil((high - low) / _STEP) * _STEP, most)
        first = min(max(round((low + high - side) / 2), 0), most - side)
        ends.append((first, first + side))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def _apart(parts: list[Part], width: int, height: int) -> list[Part]:
    """Returns parts that do not overlap: those that do are joined, again with sides that are multiples of `_STEP`."""
    kept: list[Part] = []
    for part in parts:
        while True:
            meeting = [other for other in kept if _meet(part, other)]
            if not meeting:
                break
            kept = [other for other in kept if other not in meeting]
            lefts, tops, rights, bottoms = zip(part, *meeting, strict=True)
            part = _grown((min(lefts), min(tops), max(rights), max(bottoms)), width, height)
        kept.append(part)
    return kept


def _meet(first: Part, second: Part) -> bool:
    return all(first[low] < second[low + 2] and second[low] < first[low + 2] for low in (0, 1))


def _view(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Returns the picture as BGR, scaled to a longer side of at most `side` px."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)[:, :, ::-1])


def _plain(words: str) -> str:
    return "".join(words.lower().split())


def _probabilities(view: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the probability of text at each pixel of a picture, which may have been resized to whole steps."""
    detector = _reader().text_det
    return detector.session(detector.get_preprocess()(view))[0, 0]


@lru_cache(maxsize=1)
def _reader() -> Any:
    """Returns rapidocr's pipeline, whose detector is loaded."""
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise MissingExtraError(
            "measures=text needs the package rapidocr: pip install 'faceclip-makeup[curate]', or leave it out of "
            "measures="
        ) from error
    # The picture is not enlarged: the default scales the shorter side to 736 px and takes ten times as long. Texts are
    # read one by one, so that a short one is not filled up to the length of the longest.
    reader = RapidOCR(
        params={
            "Global.log_level": "critical",
            "Det.limit_type": "max",
            "Det.limit_side_len": SIDE,
            "Rec.rec_batch_num": 1,
            "Rec.rec_img_shape": [3, 48, 160],
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
    reader(np.zeros((_STEP, _STEP, 3), np.uint8), use_det=True, use_cls=False, use_rec=False)
    return reader


TEXT = Measure(
    name="text",
    version=3,
    compute=text,
    columns={"text_share": pa.float32(), "text_boxes": pa.int32(), "watermark": pa.float32()},
)
