"""Measures text in pictures by rapidocr's PP-OCR networks (extra `curate`)."""

import re
from collections import Counter
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from faceclip.data.curate.measures import Figures, Measure, Picture
from faceclip.errors import MissingExtraError

SIDE = 480  # px, longer side at which text is searched
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
    height, width = picture.grey.shape
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    view = cv2.resize(picture.pixels, size, interpolation=cv2.INTER_AREA)
    found = _reader()(np.ascontiguousarray(view[:, :, ::-1]), use_det=True, use_cls=False, use_rec=True)
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


def _plain(words: str) -> str:
    return "".join(words.lower().split())


@lru_cache(maxsize=1)
def _reader() -> Any:
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
            "Det.limit_side_len": SIDE,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


TEXT = Measure(
    name="text",
    version=1,
    compute=text,
    columns={"text_share": pa.float32(), "text_boxes": pa.int32(), "watermark": pa.float32()},
)
