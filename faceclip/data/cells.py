"""Parses the cells of a row: texts, pictures, boxes, points and masks. Unusable cells are rejected, never guessed."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CAPTION = 100_000  # characters: text towers read the first few hundred


class RejectedRecord(Exception):
    """A row that cannot be used. `reason` is a short name by which reports count; the message says what was found."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return RejectedRecord, (self.reason, str(self))  # worker processes send these back


@dataclass(frozen=True, kw_only=True)
class GivenMask:
    """A mask of some words of a caption: the path in the row, which is not trusted, and the positions of the words'
    tokens in CLIP's context."""

    caption: str
    path: str
    positions: tuple[int, ...]


def encodes(text: str) -> bool:
    """Returns whether a text can be written as UTF-8, which half of a surrogate pair (possible in JSON) cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def texts_of(cell: Any, where: str) -> list[str]:
    """Returns the captions of a cell: a text, bytes, a struct with `text`, or a list of these. Raises
    RejectedRecord."""
    if cell is None:
        return []
    if isinstance(cell, str):
        if len(cell) > MAX_CAPTION:
            raise RejectedRecord("long_caption", f"{where} holds a text of more than {MAX_CAPTION:,} characters")
        return [cell.strip()] if cell.strip() else []
    if isinstance(cell, bytes):  # webdataset members of unknown type
        try:
            return texts_of(cell.decode("utf-8-sig"), where)
        except UnicodeDecodeError as error:
            raise RejectedRecord("not_utf8", f"{where} is no text in UTF-8 ({error}): save it as such") from error
    if isinstance(cell, Mapping) and "text" in cell:
        return texts_of(cell["text"], where)
    if isinstance(cell, list | tuple):
        return [text for item in cell for text in texts_of(item, where)]
    raise RejectedRecord("caption_not_text", f"{where} holds {type(cell).__name__}, expected text")


def image_of(cell: Any, where: str) -> bytes | str:
    """Returns the encoded picture of a cell, or the path or address in it. Raises RejectedRecord."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes | str) and cell:
        return cell
    if isinstance(cell, Path):
        return str(cell)
    kind = "nothing" if cell is None or isinstance(cell, bytes | str) else type(cell).__name__
    raise RejectedRecord("no_image", f"{where} holds {kind}, expected a picture's bytes or its path")


def _numbers(cell: Any, where: str, reason: str) -> list[float]:
    """Returns the numbers of nested lists or of JSON text as a flat list."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError as error:  # also a number of 5,000 digits
            raise RejectedRecord(reason, f"{where}: {cell[:60]!r} is not a JSON list") from error
    if isinstance(cell, Mapping):
        cell = list(cell.values())
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    if isinstance(cell, list | tuple):
        return [number for item in cell for number in _numbers(item, where, reason)]
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        with suppress(OverflowError):  # an integer may have 400 digits
            if math.isfinite(cell):
                return [float(cell)]
    raise RejectedRecord(reason, f"{where}: {str(cell)[:60]} is no finite number")


def parse_box(cell: Any, box_format: str, where: str) -> NDArray[np.float64]:
    """Parses a box (4,) x1, y1, x2, y2 from a list, JSON text or struct in `box_format`. Raises RejectedRecord."""
    values = _numbers(cell, f"{where}, box", "bad_box")
    if len(values) != 4:
        raise RejectedRecord("bad_box", f"{where}: a box of {len(values)} numbers, expected 4")
    box = np.asarray(values)
    if box_format == "xywh":
        box[2:] += box[:2]
    if not (box[2] > box[0] and box[3] > box[1]):
        raise RejectedRecord("bad_box", f"{where}: box {values} is empty; data.box_format is {box_format}")
    return box


def parse_masks(cell: Any, caption: str, folder: str, where: str) -> list[GivenMask]:
    """Parses the masks of a caption from a list of structs with `mask`, a path below `folder`, and `token_indices`.

    Raises RejectedRecord.
    """
    found = []
    for item in () if cell is None else cell if isinstance(cell, list | tuple) else [cell]:
        path = item.get("mask") if isinstance(item, Mapping) else None
        positions = item.get("token_indices") if isinstance(item, Mapping) else None
        if isinstance(positions, list | tuple) and not positions:
            continue  # a mask of no words is not needed
        whole = isinstance(positions, list | tuple) and all(isinstance(p, int) and p >= 0 for p in positions)
        if not (isinstance(path, str) and path and encodes(path) and positions and whole):
            raise RejectedRecord("bad_mask", f"{where}: {str(item)[:60]} is no struct of `mask` and `token_indices`")
        found.append(GivenMask(caption=caption, path=f"{folder}/{path}", positions=tuple(positions)))
    return found


def parse_landmarks(cell: Any, where: str) -> NDArray[np.float64]:
    """Parses landmarks (5, 2) from five points or ten numbers x, y, x, y, … Raises RejectedRecord."""
    values = _numbers(cell, f"{where}, landmarks", "bad_landmarks")
    if len(values) != 10:
        raise RejectedRecord("bad_landmarks", f"{where}: {len(values)} numbers, expected 5 points (x, y)")
    points = np.asarray(values).reshape(5, 2)
    if np.ptp(points, axis=0).max() < 1e-6:
        raise RejectedRecord("bad_landmarks", f"{where}: all five points are the same")
    return points
