"""What only the whole set tells: which row stands for a near-duplicate, and where rows stand."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from faceclip.data.curate.deciding import decide
from faceclip.data.curate.measuring import Shards
from faceclip.data.curate.rules import KeepConfig

FAR = (1 << 40) - 1  # differs from 0 in more bits than a near-duplicate


def shards(folder: Path, split: str, *tables: dict) -> Shards:
    for number, columns in enumerate(tables):
        pq.write_table(pa.table(columns), folder / f"{split}-{number:05d}.parquet")
    return Shards(folder=folder, split=split, count=len(tables))


def test_the_row_that_stands_for_a_duplicate_is_kept(tmp_path):
    columns = {"reason": [""] * 3, "pixels": [10, 20, 30], "hash": [0, 0, FAR], "face_hash": [FAR, 0, 0]}
    found = decide([shards(tmp_path, "train", columns)], pa.table(columns).schema, KeepConfig())
    # The second one stands for the first by the hash of the whole, and the third one for the second by its face.
    assert found.kept.tolist() == [False, False, True] and found.instead == {0: 2, 1: 2}


def test_places_and_rows_of_several_shards_and_splits(tmp_path):
    two, one = {"reason": ["", ""]}, {"reason": ["unreadable_image"]}
    splits = [shards(tmp_path, "train", two, one), shards(tmp_path, "test", two)]
    found = decide(splits, pa.table(two).schema, KeepConfig())
    assert [found.places("train", 1), found.places("test", 0)] == [range(2, 3), range(3, 5)]
    rows = [found.row(place) for place in range(5)]
    assert rows == [("train", 0), ("train", 1), ("train", 2), ("test", 0), ("test", 1)]
    assert found.counts()["unmeasured"] == 1 and found.reasons(2) == ["unmeasured"]
