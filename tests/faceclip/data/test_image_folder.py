"""Rows of folders of pictures: captions beside them, metadata, splits, links and names that no text can hold."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from faceclip.data.cells import RejectedRecord
from faceclip.data.mapping import DataConfig, RowMapping
from faceclip.errors import DataError, EmptyDatasetError
from tests.faceclip.data.rows import folder, open_rows, png


def test_an_image_folder(tmp_path):
    root = folder(tmp_path / "f")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.png").write_bytes(png(3))
    (root / "bob" / "1.txt").unlink()
    source = open_rows(root, tmp_path)
    rows = list(source.rows(0))
    assert [row["file_name"] for row in rows] == ["ann/0.png", "ann/1.png", "bob/0.png", "bob/1.png"]
    assert [row["identity"] for row in rows] == ["ann", "ann", "bob", "bob"]
    assert rows[0]["caption"] == ["ann 0", "", "second line"]
    assert rows[3]["caption"] == []
    before = source.content_hash
    (root / "bob" / "1.txt").write_text("new words")
    assert open_rows(root, tmp_path).content_hash != before


def test_links_to_folders_are_entered_and_circles_are_not(tmp_path):
    root, elsewhere = folder(tmp_path / "f"), folder(tmp_path / "store")
    (root / "cat").symlink_to(elsewhere / "ann", target_is_directory=True)
    (elsewhere / "ann" / "up").symlink_to(root, target_is_directory=True)
    (root / "above").symlink_to(tmp_path, target_is_directory=True)
    (root / "itself").symlink_to(root / "itself")
    names = [row["file_name"] for row in open_rows(root, tmp_path).rows(0)]
    assert names == ["ann/0.png", "ann/1.png", "bob/0.png", "bob/1.png", "cat/0.png", "cat/1.png"]


def test_pictures_that_nothing_decodes_and_captions_in_other_encodings_are_counted(tmp_path):
    root = folder(tmp_path / "f")
    (root / "ann" / "2.HEIC").write_bytes(b"phone")
    (root / "ann" / "1.heic").write_bytes(b"the original of 1.png")
    (root / "ann" / "0.txt").write_bytes("café".encode("latin-1"))
    (root / "ann" / "1.txt").write_bytes("\ufeffa man\n".encode())
    (root / "bob" / "0.txt").write_bytes("a man".encode("utf-16"))
    rows = list(open_rows(root, tmp_path).rows(0))
    assert [row["file_name"] for row in rows if row["identity"] == "ann"] == ["ann/0.png", "ann/1.png", "ann/2.HEIC"]
    read = RowMapping(DataConfig(path=str(root)), "image_folder", tuple(rows[0]), str(root))
    for number, person in ((0, "ann"), (3, "bob")):
        with pytest.raises(RejectedRecord, match=rf"{person}/0\.png.*'caption'.*UTF-8") as caught:
            read.read(rows[number], number)
        assert caught.value.reason == "not_utf8"
    assert read.read(rows[1], 1).captions == ("a man",)
    (root / "metadata.csv").write_bytes("\ufefffile_name,caption\nann/1.png,é\n".encode())
    assert [row["caption"] for row in open_rows(root, tmp_path).rows(0)] == ["é"]


def test_tables_beside_the_pictures_that_they_name_are_read(tmp_path):
    root = folder(tmp_path / "f")
    rows = pa.table({"image": ["ann/0.png", "bob/1.png"], "caption": ["a", "b"], "identity": [1, 2]})
    pq.write_table(rows, root / "rows.parquet")
    source = open_rows(root, tmp_path)
    assert set(source.columns) == {"image", "caption", "identity"}
    assert [row["image"] for row in source.rows(0)] == ["ann/0.png", "bob/1.png"]
    # However many pictures there are, and whatever the names of their folders say.
    (root / "ann").rename(root / "train")
    for number in range(5100):
        (root / "train" / f"{number}.jpg").touch()
    (root / "rows.parquet").rename(root / "train.parquet")
    pq.write_table(rows.slice(1), root / "validation.parquet")
    assert [len(list(open_rows(root, tmp_path, split).rows(0))) for split in ("train", "validation")] == [2, 1]
    (root / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: train.parquet\n---\n")
    assert len(list(open_rows(root, tmp_path).rows(0))) == 2


def test_tables_of_no_split_are_not_passed_over(tmp_path):
    rows = pa.table({"caption": ["a", "b"], "identity": [1, 2]})
    for name in ("train.parquet", "more.parquet"):
        pq.write_table(rows, tmp_path / name)
    with pytest.raises(DataError, match=r"more\.parquet and 0 .*train\.parquet.*README\.md"):
        open_rows(tmp_path, tmp_path)
    assert len(list(open_rows(tmp_path / "train.parquet", tmp_path).rows(0))) == 2
    (tmp_path / "shards").mkdir()
    (tmp_path / "more.parquet").rename(tmp_path / "shards" / "0.parquet")
    assert len(list(open_rows(tmp_path, tmp_path, images=str(tmp_path / "shards")).rows(0))) == 2
    (tmp_path / "shards" / "0.parquet").rename(tmp_path / "train-more.parquet")
    assert len(list(open_rows(tmp_path, tmp_path).rows(0))) == 4


def test_splits_of_an_image_folder(tmp_path):
    root = folder(tmp_path / "f", ("train", "validation"))
    rows = list(open_rows(root, tmp_path, "validation").rows(1))
    assert len(rows) == 3
    assert all("/validation/" in row["image"] for row in rows)
    with pytest.raises(DataError, match=r"'test'.*data\.validation.*data\.validation_share"):
        open_rows(root, tmp_path, "test")


def test_persons_for_validation_are_not_trained_on(tmp_path):
    root = folder(folder(tmp_path / "f"), ("held",))
    (root / "held" / "ann").rename(root / "held" / "cat")
    seen = {
        split: {row["identity"] for row in open_rows(root, tmp_path, split, validation="held").rows(0)}
        for split in ("train", "held")
    }
    assert seen == {"train": {"ann", "bob"}, "held": {"bob", "cat"}}


def test_an_image_folder_with_metadata(tmp_path):
    root = folder(tmp_path / "f")
    lines = [{"file_name": "ann/1.png", "text": "hello", "person": "A", "box": [0, 0, 5, 5]}]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (row,) = open_rows(root, tmp_path).rows(0)
    assert (row["image"], row["text"], row["person"]) == (str(root / "ann" / "1.png"), "hello", "A")
    for bad, message in (
        ('{"file_name": "../../x.png"}', r"entry 1: '\.\./\.\./x\.png'"),
        ("{", r"metadata\.jsonl .*line 1"),
        ("{}", "entry 1: .*`file_name`"),
    ):
        (root / "metadata.jsonl").write_text(bad)
        with pytest.raises(DataError, match=message):
            open_rows(root, tmp_path)


def test_texts_of_metadata_are_read_whole(tmp_path):
    root = folder(tmp_path / "f")
    text = "one, \u2028two\u0085\x0cthree"
    (root / "metadata.csv").write_text(f'file_name,caption\nann/1.png,"{text}\nfour"\nann/0.png,plain\n')
    assert [row["caption"] for row in open_rows(root, tmp_path).rows(0)] == [f"{text}\nfour", "plain"]
    for bad, message in (
        ("ann/1.png,a man, old", r"metadata\.csv, entry 1: "),
        ('ann/1.png,"open', r"metadata\.csv .*UTF-8"),
    ):
        (root / "metadata.csv").write_text(f"file_name,caption\n{bad}\n")
        with pytest.raises(DataError, match=message):
            open_rows(root, tmp_path)
    line = json.dumps({"file_name": "ann/1.png", "caption": text}, ensure_ascii=False)
    (root / "metadata.jsonl").write_text(f"{line}\r\n\n")
    assert [row["caption"] for row in open_rows(root, tmp_path).rows(0)] == [text]


def test_file_names_that_are_no_utf8(tmp_path):
    path = tmp_path / "f" / "a" / "\udcff.png"  # how Python shows the byte 0xff of a name
    path.parent.mkdir(parents=True)
    path.write_bytes(png(1))
    assert len(list(open_rows(tmp_path / "f", tmp_path).rows(0))) == 1


def test_an_empty_folder(tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(EmptyDatasetError, match=r"/f .*data\.path$"):
        open_rows(tmp_path / "f", tmp_path)


def test_pictures_of_a_relative_folder_are_found(tmp_path, monkeypatch):
    folder(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    source = open_rows("photos", tmp_path)
    for row in source.rows(0):
        assert Path(row["image"]).is_absolute() and Path(row["image"]).is_file()
