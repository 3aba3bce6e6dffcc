"""Small pictures, folders of them, and the rows of a path."""

import io

import numpy as np
from PIL import Image

from faceclip.data.mapping import DataConfig
from faceclip.data.sources import open_source


def png(value: int) -> bytes:
    """Eight by eight pixels of one grey, encoded."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def open_rows(path, tmp_path, split="train", **changes):
    """The source of `path`, which keeps its digests below `tmp_path`."""
    return open_source(DataConfig(path=str(path), **changes), split, tmp_path / "memo" / "digests.json")


def folder(root, splits=("",)):
    """Two pictures of each of two persons with captions beside them, in every split."""
    for split in splits:
        for person in ("ann", "bob"):
            for number in range(2):
                path = root / split / person / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(number))
                path.with_suffix(".txt").write_text(f"{person} {number}\n\nsecond line\n")
    return root
