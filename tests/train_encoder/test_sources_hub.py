"""Hub data sets, streamed and downloaded, against a stand-in for the hub on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from faceclip.data.arrays import load_arrays
from tests import hub

WORDS = ["data.columns.landmarks=points", "data.columns.identity=who", "trainer.num_threads=1"]


@pytest.fixture
def environment(tmp_path) -> Iterator[dict[str, str]]:
    """Serves `tmp_path`/hub; the variables that make `datasets` ask there."""
    (tmp_path / "hub").mkdir()
    command = [sys.executable, hub.__file__, str(tmp_path / "hub")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().strip()
        yield os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        server.kill()


def build(environment: dict[str, str], *words: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "train_encoder.features", "data.path=owner/faces", *WORDS, *words]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


def keys(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*-*") if path.is_dir())


def test_parquet_streamed_and_downloaded(rows, environment, tower_arguments, tmp_path):
    (tmp_path / "hub" / "data").mkdir()
    for fold, split in (("a", "train"), ("b", "validation")):
        chosen = [
            {"image": row["photo"], "caption": row["words"], "who": row["who"], "points": row["points"]}
            for row in rows
            if row["fold"] == fold
        ]
        half = len(chosen) // 2
        for number, part in enumerate((chosen[:half], chosen[half:])):
            path = tmp_path / "hub" / "data" / f"{split}-{number:05d}-of-00002.parquet"
            pq.write_table(pa.Table.from_pylist(part), path)
    for streaming in ("true", "false"):
        status, output = build(
            environment, f"data.streaming={streaming}", f"cache={tmp_path / streaming}", *tower_arguments
        )
        assert status == 0, output
        assert "train: 32 pictures of 8 persons" in output
        assert "validation: 8 pictures of 2 persons" in output
    assert len(keys(tmp_path / "true")) == 8
    assert keys(tmp_path / "true") == keys(tmp_path / "false")  # known by the commit, however it is read


def test_streamed_picture_files(tiny_dataset, environment, tower_arguments, tmp_path):
    for split in ("train", "validation"):
        arrays, lines = load_arrays(tiny_dataset, split), []
        folder = tmp_path / "hub" / split
        folder.mkdir()
        for i in range(len(arrays)):
            Image.fromarray(np.asarray(arrays.images[i])).save(folder / f"{i}.png")
            points = np.asarray(arrays.landmarks_5[i]).tolist()
            lines.append(
                {
                    "file_name": f"{i}.png",
                    "caption": arrays.captions[i][0].text,
                    "points": points,
                    "who": int(arrays.identity[i]),
                }
            )
        pq.write_table(pa.Table.from_pylist(lines), folder / "metadata.parquet")
    status, output = build(environment, "data.streaming=true", f"cache={tmp_path / 'c'}", *tower_arguments)
    assert status == 0, output
    assert "train: 0 of 32 rows unusable" in output
    status, output = build(environment, "data.validation=test", f"cache={tmp_path / 'c'}", *tower_arguments)
    assert status == 2
    assert "no split 'test', only" in output
