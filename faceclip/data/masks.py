"""Reads the masks of words that rows provide, as in FaceCaptionMask: files beside the pictures, with token positions.

A portrait keeps its masks as bits of one picture, so that they may overlap: bit b of channel c is mask 8 c + b, and a
phrase names its mask in place of a region ("mask 0", "mask 1", …).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from faceclip.data.cells import GivenMask, RejectedRecord
from faceclip.data.image_store import files_below, listing_hash
from faceclip.data.mapping import MASK_COLUMNS, RawRecord
from faceclip.data.portrait_reader import FoundPortrait
from faceclip.data.records import Caption, Phrase
from faceclip.data.row_files import find_file, read_file
from faceclip.errors import DataError, FaceError
from faceclip.faces.align import quarter_turn
from faceclip.faces.images import load_image
from faceclip.towers.text import tokenizer

MASKS = "masks"  # the column
MOST = 24  # of a portrait
_NAME = re.compile(r"mask (\d+)")
_CONTEXT = 77


@dataclass(frozen=True, kw_only=True)
class Masked:
    """planes (S, S, 3): the masks of a portrait as bits. captions: their captions, with a phrase for every run of words
    that has a mask."""

    planes: NDArray[np.uint8]
    captions: tuple[Caption, ...]


def mask_number(region: str) -> int | None:
    """Returns the number of the mask that a phrase names in place of a region; None if it names a region."""
    match = _NAME.fullmatch(region)
    return int(match[1]) if match and int(match[1]) < MOST else None


def mask_of(planes: NDArray[np.uint8], number: int) -> NDArray[np.bool_]:
    """Returns mask `number` (S, S) from the bits of planes (S, S, 3)."""
    return (planes[..., number // 8] >> number % 8 & 1).astype(bool)


def pack_masks(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Packs masks (M, S, S), at most `MOST`, as bits (S, S, 3)."""
    planes = np.zeros((*masks.shape[1:], 3), np.uint8)
    for number, mask in enumerate(masks):
        planes[..., number // 8] |= mask.astype(np.uint8) << number % 8
    return planes


def words_at(text: str, positions: Sequence[int], key: str) -> list[tuple[int, int]]:
    """Returns the spans (start, end) of a text whose words have tokens at these positions of CLIP's context.

    Position 0 is the start token. Adjacent words form one span. Raises RejectedRecord for positions without a word.
    """
    words = [match.span() for match in tokenizer().pat.finditer(text.lower())]
    tokens = [tokenizer().encode(text[start:end]) for start, end in words]
    if [token for part in tokens for token in part] != tokenizer().encode(text):
        raise RejectedRecord("bad_mask", f"{key}: {text[:60]!r} has characters that CLIP's tokenizer rewrites")
    owner = [number for number, part in enumerate(tokens) for _ in part][: _CONTEXT - 2]
    wrong = [position for position in positions if not 1 <= position <= len(owner)]
    if wrong:
        raise RejectedRecord(
            "bad_mask", f"{key}: token_indices {wrong[:5]} of {text[:60]!r}, which has the positions 1 to {len(owner)}"
        )
    chosen = enumerate(sorted({owner[position - 1] for position in positions}))
    runs = [[word for _, word in run] for _, run in groupby(chosen, lambda pair: pair[1] - pair[0])]
    return [(words[run[0]][0], words[run[-1]][1]) for run in runs]


class MaskReader:
    """Reads the masks of rows and cuts them like their portraits.

    folder: of the masks; paths that leave it are rejected. max_pixels: larger masks are rejected.
    """

    def __init__(self, folder: Path, size: int, *, max_pixels: int) -> None:
        self.folder, self.size, self.max_pixels = folder, size, max_pixels

    def fingerprint(self) -> str:
        """Returns the SHA-256 of names and sizes of the files in the folders of masks.

        Raises DataError if a folder cannot be listed.
        """
        folders = [self.folder / name for _, name in MASK_COLUMNS.values()]
        try:
            files = sorted(file for folder in folders if folder.is_dir() for file in files_below(folder))
            return listing_hash((file for file in files if file.is_file()), self.folder)
        except OSError as error:
            raise DataError(f"data.masks={self.folder} cannot be read ({error}): make it readable") from error

    def read(self, raw: RawRecord, portrait: FoundPortrait) -> Masked:
        """Returns the masks of a row in its portrait of `size` px.

        Raises RejectedRecord with the reason `no_mask` for a missing file, and `bad_mask` for a mask of another shape
        than the picture or of more than `max_pixels`, and for positions without a word.
        """
        if len(raw.masks) > MOST:
            raise RejectedRecord("bad_mask", f"{raw.key}: {len(raw.masks)} masks, more than {MOST}")
        cut = [self._cut(mask, raw.key, portrait) for mask in raw.masks]
        captions = []
        for text in raw.captions:
            phrases = [
                Phrase(text=text[start:end], start=start, end=end, region=f"mask {number}")
                for number, mask in enumerate(raw.masks)
                if mask.caption == text
                for start, end in words_at(text, mask.positions, raw.key)
            ]
            captions.append(Caption(text=text, kind="free", phrases=tuple(sorted(phrases, key=lambda p: p.start))))
        masks = np.stack(cut) if cut else np.zeros((0, self.size, self.size), bool)
        return Masked(planes=pack_masks(masks), captions=tuple(captions))

    def _cut(self, mask: GivenMask, key: str, portrait: FoundPortrait) -> NDArray[np.bool_]:
        """Returns one mask (S, S), scaled to its picture, turned upright and cut like the portrait."""
        try:
            path = find_file(mask.path, self.folder, [self.folder], key)
            data = read_file(path, key)
            grey = load_image(data, max_pixels=self.max_pixels, name=f"{key}, {mask.path}")[..., 0]
        except RejectedRecord as rejected:
            raise RejectedRecord("no_mask", str(rejected)) from rejected
        except FaceError as error:
            raise RejectedRecord("bad_mask", str(error)) from error
        turn = quarter_turn(portrait.landmarks)
        grey = np.ascontiguousarray(np.rot90(grey, turn))
        height, width = portrait.whole
        if abs(grey.shape[0] * width - grey.shape[1] * height) > max(height, width):
            size = f"{grey.shape[1]}×{grey.shape[0]}"
            raise RejectedRecord(
                "bad_mask", f"{key}: {mask.path} has {size} px, its picture {width}×{height}: another shape"
            )
        left, top, side = portrait.square
        # From the middle of a pixel of the portrait to that of the mask.
        across, down = (side / self.size * grey.shape[axis] / portrait.whole[axis] for axis in (1, 0))
        start = (left * grey.shape[1] / width, top * grey.shape[0] / height)
        matrix = np.array([[across, 0, start[0] + (across - 1) / 2], [0, down, start[1] + (down - 1) / 2]], np.float64)
        if max(across, down) > 1:  # averages first, so that no thin mask falls between the pixels
            grey = cv2.blur(grey, (max(1, round(across)), max(1, round(down))), borderType=cv2.BORDER_REPLICATE)
        found = cv2.warpAffine(
            grey,
            matrix,
            (self.size, self.size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return found > 127
