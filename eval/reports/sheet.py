"""Rows of pictures as one PNG, for READMEs and model cards."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from makeup_plugin.marking.provenance import Provenance, save_image

GAP, TOP = 6, 60  # px between tiles; of the line of headers
LETTERS = 21  # per line of text above or beside a tile of 128 px


def save_sheet(
    path: Path,
    grid: Sequence[Sequence[NDArray[np.uint8] | None]],
    headers: Sequence[str],
    *,
    row_labels: Sequence[str] | None = None,
    pixels: int = 128,
    provenance: Provenance | None = None,
) -> None:
    """Saves pictures (H, W, 3) in rows below a line of headers, each `pixels` high and wide; None leaves a gap. Labels
    of the rows stand in a column before them. `provenance` of generated pictures is written into the file.

    Raises DataError when the disk is full or not writable; an earlier sheet then stays.
    """
    left = GAP if row_labels is None else pixels + 2 * GAP
    width = left + len(headers) * (pixels + GAP)
    sheet = Image.new("RGB", (width, TOP + len(grid) * (pixels + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for column, header in enumerate(headers):
        pen.multiline_text((left + column * (pixels + GAP), 4), wrap(header), fill="#1d232b", font_size=11)
    for line, row in enumerate(grid):
        top = TOP + line * (pixels + GAP)
        if row_labels is not None:
            pen.multiline_text((GAP, top), wrap(row_labels[line]), fill="#1d232b", font_size=11)
        for column, picture in enumerate(row):
            if picture is not None:
                tile = Image.fromarray(picture).resize((pixels, pixels), Image.Resampling.LANCZOS)
                sheet.paste(tile, (left + column * (pixels + GAP), top))
    save_image(sheet, path, provenance)


def wrap(text: str, width: int = LETTERS) -> str:
    """Returns the text in lines of at most `width` letters; a longer word stands alone."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) + 1 > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line])
