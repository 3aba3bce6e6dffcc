"""Files of a data set, each written whole or not at all."""

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
    """A uint8 picture as the struct that a `datasets.Image` column stores."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=4)
    return {"bytes": buffer.getvalue(), "path": None}


def write_shard(path: Path, table: pa.Table) -> None:
    """A parquet file of a data set of pictures."""
    with replacing(path) as file:
        # PNGs do not compress again; small row groups let a reader take a few rows.
        pq.write_table(table, file, compression="zstd", row_group_size=128, use_dictionary=False)
