"""Which files are read as tables, and what is no table: archives, pipes, texts without end, sizes beyond reason."""

import json
import os
import re

import pytest

from faceclip.data.cells import MAX_CAPTION, RejectedRecord
from faceclip.data.mapping import DataConfig, RowMapping, data_at
from faceclip.data.sources import open_source
from faceclip.errors import ConfigError, DataError

ROW = {"image": "0.png", "caption": "a man", "identity": "ann"}


def rows_of(path, tmp_path, split="train"):
    return list(open_source(DataConfig(path=str(path)), split, tmp_path / "memo.json").rows(0))


def test_tables_in_capital_letters_keep_their_splits(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for split in ("train", "validation"):
        (root / f"{split}.CSV").write_text(f"image,caption,identity\n0.png,{split},007\n")
    assert rows_of(root, tmp_path) == [ROW | {"caption": "train", "identity": "007"}]
    assert rows_of(root, tmp_path, "validation") == [ROW | {"caption": "validation", "identity": "007"}]
    (root / "more.CSV").write_text("image,caption,identity\n0.png,x,1\n")
    with pytest.raises(DataError, match=r"more\.CSV .*would not be read"):
        rows_of(root, tmp_path)


@pytest.mark.parametrize("name", ["people.zip", "people.ZIP", "people.tgz"])
def test_an_archive_is_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DataError, match=rf"data\.path=.*{re.escape(name)}: .*unpack it"):
        rows_of(tmp_path / name, tmp_path)


def test_pipes_are_no_tables(tmp_path):
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match=rf"data\.path={re.escape(str(pipe))}: a pipe or device"):
        DataConfig(path=str(pipe), layout="files")
    with pytest.raises(ConfigError, match=rf"data={re.escape(str(pipe))}: a pipe or device"):
        data_at(str(pipe))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a.CSV", "is a pipe"),
        ("train/metadata.jsonl", "would be passed over"),
        ("metadata.csv", "would be passed over"),
        ("people.jsonl", "would be passed over"),
    ],
)
def test_pipes_among_the_files_of_a_folder_are_named(tmp_path, name, fault):
    root = tmp_path / "data"
    (root / "train").mkdir(parents=True)
    for number in range(2):
        (root / "train" / f"{number}.png").write_bytes(b"")
    if name == "a.CSV":
        for number in range(2):
            (root / "train" / f"{number}.png").unlink()
        (root / "b.CSV").write_text("image,caption,identity\n0.png,x,1\n")
    os.mkfifo(root / name)
    with pytest.raises(DataError, match=rf"{re.escape(str(root / name))} {fault}"):
        rows_of(root, tmp_path)


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1])
def test_a_caption_without_end_is_counted(tmp_path, size):
    person = tmp_path / "data" / "ann"
    person.mkdir(parents=True)
    (person / "0.png").write_bytes(b"")
    line = "x" * 99_999 + "\n"
    (person / "0.txt").write_text((line * 11)[:size])
    config = DataConfig(path=str(tmp_path / "data"))
    source = open_source(config, "train", tmp_path / "memo.json")
    (row,) = source.rows(0)
    mapping = RowMapping(config, source.layout, source.columns, source.name)
    if size == 1 << 20:
        assert len(mapping.read(row, 0).captions) == 2  # ten equal lines, and the rest of one
        return
    with pytest.raises(RejectedRecord, match=r"ann/0\.png, column 'caption'.* 100,000 ") as raised:
        mapping.read(row, 0)
    assert raised.value.reason == "long_caption"


def test_a_cell_without_end_is_counted():
    mapping = RowMapping(DataConfig(path="x"), "files", ROW, "rows")
    assert mapping.read(ROW | {"caption": "x" * MAX_CAPTION}, 0).captions == ("x" * MAX_CAPTION,)
    with pytest.raises(RejectedRecord, match="row 7, column 'caption'"):
        mapping.read(ROW | {"caption": ["x" * (MAX_CAPTION + 1)]}, 7)


@pytest.mark.parametrize(
    ("name", "most"),
    [("shard_rows", 1_000_000), ("batch_size", 65_536), ("workers", 1024), ("max_pixels", 4_000_000_000)],
)
def test_sizes_beyond_reason_are_refused(name, most):
    assert getattr(DataConfig(**{name: most}), name) == most
    for value in (0, most + 1):
        with pytest.raises(ConfigError, match=rf"data\.{name}: .*, got {value:,}$"):
            DataConfig(**{name: value})


def test_windows_line_ends_of_metadata(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (root / "0.png").write_bytes(b"")
    (root / "metadata.csv").write_bytes(b"file_name,caption\r\n0.png,a man\r\n")
    assert [row["caption"] for row in rows_of(root, tmp_path)] == ["a man"]
    (root / "metadata.csv").unlink()
    (root / "metadata.jsonl").write_bytes(json.dumps({"file_name": "0.png", "caption": "b"}).encode() + b"\r\n")
    assert [row["caption"] for row in rows_of(root, tmp_path)] == ["b"]
