"""Writes the files of a data set atomically."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from faceclip.storage.files import replacing


def encode_png(picture: NDArray[np.uint8]) -> dict[str, Any]:
    """Encodes a uint8 picture as the struct that a `datasets.Image` column stores."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=4)
    return {"bytes": buffer.getvalue(), "path": None}


def encode_photo(picture: NDArray[np.uint8], kind: str) -> dict[str, Any]:
    """Like `encode_png`: "png" without loss, or "jpeg" or "webp" of quality 95, in 1/20 and 1/4 of the time."""
    if kind == "png":
        return encode_png(picture)
    buffer = io.BytesIO()
    if kind == "jpeg":
        Image.fromarray(picture).save(buffer, format="JPEG", quality=95, subsampling=0)
    else:
        Image.fromarray(picture).save(buffer, format="WEBP", quality=95, method=0)
    return {"bytes": buffer.getvalue(), "path": None}


def encode_map(picture: NDArray[np.uint8]) -> dict[str, Any]:
    """Encodes a shading map (H, W, 3) as PNG, in grey if its channels are equal, with fast compression."""
    grey = bool((picture[..., :1] == picture).all())
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if grey else picture).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def write_shard(path: Path, table: pa.Table) -> None:
    """Writes a parquet file of a data set of pictures."""
    with replacing(path) as file:
        # PNGs do not compress again; small row groups let a reader take a few rows.
        pq.write_table(table, file, compression="zstd", row_group_size=128, use_dictionary=False)
