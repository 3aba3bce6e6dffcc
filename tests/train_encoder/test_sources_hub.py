"""Hub data sets, streamed and downloaded, against a stand-in for the hub on this machine."""

import json
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
from tests.hub import serving

WORDS = ["data.columns.landmarks=points", "data.columns.identity=who", "trainer.num_threads=1"]


@pytest.fixture
def environment(tmp_path) -> Iterator[dict[str, str]]:
    """Serves `tmp_path`/hub; the variables that make `datasets` ask there."""
    (tmp_path / "hub").mkdir()
    with serving(tmp_path / "hub", tmp_path / "home") as environment:
        yield environment


# In one process of its own: the hub's client reads its address once, when it is imported.
BUILD = """
import json, sys
from train_encoder.features import main
print("statuses", [main(words) for words in json.loads(sys.argv[1])])
"""


def build(environment: dict[str, str], *runs: list[str]) -> str:
    """Output of the command, once for the words of each run, and at last their statuses."""
    words = json.dumps([["data.path=owner/faces", *WORDS, *run] for run in runs])
    done = subprocess.run(
        [sys.executable, "-c", BUILD, words], env=environment, text=True, capture_output=True, timeout=240
    )
    return done.stdout + done.stderr


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
    runs = [[f"data.streaming={way}", f"cache={tmp_path / way}", *tower_arguments] for way in ("true", "false")]
    output = build(environment, *runs)
    assert "statuses [0, 0]" in output, output
    assert output.count("train: 32 pictures of 8 persons") == 2
    assert output.count("validation: 8 pictures of 2 persons") == 2
    assert len(keys(tmp_path / "true")) == 8
    assert keys(tmp_path / "true") == keys(tmp_path / "false")  # known by the commit, however it is read


CELLS = """
import json, sys
from pathlib import Path
from faceclip.data.mapping import DataConfig
from faceclip.data.sources import open_source
for way in (True, False):
    source = open_source(DataConfig(path="owner/faces", streaming=way), "train", Path(sys.argv[1]))
    print(json.dumps([row["identity"] for row in source.rows(0)]))
"""


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_cells_of_text_tables_stay_text(environment, tmp_path, ending):
    """pandas takes some names for missing values, and others for numbers."""
    names = ["NA", "null", "007", "1e5", "Ann"]
    cells = [["image", "caption", "identity"], *(["0.png", "a man", name] for name in names)]
    separator = {"csv": ",", "tsv": "\t"}[ending]
    (tmp_path / "hub" / f"train.{ending}").write_text("".join(f"{separator.join(row)}\n" for row in cells))
    command = [sys.executable, "-c", CELLS, str(tmp_path / "memo.json")]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=240)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [names, names], done.stderr


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
    words = [f"cache={tmp_path / 'c'}", *tower_arguments]
    output = build(environment, ["data.streaming=true", *words], ["data.validation=test", *words])
    assert "statuses [0, 2]" in output, output
    assert "train: 0 of 32 rows unusable" in output
    assert "no split 'test', only" in output
