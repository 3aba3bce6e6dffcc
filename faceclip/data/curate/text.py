"""Measures text in pictures by rapidocr's PP-OCR networks (extra `curate`)."""

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
# A look at this longer side comes first, which takes a third of the time of a search: there is one only where the look
# shows a trace of text. Lines of 2 % of a picture of 500 px, the usual threshold, are still clear there.
GLANCE = 320  # px
TRACE = 0.4  # least mean probability of text in a box of that look; the search takes .5
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
    if max(picture.grey.shape) > GLANCE:
        seen = _rapidocr(GLANCE, TRACE)(_view(picture.pixels, GLANCE), use_det=True, use_cls=False, use_rec=False)
        if seen.boxes is None or not len(seen.boxes):
            return {"text_share": 0.0, "text_boxes": 0, "watermark": 0.0}
    view = _view(picture.pixels, SIDE)
    found = _rapidocr(SIDE)(view, use_det=True, use_cls=False, use_rec=True)
    read = zip(() if found.boxes is None else found.boxes, found.txts or (), found.scores or (), strict=True)
    # A single large character is usually a face or another round thing that was misread.
    read = [(box, words, float(score)) for box, words, score in read if len(_plain(words)) >= LEAST]
    covered = np.zeros(view.shape[:2], np.uint8)
    for box, _, _ in read:
        cv2.fillPoly(covered, [np.round(np.asarray(box, np.float32)).astype(np.int32)], 1)
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


def _view(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Returns the picture as BGR, scaled to a longer side of at most `side` px."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)[:, :, ::-1])


def _plain(words: str) -> str:
    return "".join(words.lower().split())


@lru_cache(maxsize=2)
def _rapidocr(side: int, least: float = 0.5) -> Any:
    """Returns rapidocr's pipeline, which loads its networks when they are used.

    side: px of the longer side. least: mean probability of text in a box, .5 by rapidocr's own setting.
    """
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise MissingExtraError(
            "measures=text needs the package rapidocr: pip install 'faceclip-makeup[curate]', or leave it out of "
            "measures="
        ) from error
    # The picture is not enlarged: the default scales the shorter side to 736 px and takes ten times as long.
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Det.limit_type": "max",
            "Det.limit_side_len": side,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.box_thresh": least,
        }
    )


TEXT = Measure(
    name="text",
    version=2,
    compute=text,
    columns={"text_share": pa.float32(), "text_boxes": pa.int32(), "watermark": pa.float32()},
)
