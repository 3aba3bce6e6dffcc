"""Data sets of somebody else, made of the tiny renders: other column names, other layouts."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from faceclip.data.arrays import FaceArrays, load_arrays
from tests.stages import save_towers
from train_encoder.config import TowersConfig
from train_encoder.towers_io import Towers, load_towers


@pytest.fixture(scope="module")
def tower_arguments(tmp_path_factory) -> list[str]:
    return save_towers(tmp_path_factory.mktemp("towers"))


@pytest.fixture(scope="module")
def towers(tower_arguments) -> Towers:
    return load_towers(TowersConfig(**dict(word.removeprefix("towers.").split("=") for word in tower_arguments)))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(arrays: FaceArrays, fold: str) -> list[dict]:
    """The portraits under column names of somebody else."""
    return [
        {
            "photo": png(arrays.images[i]),
            "words": [c.text for c in arrays.captions[i]],
            "who": f"person {arrays.identity[i]}",
            "points": np.asarray(arrays.landmarks_5[i]).tolist(),
            "fold": fold,
        }
        for i in range(len(arrays))
    ]


@pytest.fixture(scope="module")
def rows(tiny_dataset) -> list[dict]:
    return rows_of(load_arrays(tiny_dataset, "train"), "a") + rows_of(load_arrays(tiny_dataset, "validation"), "b")


@pytest.fixture
def parquet(rows, tmp_path) -> Path:
    """32 rows of 8 persons in fold a, 8 rows of 2 persons in fold b."""
    path = tmp_path / "foreign.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=8)
    return path


@pytest.fixture
def facecaption(rows, tmp_path) -> tuple[Path, Path]:
    """FaceCaption-15M's second layout, and a folder with pictures named by the hash of their URL."""
    images, table = tmp_path / "images", []
    images.mkdir()
    for number, row in enumerate(rows):
        url = f"https://example.org/{number}.png"
        points = np.asarray(row["points"])
        low, high = points.min(0) - 12, points.max(0) + 12
        table.append(
            {
                "_id": str(number),
                "url": f"{url}, more",
                "box": json.dumps([*low.tolist(), *high.tolist()]),
                "caption": [row["words"][0]],
                "laion_caption": ["x"],
            }
        )
        if number != 3:
            (images / f"{hashlib.sha256(url.encode()).hexdigest()}.png").write_bytes(row["photo"])
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "FaceCaption-v2.parquet")
    return tmp_path / "FaceCaption-v2.parquet", images
